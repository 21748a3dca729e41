from salvage_hf.evaluate_modules import shared


class RMif(shared.RelativeMetric):
    """R-MIF, relatively most influential first: MIF with patches drawn in proportion to 1 - attributions."""

    score = "r_mif"
