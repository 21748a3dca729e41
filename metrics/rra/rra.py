"""RRA, relevance rank accuracy: the share of the k highest pixels in an annotated region of k pixels."""

from salvage_hf import evaluate_support, localization


class Rra(evaluate_support.AttributionMetric):
    def _info(self):
        return evaluate_support.metric_info(
            __doc__, evaluate_support.REGION_INPUTS, evaluate_support.PATCH_OR_PIXEL_MAPS
        )

    def _compute(self, predictions, masks=None, grid_size=None, upsampling="bilinear"):
        return evaluate_support.region_results(
            "rra", localization.relevance_rank_accuracy, predictions, masks, grid_size, upsampling
        )
