"""Images from the Hub or a folder; every file is opened once, so that broken ones show before any work begins."""

import glob
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, load_dataset
from PIL import Image as PILImage
from PIL import ImageOps

logger = logging.getLogger(__name__)


def load_images(
    dataset_name: str | None = None,
    folder: str | None = None,
    split: str = "train",
    image_column: str = "image",
    on_bad_image: str = "refuse",
) -> Dataset:
    """Loads a split of images, undecoded, after it has opened every file once.

    Args:
        dataset_name: a data set on the Hub.
        folder: in its place, a folder with one sub-folder per class.
        split: the split of `dataset_name`.
        image_column: the column of the images.
        on_bad_image: "refuse" raises ValueError where an image cannot be read, "skip" leaves it out; both name it.
    """
    if (dataset_name is None) == (folder is None):
        raise ValueError(f"give either dataset_name or folder, got {dataset_name!r} and {folder!r}")
    if on_bad_image not in ("refuse", "skip"):
        raise ValueError(f"on_bad_image={on_bad_image!r} is neither 'refuse' nor 'skip'")
    if folder is not None:
        if not folder or not Path(folder).is_dir():  # "" would mean the working directory
            raise ValueError(f"{folder!r} is not a folder")
        try:
            # With data_dir, datasets would sort files into splits by words in their names ("..._val_12.jpg").
            files = {"train": f"{glob.escape(str(Path(folder).resolve()))}/**"}
            # With a single class, `datasets` would drop the label. Hidden files do not count: it ignores them.
            entries = [entry for entry in Path(folder).iterdir() if not entry.name.startswith(".")]
            drop_labels = False if [entry.is_dir() for entry in entries] == [True] else None
            dataset = load_dataset("imagefolder", data_files=files, split="train", drop_labels=drop_labels)
        except Exception as error:
            # `datasets` raises several types of exception for a folder without images
            raise ValueError(f"no images found in {folder!r}: expected one sub-folder per class ({error})") from error
    else:
        dataset = load_dataset(dataset_name, split=split)
    if image_column not in dataset.column_names:
        raise ValueError(f"no column {image_column!r} in the data set, its columns are {dataset.column_names}")
    if len(dataset) == 0:
        raise ValueError(f"the data set {dataset_name or folder!r} has no images")
    dataset = dataset.cast_column(image_column, Image(decode=False))
    broken = dataset.map(
        _why_unreadable, fn_kwargs={"column": image_column}, remove_columns=dataset.column_names, desc="Checking images"
    )
    bad = {index: reason for index, reason in enumerate(broken["unreadable"]) if reason}
    if bad:
        all_names = image_names(dataset, image_column)
        names = [f"{all_names[index]} ({reason})" for index, reason in bad.items()]
        message = f"{len(bad)} of {len(dataset)} images cannot be read: {'; '.join(names[:20])}"
        if on_bad_image == "refuse":
            raise ValueError(f"{message}. Remove them, or leave them out with on_bad_image='skip'.")
        logger.warning("%s. Left out.", message)
        dataset = dataset.select([i for i in range(len(dataset)) if i not in bad])
        if len(dataset) == 0:
            raise ValueError(f"the data set {dataset_name or folder!r} has no readable image")
    return dataset


def _why_unreadable(example: dict, column: str) -> dict[str, str]:
    try:
        open_image(example[column])
    except Exception as error:  # Pillow raises many types of error
        return {"unreadable": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"unreadable": ""}


def open_image(image: dict[str, Any] | str | Path) -> PILImage.Image:
    """An RGB picture from an undecoded value of a `datasets` image column, or from a file."""
    source = image if not isinstance(image, dict) else BytesIO(image["bytes"]) if image["bytes"] else image["path"]
    if source is None:
        raise ValueError("the image is missing")
    with PILImage.open(source) as opened:
        picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip at 255
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels from {values.min()} to {values.max()}; images of 8 or 16 bits are needed")
        picture = PILImage.fromarray((values // 257).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("floating-point pixels; images of 8 or 16 bits are needed")
    return picture.convert("RGB")


def image_names(dataset: Dataset, image_column: str = "image") -> list[str]:
    """A name for every image: "folder/file" where it has a path, otherwise its index."""
    return [
        "/".join(Path(image["path"]).parts[-2:]) if image and image["path"] else str(index)
        for index, image in enumerate(dataset[image_column])
    ]
