"""Methods that are trained, one per objective: a map is one forward of an explainer."""

from pathlib import Path

import torch
from transformers import AutoModel

from ..masking import MaskedClassifier
from ..objectives import OBJECTIVES, Objective, additive_efficient
from ..targets import target_attributions
from .registry import Method, register


def method_of(name: str, objective: Objective):
    """The attribution method of the explainers of one objective, for the registry."""

    def build(classifier: MaskedClassifier, explainer, seed: int = 0) -> Method:
        model = load_explainer(explainer, name, classifier)

        @torch.no_grad()
        def attribute(pixel_values, targets):
            values = model(pixel_values).attributions
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
    """
    return build


for _name, _objective in OBJECTIVES.items():
    register(_name, title=_objective.title, needs="explainer", source=_objective.source)(method_of(_name, _objective))


def load_explainer(explainer, objective: str, classifier: MaskedClassifier):
    """An explainer, ready to explain a classifier.

    Args:
        explainer: a `SalvageModel`, its folder or its name on the Hub.
        objective: the name of the objective that it must have been trained by.
        classifier: the classifier; the explainer must have its labels.

    Raises:
        ValueError: where it was trained by another objective, or for other labels.
    """
    if isinstance(explainer, (str, Path)):
        explainer = AutoModel.from_pretrained(explainer, dtype=torch.float32)
    if explainer.config.objective != objective:
        raise ValueError(
            f"explainer was trained by the objective {explainer.config.objective!r}, "
            f"the method needs one by {objective!r}"
        )
    if explainer.config.paired_values != OBJECTIVES[objective].paired_values:
        raise ValueError(
            f"explainer has paired_values={explainer.config.paired_values}, which the objective {objective!r} does not "
            "give: its config does not state what it was trained by"
        )
    theirs, ours = explainer.config.id2label, classifier.config.id2label
    if theirs != ours:
        raise ValueError(f"explainer has the labels {list(theirs.values())}, the classifier {list(ours.values())}")
    return explainer.to(classifier.device).eval()
