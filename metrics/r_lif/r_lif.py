"""R-LIF, relatively least influential first: LIF with patches drawn in proportion to the attributions."""

from salvage_hf import evaluate_support


class RLif(evaluate_support.AttributionMetric):
    def _info(self):
        return evaluate_support.metric_info(__doc__, evaluate_support.RELATIVE_INPUTS, evaluate_support.PATCH_MAPS)

    def _compute(self, predictions, references, pixel_values=None, model=None, ids=None, batch_size=32, **draws):
        return evaluate_support.relative_results(
            "r_lif", predictions, references, pixel_values, model, ids, batch_size, draws
        )
