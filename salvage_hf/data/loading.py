"""Images from the Hub or a folder; every file is opened once, so that broken ones show before any work begins."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import ClassLabel, Dataset, Features, Image, concatenate_datasets
from tqdm.auto import tqdm

from ..arguments import ImageArguments
from .folders import find_images, listed
from .labels import encode_labels
from .pictures import check_pixel_range, open_image, why_unreadable
from .sources import Source

__all__ = ["image_name", "image_names", "load_images", "load_parts", "open_image"]

logger = logging.getLogger(__name__)

#: How many images are opened at a time while they are checked; each may take some 700 MB for a moment.
CHECK_THREADS = 4


def load_images(
    source: Source | str | None = None,
    folder: str | None = None,
    split: str = "train",
    image_column: str = "image",
    on_bad_image: str = "refuse",
    pixel_range: Sequence[float] | None = None,
    label_column: str = "label",
    max_samples: int | None = None,
    position_column: str | None = None,
) -> Dataset:
    """Loads a split of images, undecoded, after it has opened every file once.

    Processes that belong together (`accelerate launch`) must all call this: the first one opens the files for all.

    Args:
        source: a data set, or its name.
        folder: in its place, a folder with one sub-folder per class (`find_images` has the rules).
        split: the split of `source`.
        image_column: the column of the images.
        on_bad_image: "refuse" raises ValueError where an image cannot be read, "skip" leaves it out; both name it.
        pixel_range: the range of the values of images with more than 8 bits, as in `open_image`.
        label_column: the column of the labels; texts in it become class labels, sorted by name.
        max_samples: how many images are taken of a data set that is streamed; others are loaded whole.
        position_column: a column to add, of the positions that images have before unreadable ones are left out.

    Returns:
        The images as dicts of "bytes" and "path", with the other columns of the data set. A folder gives the columns
        "image" and "label", sorted by path; "image" alone where it has no sub-folders.

    Raises:
        ValueError: where an argument is wrong, the data set cannot be loaded, or an image cannot be read.
    """
    source = Source(source) if isinstance(source, str) else source
    name = None if source is None else source.name
    if (source is None) == (folder is None):
        raise ValueError(f"give either dataset_name or folder, got {name!r} and {folder!r}")
    if on_bad_image not in ("refuse", "skip"):
        raise ValueError(f"on_bad_image={on_bad_image!r} is neither 'refuse' nor 'skip'")
    check_pixel_range(pixel_range)
    processes = PartialState()
    with processes.main_process_first():  # it downloads, the others find what it has downloaded
        dataset = _from_folder(str(folder)) if source is None else source.load(split, max_samples)
    shown = f"data set {name or folder!r}"
    dataset = _with_undecoded_images(dataset, image_column, label_column, shown, position_column)
    checked = [_unreadable(dataset, image_column, pixel_range) if processes.is_main_process else {}]
    bad = broadcast_object_list(checked)[0]
    return _without(bad, dataset, on_bad_image, shown) if bad else dataset


def load_parts(
    source: Source,
    split: str,
    size: int,
    wanted: Callable[[int], bool],
    position_column: str,
    image_column: str = "image",
    on_bad_image: str = "refuse",
    pixel_range: Sequence[float] | None = None,
    label_column: str = "label",
    max_samples: int | None = None,
) -> Iterator[tuple[int, Dataset]]:
    """A streamed split in parts of `size` images, of which one is in memory at a time: (its number, its images).

    The images are those of `load_images`, whose arguments the others are, checked part by part. A text among the labels
    becomes a class label among those of its part.

    Args:
        source: a data set that `datasets` can stream.
        split: its split.
        size: images per part; the last part may have fewer.
        wanted: number of a part -> whether it is returned; the images of others are passed over.
        position_column: a column to add, of the positions of the images in the stream.

    Raises:
        ValueError: as in `load_images`.
    """
    check_pixel_range(pixel_range)
    rows, features = source.stream(split, max_samples), source.features(split)
    shown = f"data set {source.name!r}"
    for number in itertools.count():
        taken = itertools.islice(rows, size)
        if not wanted(number):
            if sum(1 for _ in taken) < size:
                return
            continue
        if not (part := list(taken)):
            if number == 0:
                raise ValueError(f"the {shown} has no images")
            return
        dataset = Dataset.from_list(part, features=features)
        dataset = _with_undecoded_images(dataset, image_column, label_column, shown, position_column, number * size)
        bad = _unreadable(dataset, image_column, pixel_range, show=False)
        yield number, _without(bad, dataset, on_bad_image, shown) if bad else dataset


def _with_undecoded_images(
    dataset: Dataset, image_column: str, label_column: str, shown: str, position_column: str | None, start: int = 0
) -> Dataset:
    """A data set with images as bytes and paths, class labels in place of texts, and positions from `start` on."""
    dataset = encode_labels(dataset, label_column)
    if image_column not in dataset.column_names:
        raise ValueError(f"no column {image_column!r} in the data set, its columns are {dataset.column_names}")
    if len(dataset) == 0:
        raise ValueError(f"the {shown} has no images")
    try:
        dataset = dataset.cast_column(image_column, Image(decode=False))
    except Exception as error:  # `datasets` and pyarrow raise several types of exception
        feature = dataset.features[image_column]
        raise ValueError(f"column {image_column!r} of the {shown} holds no images, but {feature}") from error
    if position_column is not None:
        positions = Dataset.from_dict({position_column: list(range(start, start + len(dataset)))})
        dataset = concatenate_datasets([dataset, positions], axis=1)
    return dataset


def _without(bad: dict[int, str], dataset: Dataset, on_bad_image: str, shown: str) -> Dataset:
    """A data set without the images that cannot be read (index -> name and reason), if they may be left out."""
    message = f"{len(bad)} of {len(dataset)} images cannot be read: {listed(bad.values(), separator='; ')}"
    if on_bad_image == "refuse":
        raise ValueError(f"{message}. Remove them, or leave them out with on_bad_image='skip'.")
    logger.warning("%s. Left out.", message)
    dataset = dataset.select([index for index in range(len(dataset)) if index not in bad])
    if len(dataset) == 0:
        raise ValueError(f"the {shown} has no readable image")
    return dataset


def reading_options(args: ImageArguments, max_samples: int | None) -> dict[str, Any]:
    """The options of `load_images` that the arguments give; the number is for data sets that are streamed."""
    return {
        "image_column": args.image_column_name,
        "on_bad_image": args.on_bad_image,
        "pixel_range": args.pixel_range,
        "label_column": args.label_column_name,
        "max_samples": max_samples,
    }


def _from_folder(folder: str) -> Dataset:
    if not folder or not Path(folder).is_dir():  # "" would mean the working directory
        raise ValueError(f"{folder!r} is not a folder")
    paths, classes = find_images(folder)
    columns: dict[str, list[Any]] = {"image": paths}
    features = Features({"image": Image(decode=False)})
    if classes is not None:
        features["label"] = ClassLabel(names=sorted(set(classes)))
        columns["label"] = classes
    return Dataset.from_dict(columns, features=features)


def _unreadable(
    dataset: Dataset, column: str, pixel_range: Sequence[float] | None, show: bool = True
) -> dict[int, str]:
    """The images that cannot be read: index -> name and reason. Nothing is kept, because files may change or be mended.

    Pillow decodes outside of Python's lock, so that threads suffice.
    """

    bad = {}
    dataset = dataset.select_columns(column)  # `datasets` would decode other columns of images, in any format
    bar = tqdm(desc="Checking images", total=len(dataset), disable=not show)
    with ThreadPoolExecutor(CHECK_THREADS) as threads, bar:
        for start in range(0, len(dataset), 64):
            images = dataset[start : start + 64][column]
            reasons = threads.map(lambda image: why_unreadable(image, pixel_range), images)
            for index, (image, reason) in enumerate(zip(images, reasons, strict=True), start):
                if reason:
                    bad[index] = f"{image_name(image, index)} ({reason})"
                bar.update()
    return bad


def image_name(image: dict[str, Any] | None, index: int) -> str:
    """The name of an image in messages and results: "folder/file" where it has a path, otherwise its index."""
    return "/".join(Path(image["path"]).parts[-2:]) if image and image["path"] else str(index)


def image_names(dataset: Dataset, image_column: str = "image") -> list[str]:
    """The names of all images, as `image_name` gives them."""
    return [image_name(image, index) for index, image in enumerate(dataset[image_column])]
