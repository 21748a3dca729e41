"""Labelled images for training and evaluation: from the Hub or a folder, checked, and in the classifier's labels."""

import glob
import logging
import re
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image, load_dataset
from PIL import Image as PILImage
from PIL import ImageOps

from .masking import digest
from .subsets import KeyedGenerator

logger = logging.getLogger(__name__)

#: left, top, right, bottom in pixels of the original picture
Box = tuple[int, int, int, int]


def load_images(
    dataset_name: str | None = None,
    folder: str | None = None,
    split: str = "train",
    image_column: str = "image",
    on_bad_image: str = "refuse",
) -> Dataset:
    """A split of images whose files have all been opened once.

    Args:
        dataset_name: a data set on the Hub.
        folder: in its place, a folder with one sub-folder a class.
        split: the split of `dataset_name`.
        image_column: the column of the images.
        on_bad_image: "refuse" raises ValueError where an image cannot be read, "skip" leaves it out; both name it.
    """
    if (dataset_name is None) == (folder is None):
        raise ValueError(f"give either dataset_name or folder, got {dataset_name!r} and {folder!r}")
    if on_bad_image not in ("refuse", "skip"):
        raise ValueError(f"on_bad_image={on_bad_image!r} is neither 'refuse' nor 'skip'")
    if folder is not None:
        if not folder or not Path(folder).is_dir():  # "" would be the folder one is in
            raise ValueError(f"{folder!r} is not a folder")
        try:
            # With data_dir, datasets would sort files into splits by words in their names ("..._val_12.jpg").
            files = {"train": f"{glob.escape(str(Path(folder).resolve()))}/**"}
            # It would drop the label of a class that stands alone; hidden files it does not read.
            entries = [entry for entry in Path(folder).iterdir() if not entry.name.startswith(".")]
            drop_labels = False if [entry.is_dir() for entry in entries] == [True] else None
            dataset = load_dataset("imagefolder", data_files=files, split="train", drop_labels=drop_labels)
        except Exception as error:
            # datasets reports an empty folder by one of several exception types, depending on what it finds in it
            raise ValueError(f"no images found in {folder!r}: expected one sub-folder a class ({error})") from error
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
    except Exception as error:  # Pillow's decoders raise many types
        return {"unreadable": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"unreadable": ""}


def open_image(image: dict[str, Any] | str | Path) -> PILImage.Image:
    """An RGB picture from an undecoded value of a `datasets` image column, or from a file."""
    source = image if not isinstance(image, dict) else BytesIO(image["bytes"]) if image["bytes"] else image["path"]
    if source is None:
        raise ValueError("the image is missing")
    with PILImage.open(source) as opened:
        picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels from {values.min()} to {values.max()}; images of 8 or 16 bits are needed")
        picture = PILImage.fromarray((values // 257).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("floating-point pixels; images of 8 or 16 bits are needed")
    return picture.convert("RGB")


def content_digest(images: "ProcessedImages", indices: list[int]) -> str:
    """A digest of some images' files, and of their masks; one file in memory at a time."""
    files = []
    for index in indices:
        image = images.images[index][images.image_column]
        files.append(digest(image["bytes"] or Path(image["path"]).read_bytes()))
    masks = [digest(images.masks[index].read_bytes()) for index in indices] if images.masks else []
    return digest(*files, *masks)


def image_names(dataset: Dataset, image_column: str = "image") -> list[str]:
    """A name of every image for reports: "folder/file" where it has a path, else its number."""
    return [
        "/".join(Path(image["path"]).parts[-2:]) if image and image["path"] else str(index)
        for index, image in enumerate(dataset[image_column])
    ]


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


def match_labels(names: list[str], config) -> list[int]:
    """For each label of a data set, the label of the classifier.

    Names are compared without case, underscores, and the WordNet id before them ("n01440764_tench" is "tench").
    Classifiers whose labels have no names (LABEL_0, ...) keep the data set's order.

    Args:
        names: label names of the data set, in its order.
        config: the classifier's, with `id2label`. With one label, 1 is the data set's label of that name.

    Returns:
        One index per name.

    Raises:
        ValueError: where a name has no or several counterparts.
    """
    wanted = [_plain(config.id2label[index]) for index in range(len(config.id2label))]
    unnamed = all(re.fullmatch(r"label \d+", name) for name in wanted)
    num_classes = max(config.num_labels, 2)
    if unnamed and len(names) == num_classes:
        return list(range(num_classes))
    own = [_plain(name) for name in names]
    if config.num_labels == 1 and len(own) <= 2 and own.count(wanted[0]) == 1:
        return [int(name == wanted[0]) for name in own]
    matches = [[index for index, name in enumerate(wanted) if name == mine] for mine in own]
    wrong = [name for name, found in zip(names, matches, strict=True) if len(found) != 1]
    if wrong or len(set(own)) != len(own):
        raise ValueError(
            f"labels of the data set cannot be matched to the classifier's: {wrong or names} against "
            f"{list(config.id2label.values())}; rename them, or train with target='predicted', which needs no labels"
        )
    return [found[0] for found in matches]


def target_names(config) -> list[str]:
    """Names of the targets of a classifier; with one label 0 is "not" it."""
    names = [config.id2label[index] for index in range(len(config.id2label))]
    return [f"not {names[0]}", names[0]] if config.num_labels == 1 else names


def _plain(name: str) -> str:
    return re.sub(r"^n\d{8}[_ ]", "", str(name)).replace("_", " ").strip().lower()


class ProcessedImages(torch.utils.data.Dataset):
    """Images as a classifier takes them: {"pixel_values": [C, H, W], "ids": index, "labels": class} per item.

    Args:
        dataset: of `load_images`.
        processor: the classifier's image processor.
        config: the classifier's config, to translate labels; None leaves the labels out.
        image_column, label_column: names of the columns.
        num_views: items an image: itself, and random views of it (`random_view`). Item i is view i // I of image i % I,
            always the same one, so that features and classifier values of views can be kept like those of images.
        seed: seed of the random views.
        mask_dir: a folder with the annotated region of the image CLASS/NAME.* in CLASS/NAME.png, white where it is;
            items then have "masks", bool [H, W], of what the model sees.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor,
        config=None,
        image_column: str = "image",
        label_column: str = "label",
        num_views: int = 1,
        seed: int = 0,
        mask_dir: str | None = None,
    ):
        self.images, self.processor, self.image_column = dataset, processor, image_column
        self.num_views, self.seed = num_views, seed
        self.labels: list[int] | None = None
        if config is not None:
            if label_column not in dataset.column_names:
                raise ValueError(f"no column {label_column!r} in the data set, its columns are {dataset.column_names}")
            self.labels = _translated_labels(dataset, label_column, config)
        self.masks: list[Path] | None = None
        if mask_dir is not None:
            names = image_names(dataset, image_column)
            self.masks = [Path(mask_dir, name).with_suffix(".png") for name in names]
            if nameless := [name for name in names if name.isdigit()]:  # numbers, which leaving images out changes
                raise ValueError(f"mask_dir={mask_dir!r} needs images with file names, {len(nameless)} have none")
            images_of = Counter(self.masks)
            if shared := [str(path) for path, number in images_of.items() if number > 1]:
                raise ValueError(f"mask_dir={mask_dir!r}: several images would have the same mask: {shared[:5]}")
            missing = [str(path) for path in self.masks if not path.is_file()]
            if missing:
                raise ValueError(f"mask_dir={mask_dir!r} holds no mask of {len(missing)} images: {missing[:5]}")

    def __len__(self) -> int:
        return len(self.images) * self.num_views

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        of_image = [index % len(self.images) for index in indices]
        pictures = [open_image(image) for image in self.images[of_image][self.image_column]]
        if self.num_views > 1:
            draws = KeyedGenerator((self.seed, 0, 1), torch.tensor(indices)).uniform(4).tolist()
            pictures = [
                picture if index < len(self.images) else random_view(picture, *numbers)
                for picture, index, numbers in zip(pictures, indices, draws, strict=True)
            ]
        pixel_values = self.processor(pictures, return_tensors="pt")["pixel_values"]
        items = [{"pixel_values": p, "ids": i} for p, i in zip(pixel_values, indices, strict=True)]
        if self.labels is not None:
            for item, image in zip(items, of_image, strict=True):
                item["labels"] = self.labels[image]
        if self.masks is not None:
            for item, image in zip(items, of_image, strict=True):
                item["masks"] = self._mask(self.masks[image], *item["pixel_values"].shape[-2:])
        return items

    def _mask(self, path: Path, height: int, width: int) -> torch.Tensor:
        with PILImage.open(path) as opened:
            mask = opened.convert("L")
        values = np.asarray(mask)
        if 0 < values.max() <= 127:
            raise ValueError(
                f"mask {str(path)!r} has values {values.min()}..{values.max()}: "
                "a region is white (above 127), the rest black"
            )
        seen = mask.crop(processed_box(self.processor, *mask.size)).resize((width, height), PILImage.Resampling.NEAREST)
        return torch.from_numpy(np.asarray(seen) > 127)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]


def random_view(picture: PILImage.Image, size: float, x: float, y: float, mirror: float) -> PILImage.Image:
    """A part of a picture with its aspect ratio and half to all of its area, mirrored every second time.

    Args:
        picture: the picture.
        size, x, y, mirror: four numbers in 0..1 that choose area, place and whether it is mirrored.
    """
    side = (0.5 + 0.5 * size) ** 0.5
    width, height = max(1, round(side * picture.width)), max(1, round(side * picture.height))
    left, top = round(x * (picture.width - width)), round(y * (picture.height - height))
    part = picture.crop((left, top, left + width, top + height))
    return ImageOps.mirror(part) if mirror < 0.5 else part


def _translated_labels(dataset: Dataset, column: str, config) -> list[int]:
    feature, values = dataset.features[column], dataset[column]
    if isinstance(feature, ClassLabel):
        mapping = match_labels(feature.names, config)
        _check_range(values, len(mapping), column)
        own = target_names(config)
        named = [f"{name} -> {own[index]}" for name, index in zip(feature.names, mapping, strict=True)]
        logger.info("Labels of the data set and of the classifier: %s", ", ".join(named))
        return [mapping[value] for value in values]
    _check_range(values, max(config.num_labels, 2), column)
    return list(values)


def _check_range(values, num_classes: int, column: str) -> None:
    wrong = [value for value in values if not isinstance(value, int) or not 0 <= value < num_classes]
    if wrong:
        raise ValueError(f"labels in column {column!r} contain {wrong[0]!r}; the labels are 0..{num_classes - 1}")
