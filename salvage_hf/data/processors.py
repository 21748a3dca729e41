"""What an image processor does to a picture: the size it returns, the part it keeps, and how to undo it."""

import torch

#: left, top, right, bottom in pixels of the original picture
Box = tuple[int, int, int, int]


def processed_size(processor) -> tuple[int, int] | None:
    """(height, width) of the images that an image processor returns; None where it depends on the image."""
    size = processor.size or {}
    if getattr(processor, "do_center_crop", False):
        size = processor.crop_size
    if "height" in size and "width" in size:
        return size["height"], size["width"]
    return None


def processed_box(processor, width: int, height: int) -> Box:
    """Which part of a picture of width x height pixels an image processor shows the model."""
    size = dict(processor.size or {}) if getattr(processor, "do_resize", True) else {}
    if "shortest_edge" in size:
        scale = size["shortest_edge"] / min(width, height)
        resized = round(width * scale), round(height * scale)
    elif "height" in size:
        resized = size["width"], size["height"]
    else:
        resized = width, height
    left, top, shown = 0, 0, resized
    if getattr(processor, "do_center_crop", False):
        shown = processor.crop_size["width"], processor.crop_size["height"]
        left, top = (resized[0] - shown[0]) // 2, (resized[1] - shown[1]) // 2
    x, y = width / resized[0], height / resized[1]
    return round(left * x), round(top * y), round((left + shown[0]) * x), round((top + shown[1]) * y)


def to_pictures(pixel_values: torch.Tensor, processor) -> torch.Tensor:
    """What a model sees, as pictures: [B, 3, H, W] -> uint8 [B, H, W, 3]. Undoes the processor's normalisation."""
    pixels = pixel_values.float().cpu()
    if processor.do_normalize:
        mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    return (255 * pixels.clamp(0, 1)).round().byte().permute(0, 2, 3, 1)
