"""Checks what users give to the metrics, and converts it for the computation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .. import localization
from ..tensors import described, is_dense, reals


def check_one_per_image(name: str, values: Any, num_images: int) -> None:
    """Raises ValueError where an argument is no tensor, array or list with one item per image."""
    if isinstance(values, (torch.Tensor, np.ndarray)):
        has_items = values.ndim > 0 and (isinstance(values, np.ndarray) or is_dense(values))
    else:
        has_items = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
    if not has_items:
        raise ValueError(f"{name} must be a tensor, an array or a list, one item per image, got {described(values)}")
    if len(values) != num_images:
        raise ValueError(f"{name}: {len(values)} items for {num_images} predictions; one per image is needed")


def patch_maps(predictions: list) -> torch.Tensor:
    """Nested lists [B][N] -> float64 [B, N]; raises ValueError where lengths differ, as in batches added one by one."""
    lengths = sorted({len(prediction) for prediction in predictions})
    if len(lengths) > 1:
        raise ValueError(f"predictions have different numbers of patches: {lengths}")
    return torch.tensor(predictions, dtype=torch.float64)


def region_maps(predictions: Any) -> list[np.ndarray]:
    """Patch maps [B, N] or pixel maps [B, H, W] -> one float64 array per image; in a list, sizes may differ.

    Raises:
        ValueError: where they are something else, empty, NaN or infinite.
    """
    if not isinstance(predictions, (list, tuple)) or not predictions:
        return list(reals("predictions", predictions, "B N | B H W").cpu().numpy())
    maps = [
        reals(f"predictions[{index}]", prediction, "N | H W").cpu().numpy()
        for index, prediction in enumerate(predictions)
    ]
    if len({values.ndim for values in maps}) > 1:
        raise ValueError("predictions must be all patch maps [N] or all pixel maps [H, W], got both")
    return maps


def pixel_map(prediction: list, mask: torch.Tensor, grid_size: tuple[int, int] | None, upsampling: str) -> torch.Tensor:
    """A patch map [N] or pixel map [H, W], brought to the size of its mask, bool [H, W]: float64 [H, W]."""
    values = torch.tensor(prediction, dtype=torch.float64)
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
    height, width = mask.shape
    return localization.upsample(values[None], grid_size, (height, width), upsampling)[0]


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
