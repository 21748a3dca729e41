"""Agreement of attributions with annotated regions (Arras et al., 2022; appendix A.1)."""

from typing import Any

import torch

from .tensors import booleans, one_of, reals, two_sides

#: How patch maps are brought to pixels.
INTERPOLATIONS = ("bilinear", "nearest")


def relevance_rank_accuracy(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """RRA: the share of the k highest pixels that lie in the region, k being the region's number of pixels.

    Args:
        maps: [B, H, W], attributions on the pixel grid (`upsample` brings patch maps there); of any real type, ranked
            without rounding.
        masks: bool [B, H, W], True inside the region.

    Returns:
        float32 [B], NaN where a mask is empty. Ties at the k-th value count in proportion, so that a constant map
        scores what a random one does on average.

    Raises:
        ValueError: where types or shapes do not fit, or maps are NaN or infinite.
    """
    maps, masks = _check_and_flatten(maps, masks)
    k = masks.sum(dim=1, keepdim=True)  # [B, 1]
    threshold = maps.sort(dim=1, descending=True).values.gather(1, (k - 1).clamp_min(0))
    above, tied = maps > threshold, maps == threshold
    from_ties = (k - above.sum(dim=1, keepdim=True)) / tied.sum(dim=1, keepdim=True)
    hits = (above & masks).sum(dim=1) + (from_ties * (tied & masks)).sum(dim=1)
    return torch.where(k > 0, hits[:, None] / k, torch.nan)[:, 0]


def relevance_mass_accuracy(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """RMA: the share of the positive attribution that lies in the region.

    Args:
        maps: [B, H, W], attributions on the pixel grid, of any real type.
        masks: bool [B, H, W], True inside the region.

    Returns:
        float32 [B], NaN where a mask is empty or no attribution is positive.

    Raises:
        ValueError: where types or shapes do not fit, or maps are NaN or infinite.
    """
    maps, masks = _check_and_flatten(maps, masks)
    positive = maps.clamp_min(0)
    largest = positive.amax(dim=1, keepdim=True)
    positive = positive / torch.where(largest > 0, largest, 1)  # the sum of very large attributions would be infinite
    total = positive.sum(dim=1)
    defined = masks.any(dim=1) & (total > 0)
    inside = (positive * masks).sum(dim=1)
    return torch.where(defined, inside / total, torch.nan).float()


def upsample(
    attributions: torch.Tensor, grid_size: tuple[int, int], size: tuple[int, int], mode: str = "bilinear"
) -> torch.Tensor:
    """Patch maps on the pixel grid.

    Args:
        attributions: [B, N], of any real type.
        grid_size: (rows, columns) of the patches.
        size: (height, width) in pixels.
        mode: "bilinear" interpolates between the centres of the patches; "nearest" repeats a patch's value.

    Returns:
        float64 [B, H, W]. Pixels between patches of equal values have exactly their value, so that ties stay ties.

    Raises:
        ValueError: where types or shapes do not fit, or attributions are NaN or infinite.
    """
    (rows, columns), (height, width) = two_sides("grid_size", grid_size), two_sides("size", size)
    mode = one_of("mode", mode, INTERPOLATIONS)
    attributions = reals("attributions", attributions, "B N")
    if attributions.shape[-1] != rows * columns:
        raise ValueError(
            f"attributions have {attributions.shape[-1]} patches, grid_size {rows} x {columns} has {rows * columns}"
        )
    maps = attributions.unflatten(-1, (rows, columns))
    if mode == "nearest":
        return torch.nn.functional.interpolate(maps[:, None], size=(height, width), mode=mode)[:, 0]
    return _interpolate(_interpolate(maps, height, dim=1), width, dim=2)


def _interpolate(maps: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    """Linear interpolation of one dimension as torch has it, except that equal neighbours give exactly their value.

    In torch's, rounding splits ties: in a third of all constant maps, pixels differ.
    """
    number = maps.shape[dim]
    places = (torch.arange(length, device=maps.device, dtype=maps.dtype) + 0.5) * number / length - 0.5
    places = places.clamp(0, number - 1)  # constant beyond the outermost centres
    before = places.floor().long()
    after = (before + 1).clamp_max(number - 1)
    share = (places - before).unflatten(0, (-1, *[1] * (maps.ndim - dim - 1)))
    low, high = maps.index_select(dim, before), maps.index_select(dim, after)
    return torch.where(low == high, low, (1 - share) * low + share * high)


def _check_and_flatten(maps: Any, masks: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks maps and masks [B, H, W], and flattens the pixels of each image: float64 and bool [B, H * W]."""
    maps = reals("maps", maps, "B H W")
    sizes = dict(zip("BHW", maps.shape, strict=True))
    return maps.flatten(1), booleans("masks", masks, "B H W", **sizes).to(maps.device).flatten(1)
