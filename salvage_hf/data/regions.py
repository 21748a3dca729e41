"""Annotated regions: one black and white picture per image, for RRA and RMA."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage

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


def read_mask(path: Path, processor, height: int, width: int) -> torch.Tensor:
    """The region within the part of a picture that a processor keeps: bool [height, width], True where white."""
    with PILImage.open(path) as opened:
        mask = opened.convert("L")
    values = np.asarray(mask)
    if 0 < values.max() <= 127:
        raise ValueError(
            f"mask {str(path)!r} has values {values.min()}..{values.max()}: "
            "a region is white (above 127), the rest black"
        )
    seen = mask.crop(processed_box(processor, *mask.size)).resize((width, height), PILImage.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(seen) > 127)
