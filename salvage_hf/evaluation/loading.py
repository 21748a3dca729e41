"""What is compared, loaded from the arguments that scripts have in common: the images and the methods."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel

from .. import attribution_methods
from ..arguments import ImageArguments
from ..attribution_methods import Method
from ..attribution_methods.trained import explainer_options
from ..data.images import ProcessedImages
from ..data.loading import image_names, load_images, reading_options
from ..data.registry import known_dataset
from ..data.sources import Source, validation_split
from ..files import fingerprint
from ..masking import MaskedClassifier, load_classifier_of
from ..pretrained import load_config, load_model
from .arguments import SAMPLING, MethodArguments, explainer_folders


@dataclass(frozen=True)
class LoadedImages:
    """The images of a data set, and which of them are explained.

    Args:
        images: all images of the data set.
        labels: their labels, numbered as the classifier does.
        names: their names.
        chosen: the positions of those that are explained, `max_eval_samples` of them at random.
    """

    images: ProcessedImages
    labels: list[int]
    names: list[str]
    chosen: list[int]


def load_classifier(args: MethodArguments, mixed_precision: str = "no") -> MaskedClassifier:
    """The classifier; its patches are hidden as the arguments say, else as for the first of the explainers."""
    explainer = next(iter(explainer_folders(args.explainers).values()), None)
    config = None if explainer is None else load_config(explainer)
    return load_classifier_of(
        config, args.model_name_or_path, args.masking, args.patch_size, mixed_precision=mixed_precision
    )


def load_labelled_images(
    args: ImageArguments, v: MaskedClassifier, seed: int, mask_dir: str | None = None, mask_column: str | None = None
) -> LoadedImages:
    """Reads the images that the arguments name, with the annotated regions where there are some.

    Args:
        args: which images.
        v: the classifier.
        seed: of the choice of `max_eval_samples` among them.
        mask_dir, mask_column: as in `ProcessedImages`.

    Raises:
        ValueError: where the data set has no split that was named, nor 'validation' or 'test'.
    """
    source = Source.of(args)
    split = None if source is None else compared_split(args, source)
    dataset = load_images(source, args.validation_dir, split or "", **reading_options(args, args.max_eval_samples))
    known = known_dataset(args.dataset_name)
    images = ProcessedImages(
        dataset,
        v.processor,
        v.config,
        args.image_column_name,
        args.label_column_name,
        mask_dir=mask_dir,
        mask_column=mask_column,
        region_values=known.region_values if known and mask_column == known.mask_column else None,
        pixel_range=args.pixel_range,
    )
    assert images.labels is not None  # `ProcessedImages` was given the config
    names = image_names(dataset, args.image_column_name)
    return LoadedImages(images, images.labels, names, chosen_images(len(images), args.max_eval_samples, seed))


def compared_split(args: ImageArguments, source: Source) -> str:
    """The split that is explained: the one that the arguments name, otherwise 'validation' or 'test'."""
    split = validation_split(args, source, ("validation", "test"), required=True)
    assert split is not None  # it is required
    return split


def chosen_images(number: int, max_samples: int | None, seed: int) -> list[int]:
    """The positions of `max_samples` of so many images, at random and in random order; of all when None."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:max_samples].tolist()


@dataclass(frozen=True)
class LoadedMethods:
    """The methods that are compared.

    Args:
        methods: name -> method.
        made_with: name -> what the method's maps depend on besides classifier and images, to recognise results of
            other options or other weights.
        explainers: objective -> trained explainer.
        weights: objective -> fingerprint of the explainer.
    """

    methods: dict[str, Method]
    made_with: dict[str, dict[str, Any]]
    explainers: dict[str, Any]
    weights: dict[str, str]


def load_methods(args: MethodArguments, v: MaskedClassifier) -> LoadedMethods:
    """Loads explainers and methods; raises ValueError where one does not fit, before anything is measured."""
    folders = explainer_folders(args.explainers)
    explainers = {name: load_model(AutoModel, folder, dtype=torch.float32) for name, folder in folders.items()}
    weights = {name: fingerprint(explainer) for name, explainer in explainers.items()}
    made_with: dict[str, dict[str, Any]] = {}
    methods = {}
    for name in args.methods:
        objective = attribution_methods.REGISTRY[name].objective
        made_with[name] = {"budget": args.sampling_budget} if name in SAMPLING else {}
        explainer = explainers[objective] if objective else None
        methods[name] = attribution_methods.load(
            name, v, args.seed, **made_with[name], **explainer_options(explainer, args.allow_other_classifier)
        )
        if objective:
            made_with[name]["weights"] = weights[objective]
    return LoadedMethods(methods, made_with, explainers, weights)
