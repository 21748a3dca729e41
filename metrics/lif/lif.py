from salvage_hf.evaluate_modules import shared


class Lif(shared.RankMetric):
    """LIF, least influential first (Algorithm 1): mean prediction as patches are added from most to least important."""

    score = "lif"
