from salvage_hf.evaluate_modules import shared


class RLif(shared.RelativeMetric):
    """R-LIF, relatively least influential first: LIF with patches drawn in proportion to the attributions."""

    score = "r_lif"
