"""Methods that are trained, one per objective, whose maps are one forward of an explainer; and Salvage's, refined."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from ..masking import MaskedClassifier, check_provenance
from ..modeling import SalvageConfig, SalvageModel
from ..objectives import OBJECTIVES, Objective, additive_efficient
from ..pretrained import check_finite, load_model
from ..refinement import LEAST_BUDGET, checked_budget, refine
from ..targets import target_attributions
from .registry import REGISTRY, Method, register


def method_of(name: str, objective: Objective):
    """The attribution method of the explainers of one objective, for the registry."""

    def build(
        classifier: MaskedClassifier, explainer=None, seed: int = 0, allow_other_classifier: bool = False
    ) -> Method:
        model = load_explainer(explainer, name, classifier, allow_other_classifier)

        @torch.no_grad()
        def attribute(pixel_values, targets):
            values = model(pixel_values.to(model.dtype)).attributions
            if objective.normalised:
                ends = torch.tensor([False, True], device=values.device)[:, None]
                ends = ends.expand(len(values), -1, values.shape[1])  # [B, 2, N]
                empty, full = classifier.probabilities(pixel_values, ends).unbind(1)
                values = additive_efficient(values, full, empty)
            return target_attributions(values, targets)

        return attribute

    normalisation = (
        ", moved to sum to v(N) - v(empty), which takes two forwards of the classifier" if objective.normalised else ""
    )
    build.__name__ = name
    build.__doc__ = f"""phi of the target class by an explainer of the objective {objective.title}{normalisation}.

    Args:
        classifier: the classifier to explain.
        explainer: a `SalvageModel` trained with `--objective {name}`, its folder or its name on the Hub; moved to the
            classifier's device, in eval mode.
        seed: not used.
        allow_other_classifier: whether an explainer of another classifier is a warning, and not an error.
    """
    return build


for _name, _objective in OBJECTIVES.items():
    register(_name, title=_objective.title, needs="explainer", source=_objective.source, objective=_name)(
        method_of(_name, _objective)
    )


@register(
    "salvage_refined",
    title="Salvage, refined",
    needs="explainer",
    source="this library",
    objective="salvage",
    least_budget=lambda num_patches: LEAST_BUDGET,
)
def salvage_refined(
    classifier: MaskedClassifier, explainer=None, seed: int = 0, budget: int = 256, allow_other_classifier: bool = False
) -> Method:
    """Salvage's map, improved by the classifier's predictions from subsets of the image (`refinement`).

    Args:
        classifier: the classifier to explain.
        explainer: a `SalvageModel` trained with `--objective salvage`, its folder or its name on the Hub.
        seed: seed of the subsets.
        budget: subsets per image, each a forward of the classifier; 0 gives Salvage's own map, otherwise at least 16.
        allow_other_classifier: whether an explainer of another classifier is a warning, and not an error.
    """
    checked_budget(budget)
    salvage = REGISTRY["salvage"].build(classifier, explainer, seed, allow_other_classifier)

    def attribute(pixel_values, targets):
        return refine(classifier, salvage(pixel_values, targets), pixel_values, targets, budget, seed).attributions

    return attribute


def load_explainer(
    explainer, objective: str, classifier: MaskedClassifier, allow_other_classifier: bool = False
) -> SalvageModel:
    """An explainer, ready to explain a classifier.

    Args:
        explainer: a `SalvageModel`, its folder or its name on the Hub.
        objective: the name of the objective that it must have been trained by.
        classifier: the classifier; the explainer must have its labels, and have been trained for it.
        allow_other_classifier: whether an explainer of another classifier (weights, config, masking or image processor)
            is a warning, and not an error.

    Raises:
        ValueError: where `explainer` is no explainer, or was trained by another objective, for other labels or for
            another classifier, where it has other patches, or where weights are missing or not finite.
    """
    if isinstance(explainer, (str, Path)):
        explainer = load_model(AutoModel, str(explainer), dtype=torch.float32)
    # Not by `isinstance`: a model loaded with the code of its repository has a class of its own.
    if getattr(getattr(explainer, "config", None), "model_type", None) != SalvageConfig.model_type:
        raise ValueError(
            f"explainer must be a SalvageModel, its folder or its name on the Hub, got {type(explainer).__name__}"
        )
    check_finite(explainer, "explainer")
    config = explainer.config
    if config.objective != objective:
        raise ValueError(
            f"explainer was trained by the objective {config.objective!r}, the method needs one by {objective!r}"
        )
    if config.paired_values != OBJECTIVES[objective].paired_values:
        raise ValueError(
            f"explainer has paired_values={config.paired_values}, which the objective {objective!r} does not give: its "
            "config does not state what it was trained by"
        )
    theirs, ours = config.id2label, classifier.config.id2label
    if theirs != ours:
        raise ValueError(f"explainer has the labels {list(theirs.values())}, the classifier {list(ours.values())}")
    if (patch_size := config.patch_size) != classifier.patch_size:
        raise ValueError(f"explainer has patches of {patch_size} pixels, the classifier of {classifier.patch_size}")
    stated = getattr(config, "explained_classifier", None)  # older code does not have it
    check_provenance(stated, classifier, allow_other_classifier)
    return explainer.to(classifier.device).eval()


def explainer_options(explainer: Any, allow_other_classifier: bool) -> dict[str, Any]:
    """The options of a method that asks an explainer; of other methods, whose explainer is None, there are none."""
    return {} if explainer is None else {"explainer": explainer, "allow_other_classifier": allow_other_classifier}
