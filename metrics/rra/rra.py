from salvage_hf.evaluate_modules import shared


class Rra(shared.RegionMetric):
    """RRA, relevance rank accuracy (Arras et al., 2022): the share of the k highest pixels in a region of k pixels."""

    score = "rra"
