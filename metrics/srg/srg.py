from salvage_hf.evaluate_modules import shared


class Srg(shared.RankMetric):
    """SRG, symmetric relevance gain: LIF - MIF (eq. 7)."""

    score = "srg"
