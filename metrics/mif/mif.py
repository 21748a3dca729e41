"""MIF, most influential first: the mean prediction as patches are added from least to most important."""

from salvage_hf import evaluate_support


class Mif(evaluate_support.AttributionMetric):
    def _info(self):
        return evaluate_support.metric_info(__doc__, evaluate_support.RANK_INPUTS, evaluate_support.PATCH_MAPS)

    def _compute(self, predictions, references, pixel_values=None, model=None, seed=0, ids=None, batch_size=32):
        return evaluate_support.rank_results("mif", predictions, references, pixel_values, model, seed, ids, batch_size)
