from salvage_hf.evaluate_modules import shared


class Rma(shared.RegionMetric):
    """RMA, relevance mass accuracy: the share of the positive attribution in an annotated region."""

    score = "rma"
