"""Images as a classifier takes them, with their labels, random views and annotated regions."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image as PILImage
from PIL import ImageOps

from ..files import digest
from ..keyed_random import KeyedGenerator
from .labels import translated_labels
from .loading import image_names, open_image
from .regions import mask_paths, read_mask


class ProcessedImages(torch.utils.data.Dataset):
    """Images as a classifier takes them: an item is {"pixel_values": [C, H, W], "ids": index, ...}.

    Items also have "labels" (the classifier's) if `config` is given, and "masks" (bool [H, W]) if `mask_dir` is given.

    Args:
        dataset: what `load_images` returned.
        processor: the classifier's image processor.
        config: the classifier's config, to translate labels; None leaves the labels out.
        image_column, label_column: names of the columns.
        num_views: items per image: the image itself, then random views of it (`random_view`). Item i is view i // I of
            image i % I, where I is the number of images; it is the same view each time, so its features can be kept.
        seed: seed of the random views.
        mask_dir: a folder in which CLASS/NAME.png shows the annotated region of the image CLASS/NAME.* in white.
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
        self.labels = None if config is None else translated_labels(dataset, label_column, config)
        self.masks = None if mask_dir is None else mask_paths(mask_dir, image_names(dataset, image_column))

    def __len__(self) -> int:
        return len(self.images) * self.num_views

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        image_of_item = [index % len(self.images) for index in indices]
        pictures = [open_image(image) for image in self.images[image_of_item][self.image_column]]
        if self.num_views > 1:
            draws = KeyedGenerator("random views", self.seed, keys=torch.tensor(indices)).uniform(4).tolist()
            pictures = [
                picture if index < len(self.images) else random_view(picture, *numbers)
                for picture, index, numbers in zip(pictures, indices, draws, strict=True)
            ]
        pixel_values = self.processor(pictures, return_tensors="pt")["pixel_values"]
        items: list[dict[str, Any]] = []
        for pixels, index, image in zip(pixel_values, indices, image_of_item, strict=True):
            item = {"pixel_values": pixels, "ids": index}
            if self.labels is not None:
                item["labels"] = self.labels[image]
            if self.masks is not None:
                item["masks"] = read_mask(self.masks[image], self.processor, *pixels.shape[-2:])
            items.append(item)
        return items

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]


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
    """A digest of the files of some images and of their masks; one file is in memory at a time."""
    files = []
    for index in indices:
        image = images.images[index][images.image_column]
        files.append(digest(image["bytes"] or Path(image["path"]).read_bytes()))
    masks = [digest(images.masks[index].read_bytes()) for index in indices] if images.masks else []
    return digest(*files, *masks)
