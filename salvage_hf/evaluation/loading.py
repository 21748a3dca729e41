"""What is compared, loaded from the arguments that scripts have in common: the images and the methods."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel

from .. import attribution_methods
from ..arguments import ImageArguments
from ..attribution_methods import Method
from ..data.images import ProcessedImages
from ..data.loading import image_names, load_images
from ..files import fingerprint
from ..masking import MaskedClassifier
from ..pretrained import load_model
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


def load_labelled_images(
    args: ImageArguments, split: str, v: MaskedClassifier, seed: int, mask_dir: str | None = None
) -> LoadedImages:
    """Reads the images that the arguments name, with the annotated regions in `mask_dir` where there are some.

    Args:
        args: which images.
        split: of a data set on the Hub.
        v: the classifier.
        seed: of the choice of images.
        mask_dir: as in `ProcessedImages`.
    """
    dataset = load_images(
        args.dataset_name,
        args.validation_dir,
        split,
        args.image_column_name,
        args.on_bad_image,
        args.pixel_range,
    )
    columns = args.image_column_name, args.label_column_name
    images = ProcessedImages(dataset, v.processor, v.config, *columns, mask_dir=mask_dir, pixel_range=args.pixel_range)
    assert images.labels is not None  # `ProcessedImages` was given the config
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    names = image_names(dataset, args.image_column_name)
    return LoadedImages(images, images.labels, names, shuffled[: args.max_eval_samples].tolist())


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
        options: dict[str, Any] = {"budget": args.sampling_budget} if name in SAMPLING else {}
        made_with[name] = dict(options)
        if objective := attribution_methods.REGISTRY[name].objective:
            made_with[name]["weights"] = weights[objective]
            options |= {
                "explainer": explainers[objective],
                "allow_other_classifier": args.allow_other_classifier,
            }
        methods[name] = attribution_methods.load(name, v, args.seed, **options)
    return LoadedMethods(methods, made_with, explainers, weights)
