from salvage_hf.evaluate_modules import shared


class RMif(shared.RelativeMetric):
    """R-MIF, relatively most influential first (Algorithm 2): MIF on patches drawn in proportion to 1 - attribution."""

    score = "r_mif"
