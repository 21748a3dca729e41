"""R-MIF, relatively most influential first: MIF with patches drawn in proportion to 1 - attributions."""

from salvage_hf import evaluate_support


class RMif(evaluate_support.AttributionMetric):
    def _info(self):
        return evaluate_support.metric_info(__doc__, evaluate_support.RELATIVE_INPUTS, evaluate_support.PATCH_MAPS)

    def _compute(
        self,
        predictions,
        references,
        pixel_values=None,
        model=None,
        n_masks=128,
        budget=None,
        target_stderr=None,
        seed=0,
        ids=None,
        batch_size=32,
    ):
        draws = {"n_masks": n_masks, "budget": budget, "target_stderr": target_stderr, "seed": seed}
        return evaluate_support.relative_results(
            "r_mif", predictions, references, pixel_values, model, draws, ids, batch_size
        )
