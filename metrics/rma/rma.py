"""RMA, relevance mass accuracy: the share of the positive attribution in an annotated region."""

from salvage_hf import evaluate_support, localization


class Rma(evaluate_support.AttributionMetric):
    def _info(self):
        return evaluate_support.metric_info(
            __doc__, evaluate_support.REGION_INPUTS, evaluate_support.PATCH_OR_PIXEL_MAPS
        )

    def _compute(self, predictions, masks=None, grid_size=None, upsampling="bilinear"):
        return evaluate_support.region_results(
            "rma", localization.relevance_mass_accuracy, predictions, masks, grid_size, upsampling
        )
