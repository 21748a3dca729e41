"""SRG, symmetric relevance gain: LIF - MIF."""

from salvage_hf import evaluate_support


class Srg(evaluate_support.AttributionMetric):
    def _info(self):
        return evaluate_support.metric_info(__doc__, evaluate_support.RANK_INPUTS, evaluate_support.PATCH_MAPS)

    def _compute(self, predictions, references, pixel_values=None, model=None, seed=0, ids=None, batch_size=32):
        return evaluate_support.rank_results("srg", predictions, references, pixel_values, model, seed, ids, batch_size)
