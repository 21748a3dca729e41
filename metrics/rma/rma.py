from salvage_hf.evaluate_modules import shared


class Rma(shared.RegionMetric):
    """RMA, relevance mass accuracy (Arras et al., 2022): the share of positive attribution in an annotated region."""

    score = "rma"
