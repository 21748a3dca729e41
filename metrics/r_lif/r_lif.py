from salvage_hf.evaluate_modules import shared


class RLif(shared.RelativeMetric):
    """R-LIF, relatively least influential first (Algorithm 2): LIF on patches drawn in proportion to attributions."""

    score = "r_lif"
