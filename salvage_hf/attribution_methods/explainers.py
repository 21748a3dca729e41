"""Methods that are trained: one forward of an explainer."""

from pathlib import Path

import torch
from transformers import AutoModel

from ..masking import MaskedClassifier, target_attributions
from ..objectives import additive_efficient
from .registry import Method, register


@register("salvage", title="Salvage", needs="explainer", source="Naouar et al., 2025")
def salvage(classifier: MaskedClassifier, explainer, seed: int = 0) -> Method:
    """Salvage's phi+ - phi- of the target class.

    Args:
        classifier: the classifier to explain.
        explainer: a `SalvageModel`, its folder or its name on the Hub; moved to the classifier's device, in eval mode.
    """
    model = _loaded(explainer, classifier, paired_values=True)

    @torch.no_grad()
    def attribute(pixel_values, targets):
        return target_attributions(model(pixel_values).attributions, targets)

    return attribute


@register("vit_shapley", title="ViT-Shapley", needs="explainer", source="Covert et al., 2023")
def vit_shapley(classifier: MaskedClassifier, explainer, seed: int = 0) -> Method:
    """ViT-Shapley's values of the target class, normalised to sum to v(N) - v(empty): two forwards of the classifier.

    Args:
        classifier: the classifier to explain.
        explainer: a `SalvageModel` trained with `--objective vit_shapley`, its folder or its name on the Hub; moved to
            the classifier's device, in eval mode.
    """
    model = _loaded(explainer, classifier, paired_values=False)

    @torch.no_grad()
    def attribute(pixel_values, targets):
        values = model(pixel_values).attributions
        ends = torch.tensor([False, True], device=values.device)[:, None].expand(len(values), -1, values.shape[1])
        empty, full = classifier.probabilities(pixel_values, ends).unbind(1)
        return target_attributions(additive_efficient(values, full, empty), targets)

    return attribute


def _loaded(explainer, classifier: MaskedClassifier, paired_values: bool):
    if isinstance(explainer, (str, Path)):
        explainer = AutoModel.from_pretrained(explainer, dtype=torch.float32)
    if explainer.config.paired_values != paired_values:
        kinds = {True: "Salvage", False: "Shapley values' own (vit_shapley or fastshap)"}
        raise ValueError(
            f"explainer was trained by the objective of {kinds[not paired_values]}, needed is one by that of "
            f"{kinds[paired_values]}"
        )
    theirs, ours = explainer.config.id2label, classifier.config.id2label
    if theirs != ours:
        raise ValueError(f"explainer has the labels {list(theirs.values())}, the classifier {list(ours.values())}")
    return explainer.to(classifier.device).eval()
