from salvage_hf.evaluate_modules import shared


class RSrg(shared.RelativeMetric):
    """R-SRG, relative symmetric relevance gain: R-LIF - R-MIF (eq. 8)."""

    score = "r_srg"
