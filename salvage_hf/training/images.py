"""The images of a run: how they are split for training and validation, and what identifies them."""

from typing import Any

from accelerate import Accelerator
from datasets import Dataset

from ..data.cached_images import CachedImages
from ..data.images import ProcessedImages, content_digest
from ..data.loading import image_name, load_images, reading_options
from ..data.sources import Source, validation_split
from ..files import digest
from .arguments import LoopArguments


def load_splits(args: LoopArguments) -> tuple[Dataset, Dataset]:
    """Training and validation images, as the arguments say."""
    source = Source.of(args)
    options = reading_options(args, args.max_eval_samples)
    train = load_images(source, args.train_dir, args.train_split_name, **reading_options(args, args.max_train_samples))
    if args.validation_dir:
        validation = load_images(folder=args.validation_dir, **options)
    elif source is not None and (split := validation_split(args, source, ("validation",))) is not None:
        validation = load_images(source, split=split, **options)
    else:
        parts = train.train_test_split(test_size=args.train_val_split, seed=args.seed)
        train, validation = parts["train"], parts["test"]
    if args.max_train_samples and args.max_train_samples < len(train):
        train = train.shuffle(seed=args.seed).select(range(args.max_train_samples))
    if args.max_eval_samples and args.max_eval_samples < len(validation):
        # A fixed seed, so that runs with different seeds are compared on the same images.
        validation = validation.shuffle(seed=0).select(range(args.max_eval_samples))
    return train, validation


def processed_images(
    args: LoopArguments, accelerator: Accelerator, split: Dataset, processor: Any, config: Any, num_views: int = 1
) -> ProcessedImages:
    """The images of a split as the classifier takes them; with `cache_images` they are processed now, and kept.

    Arguments beside those of the run are as in `ProcessedImages`.
    """
    kind = CachedImages if args.cache_images else ProcessedImages
    columns = args.image_column_name, args.label_column_name
    images = kind(split, processor, config, *columns, num_views, args.seed, pixel_range=args.pixel_range)
    if isinstance(images, CachedImages):
        images.fill(accelerator.device, args.dataloader_num_workers, accelerator.is_main_process)
    return images


def content_of(images: ProcessedImages) -> str:
    """How many images there are, and a digest of their files and labels: they are read once more for it."""
    indices = list(range(len(images.images)))
    return f"{len(indices)} images, content {digest(content_digest(images, indices), repr(images.labels))}"


def name_of(images: ProcessedImages, index: int) -> str:
    """The name of the image that an item shows."""
    number = index % len(images.images)
    return image_name(images.images[number][images.image_column], number)
