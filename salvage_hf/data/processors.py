"""What an image processor does to a picture: its pixel values, their size, and how to undo it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage


def process(processor, pictures: Iterable[PILImage.Image], **options: Any) -> torch.Tensor:
    """The pixel values of pictures, as a model takes them.

    A processor whose `image_mean` has one number belongs to a model of one channel, which gets grey pictures.

    Args:
        processor: an image processor of transformers.
        pictures: RGB pictures; only one of them is in memory at a time if this is a generator.
        options: in place of the processor's own, for example `do_normalize=False`.

    Returns:
        float32 [B, C, H, W], if the processor gives all pictures the same size.

    Raises:
        ValueError: where the processor fails, or gives pixel values that are NaN or infinite (a standard deviation of 0
            does).
    """
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    mode = "L" if isinstance(mean, (list, tuple)) and len(mean) == 1 else "RGB"
    if mode == "L" and getattr(processor, "do_convert_rgb", False):
        options["do_convert_rgb"] = False
    name = type(processor).__name__
    processed: list[torch.Tensor] = []
    for picture in pictures:
        given = picture if picture.mode == mode else picture.convert(mode)
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused below
                pixels = processor(given, return_tensors="pt", **options)["pixel_values"].float()
        except Exception as error:  # a wrong setting may raise anything
            raise ValueError(f"the image processor {name} fails: {type(error).__name__}: {error}") from error
        if pixels.ndim != 4 or len(pixels) != 1:
            raise ValueError(f"the image processor {name} gives {list(pixels.shape)} for an image, not [1, C, H, W]")
        if not pixels.isfinite().all():
            raise ValueError(
                f"the image processor {name} gives pixel values that are NaN or infinite: check its image_std {std} "
                f"and its rescale_factor {getattr(processor, 'rescale_factor', None)}"
            )
        processed.append(pixels)
    return torch.cat(processed)


def processed_size(processor) -> tuple[int, int] | None:
    """(height, width) of the images that an image processor returns; None where it depends on the image."""
    wide, tall = (process(processor, [PILImage.new("RGB", size)]) for size in ((96, 64), (64, 96)))
    return (wide.shape[-2], wide.shape[-1]) if wide.shape == tall.shape else None


def to_pictures(pixel_values: torch.Tensor, processor) -> torch.Tensor:
    """What a model sees, as pictures: [B, C, H, W] -> uint8 [B, H, W, 3]. Undoes the processor's normalisation.

    Args:
        pixel_values: as `process` returns them, of one or three channels.
        processor: the image processor, which normalises every channel by itself.
    """
    black, white = process(processor, [PILImage.new("RGB", (64, 64), colour) for colour in ("black", "white")])
    contrast = (white - black).abs().mean(dim=0)
    inside = contrast > contrast.max() / 2  # outside there is padding
    black, white = (ends[:, inside].median(dim=1).values[:, None, None] for ends in (black, white))  # [C, 1, 1] each
    greys = (pixel_values.float().cpu() - black) / (white - black)
    return (255 * greys.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
