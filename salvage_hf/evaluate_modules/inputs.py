"""Checks what users give to the metrics, and converts it for the computation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .. import localization
from ..masking import MaskedClassifier, ValueFunction, as_value_function
from ..targets import check_targets


def check_one_per_image(num_images: int, **arguments: Any) -> None:
    """Raises ValueError where an argument that is not None does not hold one item per image."""
    for name, values in arguments.items():
        if values is not None and len(values) != num_images:
            raise ValueError(f"{name}: {len(values)} items for {num_images} predictions; one per image is needed")


def patch_maps(predictions: list) -> torch.Tensor:
    """Nested lists [B][N] -> float32 [B, N]; raises ValueError where lengths differ or values are not finite."""
    lengths = sorted({len(prediction) for prediction in predictions})
    if len(lengths) > 1:
        raise ValueError(f"predictions have different numbers of patches: {lengths}")
    maps = torch.from_numpy(np.array(predictions, dtype=np.float32))
    # The scores check this too, but per batch. Here the check comes before any forward, and images are counted over all
    # batches.
    bad = (~maps.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"predictions are NaN or infinite for the images at {bad[:10]}")
    return maps


def pixel_map(prediction: list, mask: torch.Tensor, grid_size: tuple[int, int] | None, upsampling: str) -> torch.Tensor:
    """A patch map [N] or pixel map [H, W], brought to the size of its mask, bool [H, W]."""
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"masks must be boolean [H, W] for each image, got {mask.dtype} {tuple(mask.shape)}")
    values = torch.from_numpy(np.array(prediction, dtype=np.float32))
    if values.ndim == 2:
        if values.shape != mask.shape:
            raise ValueError(
                f"the map has {values.shape[0]} x {values.shape[1]} pixels, its mask {mask.shape[0]} x "
                f"{mask.shape[1]}; give patch maps as [B, N] with grid_size"
            )
        return values
    if grid_size is None:
        side = round(len(values) ** 0.5)
        if side**2 != len(values):
            raise ValueError(f"grid_size=(rows, columns) is needed: {len(values)} patches make no square")
        grid_size = (side, side)
    rows, columns = grid_size
    height, width = mask.shape
    return localization.upsample(values[None], (rows, columns), (height, width), upsampling)[0]


def stacked(images: Any) -> torch.Tensor:
    """Images [B, C, H, W] from a tensor, an array, or a list of either."""
    if isinstance(images, (list, tuple)):
        return torch.stack([torch.as_tensor(image) for image in images])
    return torch.as_tensor(images)


def value_function(model: Any, targets: torch.Tensor) -> MaskedClassifier | ValueFunction:
    """v(S) from what a user gives as `model`; raises ValueError where targets are not among its classes.

    A function shows its number of classes only in its answers, so these are checked instead.
    """
    v = as_value_function(model)
    if isinstance(v, MaskedClassifier):
        check_targets(targets, v.num_labels)
        return v
    return _with_checked_answers(v, targets)


def _with_checked_answers(function: ValueFunction, targets: torch.Tensor) -> Callable[..., torch.Tensor]:
    def v(pixel_values: torch.Tensor, subsets: torch.Tensor) -> torch.Tensor:
        probabilities = function(pixel_values, subsets)
        if probabilities.ndim != 3 or probabilities.shape[:2] != subsets.shape[:2]:
            raise ValueError(
                f"model must return probabilities [B, M, K] with B, M = {tuple(subsets.shape[:2])}, "
                f"got shape {tuple(probabilities.shape)}"
            )
        check_targets(targets, probabilities.shape[-1])
        return probabilities

    return v


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """Puts a network into evaluation mode, and each of its parts back into its own mode afterwards."""
    modes = {part: part.training for part in model.modules()} if isinstance(model, torch.nn.Module) else {}
    if modes:
        model.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
