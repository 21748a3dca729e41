"""The registry of attribution methods: name -> method, each (pixel_values [B, C, H, W], targets [B]) -> [B, N].

Maps are on the patch grid, raster order. Methods leave the classifier as they found it and are batched; random ones
are keyed by image, so that the batch an image comes in changes nothing.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModel

from .masking import MaskedClassifier, target_attributions, target_probability, value_at
from .subsets import KeyedGenerator, image_keys

#: (pixel_values [B, C, H, W], targets int64 [B]) -> attributions [B, N]
Method = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class MethodInfo:
    """What is known about a method; tables and tests are made from it."""

    name: str
    title: str
    needs: str  # "nothing", "attention", "masked forwards" or "explainer"
    source: str
    build: Callable[..., Method]


REGISTRY: dict[str, MethodInfo] = {}


def register(name: str, *, title: str, needs: str, source: str):
    """Decorator: adds a function `(classifier, seed, **options) -> Method` to the registry."""

    def add(build):
        REGISTRY[name] = MethodInfo(name, title, needs, source, build)
        return build

    return add


def load(name: str, classifier: MaskedClassifier, seed: int = 0, **options) -> Method:
    """A method for one classifier.

    Args:
        name: a key of `REGISTRY`.
        classifier: the classifier to explain.
        seed: of the methods that draw; the others ignore it.
        options: of the method itself (`explainer=` for "salvage", `num_masks=` for "rise").
    """
    if name not in REGISTRY:
        raise ValueError(f"no attribution method {name!r}; there are {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name].build(classifier=classifier, seed=seed, **options)


@register("salvage", title="Salvage", needs="explainer", source="Naouar et al., 2025")
def salvage(classifier: MaskedClassifier, explainer, seed: int = 0) -> Method:
    """Salvage's phi+ - phi- of the target class.

    Args:
        classifier: only its device is used.
        explainer: a `SalvageModel`, its folder or its name on the Hub.
    """
    if isinstance(explainer, (str, Path)):
        explainer = AutoModel.from_pretrained(explainer, dtype=torch.float32)
    model = explainer.to(classifier.device).eval()

    @torch.no_grad()
    def attribute(pixel_values, targets):
        return target_attributions(model(pixel_values.to(model.device)).attributions, targets.to(model.device))

    return attribute


@register("last_attention", title="Attn. last", needs="attention", source="Clark et al., 2019; Darcet et al., 2023")
def last_attention(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Attention of CLS to each patch in the last layer, mean over heads; the same map for every class."""
    attentions = _attention_maps(classifier)

    def attribute(pixel_values, targets):
        maps, num_prefix = attentions(pixel_values)
        return maps[-1].mean(dim=1)[:, 0, num_prefix:]

    return attribute


@register("attention_rollout", title="Attn. Roll.", needs="attention", source="Abnar & Zuidema, 2020")
def attention_rollout(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Attention rollout from CLS to each patch: the product over layers of (A + I) / 2, A averaged over heads."""
    attentions = _attention_maps(classifier)

    def attribute(pixel_values, targets):
        maps, num_prefix = attentions(pixel_values)
        identity = torch.eye(maps[0].shape[-1], device=maps[0].device)
        rollout = identity
        for layer in maps:
            rollout = (layer.mean(dim=1) + identity) / 2 @ rollout
        return rollout[:, 0, num_prefix:]

    return attribute


@register("rise", title="RISE", needs="masked forwards", source="Petsiuk et al., 2018")
def rise(classifier: MaskedClassifier, seed: int = 0, num_masks: int = 2000) -> Method:
    """Randomised input sampling: the mean of v(S) over random subsets that show the patch.

    On the patch grid and through v(S), every patch shown with probability 1/2: no upsampled masks and no shifts, which
    stand for a grid where the model has none.

    Args:
        classifier: the classifier to explain.
        seed: seed of the subsets.
        num_masks: subsets an image, each a forward; 2000 in the paper.
    """
    if num_masks < 1:
        raise ValueError(f"num_masks must be at least 1, got {num_masks}")

    @torch.no_grad()
    def attribute(pixel_values, targets):
        rows, columns = classifier.patch_grid(pixel_values)
        value, generator = value_at(classifier, pixel_values), KeyedGenerator((seed, 1), image_keys(pixel_values))
        total, shown = 0, 0
        for number in torch.arange(num_masks).split(512):  # the subsets never stand in memory at once
            masks = generator.uniform(len(number), rows * columns) < 0.5
            predictions = target_probability(value(masks), targets.to(classifier.device))
            total = total + (predictions.to(masks.device)[:, None] @ masks.float())[:, 0]
            shown = shown + masks.sum(dim=1)
        return total / shown.clamp_min(1)

    return attribute


@register("random", title="Random", needs="nothing", source="reference of Table 1")
def random(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Independent uniform values."""

    def attribute(pixel_values, targets):
        rows, columns = classifier.patch_grid(pixel_values)
        # (seed, 1): the scores draw from (seed,), and would else meet the very numbers that made the map.
        return KeyedGenerator((seed, 1), image_keys(pixel_values)).uniform(rows * columns)

    return attribute


def _attention_maps(classifier: MaskedClassifier) -> Callable[[torch.Tensor], tuple[tuple[torch.Tensor, ...], int]]:
    """pixel_values -> (attention [B, heads, P + N, P + N] of each layer, number P of prefix tokens)."""
    num_prefix = classifier.num_prefix_tokens
    # Other attention implementations return no maps; the classifier itself must keep its own.
    model = copy.deepcopy(classifier.classifier)
    model.set_attn_implementation("eager")

    @torch.no_grad()
    def attentions(pixel_values):
        return model(pixel_values.to(model.device), output_attentions=True).attentions, num_prefix

    return attentions
