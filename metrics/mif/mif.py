from salvage_hf.evaluate_modules import shared


class Mif(shared.RankMetric):
    """MIF, most influential first (Algorithm 1): mean prediction as patches are added from least to most important."""

    score = "mif"
