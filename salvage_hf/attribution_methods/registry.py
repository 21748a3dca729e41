"""The registry of attribution methods and what they share."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..masking import MaskedClassifier
from ..targets import check_targets

#: (pixel_values [B, C, H, W], targets int64 [B]) -> attributions float32 [B, N]; on the classifier's device.
Method = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class MethodInfo:
    """What is known about a method; command line, tables and tests are made from it."""

    name: str
    title: str
    needs: str  # "nothing", "attention", "activations", "gradients", "masked forwards" or "explainer"
    source: str
    build: Callable[..., Method]

    @property
    def takes_budget(self) -> bool:
        """Whether it has an option `budget`, the number of subsets per image that it asks the classifier about."""
        return "budget" in inspect.signature(self.build).parameters


REGISTRY: dict[str, MethodInfo] = {}


def register(name: str, *, title: str, needs: str, source: str):
    """Decorator: adds a function `(classifier, seed, **options) -> Method` to the registry."""

    def add(build):
        REGISTRY[name] = MethodInfo(name, title, needs, source, build)
        return build

    return add


def load(name: str, classifier: MaskedClassifier, seed: int = 0, **options: Any) -> Method:
    """A method for one classifier.

    Args:
        name: a key of `REGISTRY`.
        classifier: the classifier to explain.
        seed: seed of the method's random numbers; most methods draw none and ignore it.
        options: further arguments of the method (`explainer=` for "salvage", `budget=` for "rise").

    Returns:
        The method; it raises ValueError where `targets` are not one class per image, or images are not whole patches.
    """
    if name not in REGISTRY:
        raise ValueError(f"no attribution method {name!r}; there are {', '.join(sorted(REGISTRY))}")
    method = REGISTRY[name].build(classifier=classifier, seed=seed, **options)

    def attribute(pixel_values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if targets.shape != pixel_values.shape[:1]:
            raise ValueError(
                f"targets must be one class per image, [{len(pixel_values)}], got shape {list(targets.shape)}"
            )
        check_targets(targets, classifier.num_labels)
        classifier.patch_grid(pixel_values)  # raises where a method would ignore pixels beyond the last whole patch
        return method(pixel_values.to(classifier.device), targets.to(classifier.device)).float()

    return attribute


def patch_sums(pixel_map: torch.Tensor, patch_size: int) -> torch.Tensor:
    """A map of pixels summed over each patch: [B, H, W] -> [B, N]."""
    rows, columns = pixel_map.shape[-2] // patch_size, pixel_map.shape[-1] // patch_size
    return pixel_map.reshape(len(pixel_map), rows, patch_size, columns, patch_size).sum(dim=(2, 4)).flatten(1)
