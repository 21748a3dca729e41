from salvage_hf.evaluate_modules import shared


class Srg(shared.RankMetric):
    """SRG, symmetric relevance gain: LIF - MIF."""

    score = "srg"
