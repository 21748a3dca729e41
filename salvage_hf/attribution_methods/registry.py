"""The registry of attribution methods and what they share."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..keyed_random import checked_seed
from ..masking import MaskedClassifier
from ..targets import check_targets
from ..tensors import one_of, whole_numbers

#: (pixel_values [B, C, H, W], targets int64 [B]) -> attributions float32 [B, N]; on the classifier's device.
Method = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _one(num_patches: int) -> int:
    return 1


@dataclass(frozen=True)
class MethodInfo:
    """What is known about a method; command line, tables and tests are made from it."""

    name: str
    title: str
    needs: str  # "nothing", "attention", "activations", "gradients", "masked forwards" or "explainer"
    source: str
    build: Callable[..., Method]
    objective: str | None = None  # that of the trained explainer it needs
    least_budget: Callable[[int], int] = _one  # number of patches -> the fewest subsets that it works with

    @property
    def own_budget(self) -> int | None:
        """The default of its option `budget`, the subsets per image that it asks the classifier about; None without."""
        option = inspect.signature(self.build).parameters.get("budget")
        return None if option is None else option.default

    @property
    def takes_budget(self) -> bool:
        """Whether it has such an option."""
        return self.own_budget is not None


REGISTRY: dict[str, MethodInfo] = {}

#: What methods ask for that half precision would round away; they are given the classifier in float32.
_NEED_FLOAT32 = ("gradients", "activations")


def register(
    name: str,
    *,
    title: str,
    needs: str,
    source: str,
    objective: str | None = None,
    least_budget: Callable[[int], int] = _one,
):
    """Decorator: adds a function `(classifier, seed, **options) -> Method` to the registry.

    A method that needs a trained explainer names its objective, and has an option `explainer`.
    """

    def add(build):
        REGISTRY[name] = MethodInfo(name, title, needs, source, build, objective, least_budget)
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
        The method. It raises ValueError where `targets` are not one class per image, or images are not what
        `MaskedClassifier.as_input` takes. What is exchanged in the classifier later counts from then on.

    Raises:
        TypeError: where an option is none of the method's.
        ValueError: where there is no such method, or it does not suit the classifier.
    """
    one_of("name", name, sorted(REGISTRY))
    seed = checked_seed(seed)
    if not isinstance(classifier, MaskedClassifier):
        raise TypeError(f"classifier must be a MaskedClassifier, got {type(classifier).__name__}")
    method = REGISTRY[name]
    function = method.build(classifier=classifier, seed=seed, **options)

    def attribute(pixel_values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        precise = classifier.in_float32() if method.needs in _NEED_FLOAT32 else classifier
        attribution = function
        if precise is not classifier:  # for every call, because what is exchanged in the classifier counts from then on
            attribution = method.build(classifier=precise, seed=seed, **options)
        with torch.inference_mode(False):  # whose tensors have no gradients
            pixel_values = _with_gradients(precise.as_input(pixel_values))
            targets = _with_gradients(whole_numbers("targets", targets, "B", B=len(pixel_values)))
            check_targets(targets, classifier.num_labels)
            return attribution(pixel_values, targets.to(classifier.device)).detach().float()

    return attribute


def _with_gradients(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that autograd can use, also where it was made under `torch.inference_mode`."""
    return tensor.clone() if tensor.is_inference() else tensor


def patch_sums(pixel_map: torch.Tensor, patch_size: int) -> torch.Tensor:
    """A map of pixels summed over each patch: [B, H, W] -> [B, N]."""
    rows, columns = pixel_map.shape[-2] // patch_size, pixel_map.shape[-1] // patch_size
    return pixel_map.reshape(len(pixel_map), rows, patch_size, columns, patch_size).sum(dim=(2, 4)).flatten(1)
