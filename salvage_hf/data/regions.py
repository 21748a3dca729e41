"""Annotated regions: one black and white picture per image, for RRA and RMA."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage

from .pictures import DEEP_MODES, decode, printable, reason_of
from .processors import processed_box


def mask_paths(mask_dir: str, names: list[str]) -> list[Path]:
    """The mask file of every image: mask_dir/CLASS/NAME.png for the image "CLASS/NAME.*".

    Args:
        mask_dir: the folder of the masks.
        names: the images' names, as `image_names` returns them.

    Raises:
        ValueError: where an image has no file name, no mask, or the same mask as another one.
    """
    paths = [Path(mask_dir, name).with_suffix(".png") for name in names]
    if nameless := [name for name in names if name.isdigit()]:  # indices, which change when images are left out
        raise ValueError(f"mask_dir={mask_dir!r} needs images with file names, {len(nameless)} have none")
    if shared := [str(path) for path, number in Counter(paths).items() if number > 1]:
        raise ValueError(f"mask_dir={mask_dir!r}: several images would have the same mask: {shared[:5]}")
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(f"mask_dir={mask_dir!r} holds no mask of {len(missing)} images: {missing[:5]}")
    return paths


def read_mask(path: Path, processor, processed_size: tuple[int, int], picture_size: tuple[int, int]) -> torch.Tensor:
    """The region within the part of a picture that a processor keeps.

    In a grey mask the region is where it is not 0, and there it has one value: several could be a class each, a
    distance, or the share of a pixel that belongs to the region. In a mask with a palette of colours, as PASCAL VOC has
    them, values are numbers of objects: 0 is the background, 255 the border between objects, which belongs to none, and
    the region is the rest.

    Args:
        path: the mask, of the same size as the picture.
        processor: the image processor.
        processed_size: (height, width) of the processed picture.
        picture_size: (width, height) of the upright picture.

    Returns:
        bool [height, width], True in the region.

    Raises:
        ValueError: where the mask cannot be read, or not without doubt.
    """
    try:
        mask, _ = decode(path)
        region = _region(mask)
        if mask.size != picture_size:
            raise ValueError("its size is {} x {}, the upright picture's {} x {}".format(*mask.size, *picture_size))
    except Exception as error:  # Pillow raises many types of error
        raise ValueError(f"mask '{printable(path)}' cannot be used: {reason_of(error)}") from error
    seen = PILImage.fromarray(region).crop(processed_box(processor, *picture_size))
    return torch.from_numpy(np.array(seen.resize(processed_size[::-1], PILImage.Resampling.NEAREST)))


def _region(mask: PILImage.Image) -> np.ndarray:
    """Where a mask shows the region: bool [H, W]."""
    if mask.has_transparency_data and np.asarray(mask.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError("it is transparent in places; a region is white, the rest black")
    if mask.mode == "P":
        colours = np.array(mask.getpalette("RGB")).reshape(-1, 3)
        if (colours != colours[:, :1]).any():
            if colours[0].any():
                raise ValueError("its palette of colours does not begin with black, so that 0 is no background")
            numbers = np.asarray(mask)
            return (numbers != 0) & (numbers != 255)
    if mask.mode not in DEEP_MODES:
        channels = np.asarray(mask.convert("RGB"))
        if (channels != channels[..., :1]).any():
            raise ValueError("it has colours; a region is white, the rest black")
        values = channels[..., 0]
    else:
        values = np.asarray(mask)
    if (between := (values != 0) & (values != values.max())).any():
        raise ValueError(
            f"{between.mean():.1%} of its pixels are neither 0 nor its largest value, {values.max()}, but for example "
            f"{values[between][0]}; a region is white, the rest black"
        )
    return values != 0
