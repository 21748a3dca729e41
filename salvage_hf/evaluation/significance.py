"""Which methods are best: a paired bootstrap over images, and the marks for tables."""

import functools
from collections.abc import Mapping

import torch

#: On fewer images nothing is marked as best.
MIN_MARKED = 10
#: Resamples at once, which bounds the memory of the bootstrap.
SPLIT = 1000


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
    if len(scores) < 2 or measured_images(scores) < MIN_MARKED:
        return {}
    remaining = comparable(scores, higher_is_better)
    marks: dict[str, str] = {}
    for place in ("best", "second"):
        if not remaining:
            break
        shared = ~torch.stack(list(remaining.values())).isnan().any(dim=0)
        if not shared.any():
            break
        leader = max(remaining, key=lambda name: remaining[name][shared].mean().item())
        reached = not_worse(torch.stack(list(remaining.values())), remaining[leader]).tolist()
        tied = [name for name, reaches in zip(remaining, reached, strict=True) if name == leader or reaches]
        marks |= dict.fromkeys(tied, place)
        remaining = {name: values for name, values in remaining.items() if name not in tied}
    return marks


def not_worse(values: torch.Tensor, leader: torch.Tensor, resamples: int = 10_000, level: float = 0.05) -> torch.Tensor:
    """Whether a paired bootstrap over images fails to show that the leader's mean is higher (one-sided).

    Args:
        values: [..., I], scores, higher is better.
        leader: [I], scores on the same images; images without both are left out.
        resamples: how many samples of I images are drawn with replacement, under a fixed seed.
        level: the significance level.

    Returns:
        bool [...].
    """
    return (_resampled_means(leader - values, resamples) <= 0).sum(dim=-1) >= level * resamples


def lead(values: torch.Tensor, leader: torch.Tensor, level: float = 0.05) -> tuple[float, float, float]:
    """By how much the leader's mean is higher on the images that have both.

    Args:
        values, leader: [I], scores on the same images, higher is better.
        level: the share of the bootstrap's resamples that lies below the interval, and that above it.

    Returns:
        The mean difference, and the ends of the interval: `not_worse` at the same level is true where it reaches 0.
        Where no image has both, NaN between zeros.
    """
    differences = leader - values
    means = _resampled_means(differences, 10_000)
    low, high = torch.quantile(means, torch.tensor([level, 1 - level], dtype=means.dtype)).tolist()
    return differences.nanmean().item(), low, high


def measured_images(scores: Mapping[str, torch.Tensor]) -> int:
    """On how many images the score of any method is defined: method -> values [I]."""
    return int(torch.stack([~values.isnan() for values in scores.values()]).any(dim=0).sum())


def comparable(scores: Mapping[str, torch.Tensor], higher_is_better: bool) -> dict[str, torch.Tensor]:
    """Values that are better the higher they are, of the methods that are defined on half of the measured images."""
    images = measured_images(scores)
    return {
        name: values if higher_is_better else -values
        for name, values in scores.items()
        if 2 * int((~values.isnan()).sum()) >= images
    }


def _resampled_means(differences: torch.Tensor, resamples: int) -> torch.Tensor:
    """Means of samples with replacement, under a fixed seed; zeros where no difference is defined.

    Args:
        differences: [..., I], NaN where undefined.
        resamples: how many samples are drawn.

    Returns:
        float64 [..., resamples].
    """
    rows = differences.double().reshape(-1, differences.shape[-1])
    defined = ~rows.isnan()
    means = rows.new_zeros(len(rows), resamples)
    for images in defined.unique(dim=0):  # rows that are defined on the same images share their resamples
        if images.any():
            same = (defined == images).all(dim=1)
            values = rows[same][:, images].T
            sums = [part.double() @ values for part in _resample_counts(len(values), resamples).split(SPLIT)]
            means[same] = torch.cat(sums).T / len(values)
    return means.reshape(*differences.shape[:-1], resamples)


@functools.lru_cache(maxsize=2)
def _resample_counts(images: int, resamples: int) -> torch.Tensor:
    """How often each image stands in each resample, [resamples, images]; drawn once for all pairs of methods."""
    generator = torch.Generator().manual_seed(0)
    counts = []
    for part in torch.arange(resamples).split(SPLIT):
        chosen = torch.randint(images, (len(part), images), generator=generator)
        ones = torch.ones_like(chosen, dtype=torch.int16)  # two bytes each: the result is kept
        counts.append(torch.zeros_like(ones).scatter_add_(1, chosen, ones))
    return torch.cat(counts)
