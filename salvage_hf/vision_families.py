"""Facts about each family of vision transformers: where its tokens, blocks, norms and heads are.

Masking and attribution methods read them here, and never test a model for its attributes. A family that is built like
one of these needs only an entry of `FAMILIES`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class VisionFamily:
    """A family of vision transformers whose tokens are patches, so that hidden patches can be dropped.

    Args:
        num_prefix_tokens: config -> number of tokens before the patches: CLS, registers, distillation.
        blocks: where the base model holds its blocks.
        norms: names of a block's two norms.
        layer_scales: names of the modules that scale what attention and MLP add; None where there are none.
        pools_patches: whether the head sees [CLS, mean of the patches] rather than CLS alone.
        fixed_positions: whether the position embeddings fit the configured image size only.
        mask_token: config -> whether there is a learned token that replaces hidden patches.
        gated_mlp: config -> whether a block's MLP has a gate (SwiGLU, in DINOv2's largest model).
    """

    num_prefix_tokens: Callable[[Any], int]
    blocks: str = "layers"
    norms: tuple[str, str] = ("layernorm_before", "layernorm_after")
    layer_scales: tuple[str, str] | None = None
    pools_patches: bool = False
    fixed_positions: bool = True
    mask_token: Callable[[Any], bool] = lambda config: False
    gated_mlp: Callable[[Any], bool] = lambda config: False

    def blocks_path(self, classifier: PreTrainedModel) -> str:
        """The dotted path from the classifier to the list of its blocks."""
        return f"{classifier.base_model_prefix}.{self.blocks}"

    def block_list(self, classifier: PreTrainedModel) -> nn.ModuleList:
        """The blocks, in the order in which tokens pass them."""
        blocks = classifier.get_submodule(self.blocks_path(classifier))
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def heads(self, classifier: PreTrainedModel) -> list[tuple[nn.Linear, int]]:
        """The linear heads, the mean of whose outputs is the logits, each with the index of the token it reads."""
        model: Any = classifier
        if hasattr(model, "distillation_classifier"):  # DeiT with a teacher
            return [(model.cls_classifier, 0), (model.distillation_classifier, 1)]
        return [(model.classifier, 0)]


_DINOV2: dict[str, Any] = {
    "blocks": "encoder.layer",
    "norms": ("norm1", "norm2"),
    "layer_scales": ("layer_scale1", "layer_scale2"),
    "pools_patches": True,
    "fixed_positions": False,
    "gated_mlp": lambda config: config.use_swiglu_ffn,
}

#: transformers' model type -> family.
FAMILIES = {
    "dinov2": VisionFamily(lambda config: 1, mask_token=lambda config: config.use_mask_token, **_DINOV2),
    "dinov2_with_registers": VisionFamily(
        lambda config: 1 + config.num_register_tokens, mask_token=lambda config: True, **_DINOV2
    ),
    "vit": VisionFamily(lambda config: 1),
    "deit": VisionFamily(lambda config: 2),
}

Module = TypeVar("Module", bound=nn.Module)


def view_of(module: Module) -> Module:
    """A copy of a module with the same parameters, buffers and submodules, whose registries are its own.

    What is exchanged in the copy, and the hooks that it gets, do not reach the module.
    """
    view = copy.copy(module)
    vars(view).update({name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, dict)})
    return view


def with_submodule(module: Module, path: str, submodule: nn.Module) -> Module:
    """A view of a module in which the submodule at a dotted path is replaced; everything else is shared with it."""
    name, _, rest = path.partition(".")
    view = view_of(module)
    view._modules[name] = with_submodule(module.get_submodule(name), rest, submodule) if rest else submodule
    return view


def embeddings_of(classifier: PreTrainedModel) -> nn.Module:
    """The module that makes tokens with positions from pixels."""
    return classifier.get_submodule(f"{classifier.base_model_prefix}.embeddings")


def on_tokens(classifier: PreTrainedModel) -> PreTrainedModel:
    """A view of a vision transformer that takes embedded tokens [B, P + N, D] where it took pixels."""
    tokens_as_input = _TokensAsInput(embeddings_of(classifier))
    return with_submodule(classifier, f"{classifier.base_model_prefix}.embeddings", tokens_as_input)


def freeze_mask_token(base_model: Any) -> None:
    """Takes the mask token out of training, because a forward without hidden patches does not use it.

    Distributed training would otherwise wait for its gradient.
    """
    family = FAMILIES.get(base_model.config.model_type)
    if family and family.mask_token(base_model.config):
        base_model.embeddings.mask_token.requires_grad_(False)


class _TokensAsInput(nn.Module):
    """Replaces a model's embeddings where the input is embedded tokens already, and passes them on."""

    def __init__(self, embeddings: nn.Module):
        super().__init__()
        self.patch_embeddings = embeddings.patch_embeddings  # ViT reads its dtype

    def forward(self, tokens: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return tokens
