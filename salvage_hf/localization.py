"""Agreement of attributions with annotated regions (Arras et al., 2022; appendix A.1)."""

import torch


def relevance_rank_accuracy(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """RRA: the share of the k highest pixels that lie in the region, k being the region's number of pixels.

    Args:
        maps: [B, H, W], attributions on the pixel grid (`upsample` brings patch maps there).
        masks: bool [B, H, W], True inside the region.

    Returns:
        [B], NaN where a mask is empty. Ties at the k-th value count in proportion, so that a constant map scores
        what a random one does on average.
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
        maps: [B, H, W], attributions on the pixel grid.
        masks: bool [B, H, W], True inside the region.

    Returns:
        [B], NaN where a mask is empty or no attribution is positive.
    """
    maps, masks = _check_and_flatten(maps, masks)
    positive = maps.clamp_min(0).double()
    total = positive.sum(dim=1)
    defined = masks.any(dim=1) & (total > 0)
    inside = (positive * masks).sum(dim=1)
    return torch.where(defined, inside / total, torch.nan).float()


def upsample(
    attributions: torch.Tensor, grid_size: tuple[int, int], size: tuple[int, int], mode: str = "bilinear"
) -> torch.Tensor:
    """Patch maps [B, N] on the pixel grid [B, H, W], by "bilinear" or "nearest" interpolation."""
    rows, columns = grid_size
    if attributions.shape[-1] != rows * columns:
        raise ValueError(
            f"attributions have {attributions.shape[-1]} patches, grid_size {rows} x {columns} has {rows * columns}"
        )
    maps = attributions.float().unflatten(-1, grid_size)[:, None]
    return torch.nn.functional.interpolate(maps, size=size, mode=mode)[:, 0]


def _check_and_flatten(maps: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks maps and masks [B, H, W], and flattens the pixels of each image: [B, H * W] both."""
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ValueError(f"maps and masks must both be [B, H, W], got {tuple(maps.shape)} and {tuple(masks.shape)}")
    if masks.dtype != torch.bool:
        raise ValueError(f"masks must be boolean, got {masks.dtype}")
    if not maps.isfinite().all():
        bad = (~maps.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(f"maps are NaN or infinite for the images at {bad[:10]}")
    return maps.flatten(1).float(), masks.flatten(1)
