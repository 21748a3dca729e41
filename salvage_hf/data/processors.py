"""What an image processor does to a picture: its pixel values, their size, the part it keeps, and how to undo it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

#: left, top, right, bottom in pixels of the original picture
Box = tuple[int, int, int, int]


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


def processed_box(processor, width: int, height: int) -> Box:
    """Which part of a picture of width x height pixels an image processor shows the model; it may exceed the picture.

    Raises:
        ValueError: where the processor does anything but resize, to a fixed size or by the shortest edge, and crop the
            centre.
    """
    # The coordinates of a picture of the same shape must come out of the processor as the box says. A processor that
    # does not resize sees the size itself.
    scale = 128 / min(width, height) if getattr(processor, "do_resize", True) else 1
    for axis in (0, 1):
        probe = max(1, round(width * scale)), max(1, round(height * scale))
        ramp = (255 * (np.arange(probe[axis]) + 0.5) / probe[axis]).round().astype(np.uint8)
        picture = PILImage.fromarray(np.broadcast_to(ramp[:, None] if axis else ramp, probe[::-1]))
        ends = [PILImage.new("RGB", probe, colour) for colour in ("black", "white")]
        pixels, black, white = process(processor, [picture.convert("RGB"), *ends]).mean(dim=1)  # [H, W] each
        centre = black.shape[0] // 2, black.shape[1] // 2  # outside of the picture there may be padding
        seen = (pixels - black[centre]) / (white[centre] - black[centre])
        line = seen[:, seen.shape[1] // 2] if axis else seen[seen.shape[0] // 2]
        box = _box(processor, *probe)
        start, end = box[axis] / probe[axis], box[axis + 2] / probe[axis]
        expected = start + (torch.arange(len(line)) + 0.5) * (end - start) / len(line)
        # Resampling bends the ramp at the border, by up to three pixels; outside of the picture there is no ramp.
        checked = torch.zeros(len(line), dtype=torch.bool)
        margin = max(3, len(line) // 8)
        checked[margin : len(line) - margin] = True
        checked &= (expected > 0.02) & (expected < 0.98)
        if (line - expected)[checked].abs().gt(0.012).any():
            raise ValueError(_unknown_geometry(processor))
    left, top, right, bottom = _box(processor, width, height)
    return round(left), round(top), round(right), round(bottom)


def _box(processor, width: int, height: int) -> tuple[float, float, float, float]:
    """The box, if the processor only resizes and crops the centre."""
    size = dict(processor.size or {}) if getattr(processor, "do_resize", True) else {}
    if "shortest_edge" in size:
        edge, shortest = size["shortest_edge"], min(width, height)
        resized = int(edge * width / shortest), int(edge * height / shortest)
    elif "height" in size and "width" in size:
        resized = size["width"], size["height"]
    else:
        resized = width, height
    left, top, shown = 0, 0, resized
    if getattr(processor, "do_center_crop", False):
        if not processor.crop_size:
            raise ValueError(_unknown_geometry(processor))
        shown = processor.crop_size["width"], processor.crop_size["height"]
        left, top = (resized[0] - shown[0]) // 2, (resized[1] - shown[1]) // 2
    x, y = width / resized[0], height / resized[1]
    return left * x, top * y, (left + shown[0]) * x, (top + shown[1]) * y


def _unknown_geometry(processor) -> str:
    settings = {
        key: value
        for key, value in processor.to_dict().items()
        if value and any(k in key for k in ("size", "crop", "pad"))
    }
    return (
        f"which part of a picture the image processor {type(processor).__name__} shows the model is not known for its "
        f"settings {settings}; known are processors that resize to a height and width or by the shortest edge, and "
        "crop the centre"
    )


def to_pictures(pixel_values: torch.Tensor, processor) -> torch.Tensor:
    """What a model sees, as pictures: [B, C, H, W] -> uint8 [B, H, W, 3]. Undoes the processor's normalisation.

    Args:
        pixel_values: as `process` returns them, of one or three channels.
        processor: the image processor, which normalises every channel by itself.
    """
    ends = process(processor, [PILImage.new("RGB", (64, 64), colour) for colour in ("black", "white")])
    black, white = ends[:, :, ends.shape[2] // 2, ends.shape[3] // 2, None, None]  # [C, 1, 1] each
    greys = (pixel_values.float().cpu() - black) / (white - black)
    return (255 * greys.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
