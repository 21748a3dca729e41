"""Methods that read attention maps; the same map for every class."""

from collections.abc import Callable

import numpy as np
import torch

from ..masking import MaskedClassifier
from ..vision_families import copy_sharing_weights, position_options
from .registry import Method, register


@register("last_attention", title="Attn. last", needs="attention", source="Clark et al., 2019; Darcet et al., 2023")
def last_attention(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Attention of CLS to each patch in the last layer, mean over heads."""
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


@register("attention_flow", title="Attn. Flow", needs="attention", source="Abnar & Zuidema, 2020")
def attention_flow(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Attention flow: the maximum flow from CLS after the last layer to each patch before the first.

    A layer's edges have the capacities (A + I) / 2, A averaged over heads. scipy solves one maximum flow per patch, on
    the CPU and image by image: this takes seconds per image, where the other attention methods take milliseconds.
    """
    attentions = _attention_maps(classifier)

    def attribute(pixel_values, targets):
        maps, num_prefix = attentions(pixel_values)
        capacities = torch.stack([layer.mean(dim=1) for layer in maps], dim=1)  # [B, layers, T, T]
        capacities = (capacities + torch.eye(capacities.shape[-1], device=capacities.device)) / 2
        flows = np.stack([_flows_from_cls(image, num_prefix) for image in capacities.double().cpu().numpy()])
        return torch.from_numpy(flows).float().to(capacities.device)

    return attribute


#: A capacity of 1 in scipy's units, which are 32-bit integers.
_UNITS = 10**7


def _flows_from_cls(capacities: np.ndarray, num_prefix: int) -> np.ndarray:
    """Maximum flows of one image: capacities [layers, T, T] -> [N]."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    num_layers, num_tokens, _ = capacities.shape
    # Node t + T * l is token t after l layers; edges lead from after a layer to before it.
    above, below = np.meshgrid(np.arange(num_tokens), np.arange(num_tokens), indexing="ij")
    offsets = num_tokens * np.arange(num_layers)[:, None, None]
    rows, columns = above + offsets + num_tokens, below + offsets
    size = num_tokens * (num_layers + 1)
    units = np.round(capacities * _UNITS).astype(np.int32)
    graph = csr_array((units.ravel(), (rows.ravel(), columns.ravel())), shape=(size, size))
    source = num_tokens * num_layers
    return np.array([maximum_flow(graph, source, sink).flow_value for sink in range(num_prefix, num_tokens)]) / _UNITS


def _attention_maps(classifier: MaskedClassifier) -> Callable[[torch.Tensor], tuple[tuple[torch.Tensor, ...], int]]:
    """pixel_values -> (attention [B, heads, P + N, P + N] of each layer, number P of prefix tokens)."""
    classifier.token_family()  # raises here, not at the first image, where the model is no known vision transformer

    @torch.no_grad()
    def attentions(pixel_values):
        # Only eager attention returns maps, and transformers puts hooks on the blocks to gather them: a copy is made,
        # because the classifier must keep its own implementation. It is made for every call, because what is exchanged
        # in the classifier does not reach an older copy.
        model = copy_sharing_weights(classifier.classifier)
        model.set_attn_implementation("eager")
        options = position_options(model, model.config, pixel_values)
        return model(pixel_values, output_attentions=True, **options).attentions, classifier.num_prefix_tokens

    return attentions
