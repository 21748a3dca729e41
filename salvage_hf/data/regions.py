"""Annotated regions: one black and white picture per image, for RRA and RMA."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from ..modeling import picture_geometry
from .loading import image_names
from .pictures import DEEP_MODES, decode, printable, reason_of, source_of


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


def stored_masks(dataset: Dataset, image_column: str, mask_dir: str | None, mask_column: str | None) -> Dataset | None:
    """The masks of all images, undecoded, in a column "mask"; None where neither a folder nor a column is named.

    Args:
        dataset: the images, in `image_column`.
        image_column: the column of the images, whose names are those of the masks in `mask_dir` (`mask_paths`).
        mask_dir: the folder of the masks.
        mask_column: in its place, the column of the masks.

    Raises:
        ValueError: where an image has no mask in the folder, or there is no column of pictures of this name.
    """
    if mask_dir is not None:
        paths = [str(path) for path in mask_paths(mask_dir, image_names(dataset, image_column))]
        return Dataset.from_dict({"mask": paths}, Features({"mask": Image(decode=False)}))
    if mask_column is None:
        return None
    if mask_column not in dataset.column_names:
        raise ValueError(f"no column {mask_column!r} of masks in the data set, its columns are {dataset.column_names}")
    if not isinstance(feature := dataset.features[mask_column], Image):
        raise ValueError(f"column {mask_column!r} holds no masks, but {feature}; masks are pictures")
    masks = dataset.select_columns(mask_column).cast_column(mask_column, Image(decode=False))
    return masks if mask_column == "mask" else masks.rename_column(mask_column, "mask")


def read_mask(
    mask: dict[str, Any] | Path,
    processor,
    processed_size: tuple[int, int],
    picture_size: tuple[int, int],
    image: str = "",
    region_values: Mapping[int, bool] | None = None,
) -> torch.Tensor:
    """The region within the part of a picture that a processor keeps; there is none in its padding.

    In a grey mask the region is where it is not 0, and there it has one value: several could be a class each, a
    distance, or the share of a pixel that belongs to the region. In a mask with a palette of colours, as PASCAL VOC has
    them, values are numbers of objects: 0 is the background, 255 the border between objects, which belongs to none, and
    the region is the rest.

    Args:
        mask: a file or an undecoded value of a column, of the same size as the picture.
        processor: the image processor.
        processed_size: (height, width) of the processed picture.
        picture_size: (width, height) of the upright picture.
        image: in messages, the name of the image, for masks without a file.
        region_values: value of a pixel -> whether it belongs to the region, in place of the rules above; a mask with
            other values is refused.

    Returns:
        bool [height, width], True in the region.

    Raises:
        ValueError: where the mask cannot be read, or not without doubt, or the processor does more than resize, crop
            and pad.
    """
    try:
        opened, _ = decode(source_of(mask))
        region = _region(opened) if region_values is None else _region_of_values(opened, region_values)
        if opened.size != picture_size:
            raise ValueError("its size is {} x {}, the upright picture's {} x {}".format(*opened.size, *picture_size))
    except Exception as error:  # Pillow raises many types of error
        path = mask["path"] if isinstance(mask, dict) and mask["bytes"] is None else mask
        shown = f"'{printable(path)}'" if isinstance(path, (str, Path)) else f"of image {image!r}"
        raise ValueError(f"mask {shown} cannot be used: {reason_of(error)}") from error
    return torch.from_numpy(picture_geometry(processor, *picture_size).shown(region, *processed_size))


def _region_of_values(mask: PILImage.Image, region_values: Mapping[int, bool]) -> np.ndarray:
    """Where the values of a mask are those of the region: bool [H, W]."""
    values = np.asarray(mask)
    if other := sorted(set(np.unique(values).tolist()) - set(region_values)):
        raise ValueError(f"it holds the value {other[0]}; values of this data set are {sorted(region_values)}")
    return np.isin(values, [value for value, inside in region_values.items() if inside])


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
