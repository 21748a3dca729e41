from salvage_hf.evaluate_modules import shared


class Rra(shared.RegionMetric):
    """RRA, relevance rank accuracy: the share of the k highest pixels in an annotated region of k pixels."""

    score = "rra"
