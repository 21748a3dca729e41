"""A classifier, an explainer of it, or both, loaded from whatever a user names or has loaded."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from ..data.processors import processed_size
from ..masking import MaskedClassifier, load_classifier_of, stated_masking
from ..modeling import SalvageConfig
from ..objectives import OBJECTIVES
from ..pretrained import check_finite, load_config, load_model, load_processor
from ..tensors import described, one_of, whole_number
from ..vision_families import FAMILIES
from .trained import load_explainer

#: Where tokens are no patches of one size: about how many patches a side of the image is divided into.
_PATCHES_A_SIDE = 14


@dataclass(frozen=True)
class Pair:
    """What explains images.

    Args:
        v: the classifier on partial images; None where it is not asked.
        model: the explainer, a `SalvageModel`; None where there is none.
        processor: the image processor.
        problem: why the classifier is not asked; "" where it is.
    """

    v: MaskedClassifier | None
    model: Any
    processor: Any
    problem: str = ""

    @property
    def asked(self) -> Any:
        """The classifier, or the explainer where that is not asked: both have device, config and labels."""
        return self.model if self.v is None else self.v

    @property
    def patch_size(self) -> int:
        """The side of a patch in pixels of a processed image."""
        return self.model.config.patch_size if self.v is None else self.v.patch_size


def load_pair(
    name_or_model: Any,
    classifier: Any = None,
    processor: Any = None,
    patch_size: int | None = None,
    device: str | torch.device | None = None,
    allow_other_classifier: bool = False,
) -> Pair:
    """Loads what the arguments of `Explainer` of the same names mean, and checks that it fits together.

    Raises:
        TypeError, ValueError: where it does not, or something cannot be loaded.
    """
    place = _place(name_or_model, device)
    patch_size = None if patch_size is None else whole_number("patch_size", patch_size, 1)
    if _is_explainer(name_or_model):
        pair = _explainer_and_classifier(name_or_model, classifier, processor, patch_size, allow_other_classifier)
    elif classifier is not None:
        raise ValueError(
            "classifier is what an explainer explains, but name_or_model is no Salvage explainer, got "
            f"{described(name_or_model)}"
        )
    else:
        v = _classifier(name_or_model, processor, patch_size)
        pair = Pair(v, None, processor or v.processor or _processor_of(v.config))
    for part in (pair.v, pair.model):
        if part is not None and place is not None:
            part.to(place)
    return pair


def _explainer_and_classifier(
    model: Any, classifier: Any, processor: Any, patch_size: int | None, allow_other: bool
) -> Pair:
    """An explainer with its classifier, or without it where that is not given and not within reach."""
    if isinstance(model, (str, os.PathLike)):
        model = load_model(AutoModel, str(model), dtype=torch.float32)
    check_finite(model, "explainer")
    config, v, problem = model.eval().config, None, ""
    objective = OBJECTIVES[one_of("the explainer's objective", config.objective, OBJECTIVES)]
    if patch_size is not None and patch_size != config.patch_size:
        raise ValueError(f"patch_size must be the explainer's, {config.patch_size}, got {patch_size}")
    try:
        if isinstance(classifier, (MaskedClassifier, PreTrainedModel)):
            v = _masked(classifier, processor, **stated_masking(config))
        else:
            v = load_classifier_of(config, None if classifier is None else str(classifier))
        load_explainer(model, config.objective, v, allow_other)
    except ValueError as error:
        if classifier is not None:
            raise
        if not objective.paired_values:
            raise ValueError(f"an explainer of {objective.title} does not predict what it explains: {error}") from error
        v, problem = None, str(error)
    try:
        processor = processor or _processor_of(config)
    except ValueError:
        processor = None if v is None else v.processor
        if processor is None:
            raise
    return Pair(v, model, processor, problem)


def _place(name_or_model: Any, device: str | torch.device | None) -> torch.device | None:
    """Where to compute; None where a loaded model stays where it is."""
    if device is None:
        if not isinstance(name_or_model, (str, os.PathLike)):
            return None
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except Exception as error:  # torch raises many types of error, with advice about drivers
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"device must be one of this machine, got {described(device)}: {reason}") from error
    return found


def _is_explainer(name_or_model: Any) -> bool:
    """Whether this is a Salvage explainer; raises where it is no model at all."""
    if isinstance(name_or_model, (str, os.PathLike)):
        return load_config(str(name_or_model)).model_type == SalvageConfig.model_type
    if not isinstance(name_or_model, (MaskedClassifier, PreTrainedModel)):
        raise TypeError(
            "name_or_model must be a name on the Hub, a folder, a model of transformers or a MaskedClassifier, got "
            f"{described(name_or_model)}"
        )
    return name_or_model.config.model_type == SalvageConfig.model_type


def _classifier(name_or_model: Any, processor: Any, patch_size: int | None) -> MaskedClassifier:
    """v of a classifier that has no explainer."""
    if isinstance(name_or_model, MaskedClassifier):
        return name_or_model
    is_name = isinstance(name_or_model, (str, os.PathLike))
    config = load_config(str(name_or_model)) if is_name else name_or_model.config
    processor = processor or (load_processor(str(name_or_model)) if is_name else _processor_of(config))
    if patch_size is None and config.model_type not in FAMILIES:
        patch_size = _even_patches(processed_size(processor))
    if not is_name:
        return _masked(name_or_model, processor, patch_size=patch_size)
    options: dict[str, Any] = {"image_size": size} if (size := processed_size(processor)) else {}
    return load_classifier_of(None, str(name_or_model), patch_size=patch_size, **options)


def _masked(classifier: Any, processor: Any, **how: Any) -> MaskedClassifier:
    """v of a loaded classifier."""
    if isinstance(classifier, MaskedClassifier):
        return classifier
    processor = processor or _processor_of(classifier.config)
    return MaskedClassifier(classifier, image_size=processed_size(processor), processor=processor, **how)


def _even_patches(size: tuple[int, int] | None) -> int:
    """The side of patches that divides images [height, width] into about 14 x 14."""
    if size is None:
        raise ValueError("patch_size is needed: the image processor gives images of several sizes")
    common = math.gcd(*size)
    sides = [side for side in range(1, common + 1) if common % side == 0 and side < min(size)]
    if not sides:
        raise ValueError(f"patch_size is needed: images of {size[0]} x {size[1]} pixels have no even patches")
    return min(sides, key=lambda side: abs(math.log(min(size) / side / _PATCHES_A_SIDE)))


def _processor_of(config: Any) -> Any:
    """The image processor beside a model; raises ValueError where there is none."""
    if not config.name_or_path:
        raise ValueError("processor is needed: the model was not loaded from a folder or the Hub that holds one")
    return load_processor(config.name_or_path)
