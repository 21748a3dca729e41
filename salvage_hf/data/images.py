"""Images as a classifier takes them, with their labels, random views and annotated regions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image as PILImage
from PIL import ImageOps

from ..files import digest
from ..keyed_random import KeyedGenerator
from ..modeling import process
from .labels import translated_labels
from .loading import image_name
from .pictures import open_image
from .regions import read_mask, stored_masks


class ProcessedImages(torch.utils.data.Dataset):
    """Images as a classifier takes them: an item is {"pixel_values": [C, H, W], "ids": index, ...}.

    Items also have "labels" (the classifier's) if `config` is given, and "masks" (bool [H, W]) if `mask_dir` or
    `mask_column` is given.

    Args:
        dataset: what `load_images` returned.
        processor: the classifier's image processor.
        config: the classifier's config, to translate labels; None leaves the labels out.
        image_column, label_column: names of the columns.
        num_views: items per image: the image itself, then random views of it (`random_view`). Item i is view i // I of
            image i % I, where I is the number of images; it is the same view each time, so its features can be kept.
        seed: seed of the random views.
        mask_dir: a folder in which CLASS/NAME.png shows the annotated region of the image CLASS/NAME.* (`read_mask`).
        mask_column: in its place, the column of `dataset` with these pictures.
        region_values: what the values of masks mean, as in `read_mask`.
        pixel_range: the range of the values of images with more than 8 bits, as in `open_image`.

    Raises:
        ValueError: for an item whose image or mask cannot be read or processed; the message names it.
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
        mask_column: str | None = None,
        region_values: Mapping[int, bool] | None = None,
        pixel_range: Sequence[float] | None = None,
    ):
        # Without its other columns, because `datasets` would decode those that hold images, in any format.
        self.images, self.processor, self.image_column = dataset.select_columns(image_column), processor, image_column
        self.pixel_range = pixel_range
        self.num_views, self.seed = num_views, seed
        self.labels = None if config is None else translated_labels(dataset, label_column, config)
        self.masks = stored_masks(dataset, image_column, mask_dir, mask_column)
        self.region_values = region_values

    def __len__(self) -> int:
        return len(self.images) * self.num_views

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        stored = self.images[[index % len(self.images) for index in indices]][self.image_column]
        draws: list[list[float]] = [[]] * len(indices)
        if self.num_views > 1:
            draws = KeyedGenerator("random views", self.seed, keys=torch.tensor(indices)).uniform(4).tolist()
        # One by one, because a batch of large photographs would not fit into memory.
        items = [self._item(*parts) for parts in zip(indices, stored, draws, strict=True)]
        if len(sizes := {tuple(item["pixel_values"].shape) for item in items}) > 1:
            raise ValueError(f"the image processor {type(self.processor).__name__} gives images of sizes {sizes}")
        return items

    def _item(self, index: int, stored: dict[str, Any], draws: list[float]) -> dict[str, Any]:
        number = index % len(self.images)
        name = image_name(stored, number)
        picture = open_image(stored, self.pixel_range, name)
        size = picture.size
        if index >= len(self.images):
            picture = random_view(picture, *draws)
        try:
            pixel_values = process(self.processor, [picture])[0]
        except ValueError as error:
            raise ValueError(f"image {name!r}: {error}") from error
        item = {"pixel_values": pixel_values, "ids": index}
        if self.labels is not None:
            item["labels"] = self.labels[number]
        if self.masks is not None:
            height, width = pixel_values.shape[-2:]
            mask, shown = self.masks[number]["mask"], (height, width)
            item["masks"] = read_mask(mask, self.processor, shown, size, name, self.region_values)
        return item

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def batch(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """The items at `indices`, stacked: "pixel_values" [B, C, H, W], "ids" int64 [B], and so on."""
        return torch.utils.data.default_collate(self.__getitems__(indices))


def random_view(picture: PILImage.Image, size: float, x: float, y: float, mirror: float) -> PILImage.Image:
    """A part of a picture with the same aspect ratio and half to all of its area, mirrored where `mirror` < 0.5.

    Args:
        picture: the picture.
        size, x, y, mirror: random numbers in 0..1 that choose the area, the place, and whether to mirror.
    """
    side = (0.5 + 0.5 * size) ** 0.5
    width, height = max(1, round(side * picture.width)), max(1, round(side * picture.height))
    left, top = round(x * (picture.width - width)), round(y * (picture.height - height))
    part = picture.crop((left, top, left + width, top + height))
    return ImageOps.mirror(part) if mirror < 0.5 else part


def content_digest(images: ProcessedImages, indices: list[int]) -> str:
    """A digest of the files of some images, of their masks and of the range of their values.

    One file is in memory at a time.
    """
    stored = [(images.images, images.image_column)]
    stored += [] if images.masks is None else [(images.masks, "mask")]
    files = []
    for column, name in stored:
        for index in indices:
            image = column[index][name]
            files.append(digest(image["bytes"] or Path(image["path"]).read_bytes()))
    ranges = [] if images.pixel_range is None else [str(tuple(images.pixel_range))]
    return digest(*files, *ranges)
