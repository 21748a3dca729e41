"""Which methods are best: a paired bootstrap over images, and the marks for tables."""

from collections.abc import Mapping

import torch

#: On fewer images nothing is marked as best.
MIN_MARKED = 10


def mark(scores: Mapping[str, torch.Tensor], higher_is_better: bool) -> dict[str, str]:
    """Which methods are "best" and which "second".

    Best are the method with the best mean and all methods that it does not beat (`not_worse`). Second are the same
    among the remaining methods. Means are compared on the images on which all methods' scores are defined. Nothing is
    marked with fewer than two methods, or on fewer than `MIN_MARKED` images, where the test shows nothing. A method is
    not marked where its score is undefined on most of the images on which any method's is defined.

    Args:
        scores: method -> values per image [I], NaN where undefined.
        higher_is_better: the direction of the score.

    Returns:
        method -> "best" or "second"; other methods are left out.
    """
    defined = torch.stack([~values.isnan() for values in scores.values()])  # [methods, I]
    images = int(defined.any(dim=0).sum())
    if len(scores) < 2 or images < MIN_MARKED:
        return {}
    remaining = {
        name: values if higher_is_better else -values
        for (name, values), is_defined in zip(scores.items(), defined, strict=True)
        if 2 * int(is_defined.sum()) >= images
    }
    marks: dict[str, str] = {}
    for place in ("best", "second"):
        if not remaining:
            break
        shared = ~torch.stack(list(remaining.values())).isnan().any(dim=0)
        if not shared.any():
            break
        leader = max(remaining, key=lambda name: remaining[name][shared].mean().item())
        tied = [name for name in remaining if name == leader or not_worse(remaining[name], remaining[leader])]
        marks |= dict.fromkeys(tied, place)
        remaining = {name: values for name, values in remaining.items() if name not in tied}
    return marks


def not_worse(values: torch.Tensor, leader: torch.Tensor, resamples: int = 10_000, level: float = 0.05) -> bool:
    """Whether a paired bootstrap over images fails to show that the leader's mean is higher (one-sided).

    Args:
        values, leader: [I], scores on the same images, higher is better; images without both are left out.
        resamples: how many samples of I images are drawn with replacement, under a fixed seed.
        level: the significance level.
    """
    differences = leader - values
    differences = differences[~differences.isnan()]
    if not len(differences):
        return True
    generator = torch.Generator().manual_seed(0)
    at_most_zero = 0
    for part in torch.arange(resamples).split(1000):
        chosen = torch.randint(len(differences), (len(part), len(differences)), generator=generator)
        at_most_zero += int((differences[chosen].mean(dim=1) <= 0).sum())
    return at_most_zero >= level * resamples
