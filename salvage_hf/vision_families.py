"""Facts about families of models: where tokens, blocks, norms and heads are, and how they take images of any size.

Masking and attribution methods read them here, and never test a model for its attributes. A family that is built like
ViT needs only an entry of `FAMILIES`, one whose last tokens lie on a grid an entry of `TOKEN_STRIDES`.
"""

import copy
import functools
import inspect
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# Facts that depend on a config. They are functions with names, because models that keep a family must be picklable.


def _no(config: Any) -> bool:
    return False


def _yes(config: Any) -> bool:
    return True


def _cls(config: Any) -> int:
    return 1


def _cls_and_distillation(config: Any) -> int:
    return 2


def _cls_and_registers(config: Any) -> int:
    return 1 + config.num_register_tokens


def _has_mask_token(config: Any) -> bool:
    return config.use_mask_token


def _has_gated_mlp(config: Any) -> bool:
    return config.use_swiglu_ffn


def _merged_patches(config: Any) -> int:
    return config.patch_size * 2 ** (len(config.depths) - 1)


def _patches_of_vision_config(config: Any) -> int:
    return config.vision_config.patch_size


@dataclass(frozen=True)
class VisionFamily:
    """A family of vision transformers whose tokens are patches, so that hidden patches can be dropped.

    Args:
        num_prefix_tokens: config -> number of tokens before the patches: CLS, registers, distillation.
        blocks: where the base model holds its blocks.
        norms: names of a block's two norms.
        layer_scales: names of the modules that scale what attention and MLP add; None where there are none.
        pools_patches: whether the head sees [CLS, mean of the patches] rather than CLS alone.
        fixed_positions: whether the position embeddings are those of the configured image size, and others are
            interpolated only where a forward is told to.
        mask_token: config -> whether there is a learned token that replaces hidden patches.
        gated_mlp: config -> whether a block's MLP has a gate (SwiGLU, in DINOv2's largest model).
    """

    num_prefix_tokens: Callable[[Any], int]
    blocks: str = "layers"
    norms: tuple[str, str] = ("layernorm_before", "layernorm_after")
    layer_scales: tuple[str, str] | None = None
    pools_patches: bool = False
    fixed_positions: bool = True
    mask_token: Callable[[Any], bool] = _no
    gated_mlp: Callable[[Any], bool] = _no

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
    "gated_mlp": _has_gated_mlp,
}

#: transformers' model type -> family.
FAMILIES = {
    "dinov2": VisionFamily(_cls, mask_token=_has_mask_token, **_DINOV2),
    "dinov2_with_registers": VisionFamily(_cls_and_registers, mask_token=_yes, **_DINOV2),
    "vit": VisionFamily(_cls),
    "deit": VisionFamily(_cls_and_distillation),
}

#: transformers' model type -> config -> pixels along the side of what one token stands for, where the last layer's
#: tokens are those places alone (no CLS), row by row. Swin merges 2 x 2 patches between its stages, SigLIP none.
TOKEN_STRIDES: dict[str, Callable[[Any], int]] = {
    "swin": _merged_patches,
    "swinv2": _merged_patches,
    "siglip": _patches_of_vision_config,
}

Module = TypeVar("Module", bound=nn.Module)


def view_of(module: Module) -> Module:
    """A copy of a module with the same parameters, buffers and submodules, whose registries are its own.

    What is exchanged in the copy, and the hooks that it gets, do not reach the module. Methods that were set on the
    module itself, as accelerate sets `forward` for mixed precision and offloading, are bound to the copy.
    """
    # Neither the constructor nor `copy.copy`, which pickles: a view of a large model would take as long as a forward.
    view = type(module).__new__(type(module))
    attributes = vars(view)
    for name, value in vars(module).items():
        attributes[name] = value
        if isinstance(value, dict):
            attributes[name] = value.copy() if type(value) in (dict, OrderedDict) else copy.copy(value)
        elif isinstance(value, types.MethodType) and value.__self__ is module:
            attributes[name] = types.MethodType(value.__func__, view)
        elif isinstance(value, functools.partial) and any(argument is module for argument in value.args):
            arguments = (view if argument is module else argument for argument in value.args)
            attributes[name] = functools.partial(value.func, *arguments, **value.keywords)
    attributes["_compiled_call_impl"] = None  # `Module.compile` has compiled the module, and not the copy
    return view


def with_submodule(module: Module, path: str, submodule: nn.Module) -> Module:
    """A view of a module in which the submodule at a dotted path is replaced; everything else is shared with it."""
    name, _, rest = path.partition(".")
    view = view_of(module)
    view._modules[name] = with_submodule(module.get_submodule(name), rest, submodule) if rest else submodule
    return view


def in_dtype(module: Module, dtype: torch.dtype) -> Module:
    """A view of a module with its floating-point parameters and buffers in another type; the module keeps its own."""

    def cast(tensor: Any) -> Any:
        return tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor

    def changes(part: nn.Module) -> dict[str, Any]:
        registries: dict[str, dict[str, Any]] = {"_parameters": part._parameters, "_buffers": part._buffers}
        return {
            name: {key: cast(tensor) for key, tensor in registry.items()}
            for name, registry in registries.items()
            if registry
        }

    return _changed(module, changes)


def with_attention(model: Module, implementation: str) -> Module:
    """A view of a model whose attention is another function of transformers' `AttentionInterface`."""
    changed: dict[int, PreTrainedConfig] = {}  # the parts share their config

    def changes(part: nn.Module) -> dict[str, Any]:
        config = vars(part).get("config")
        if not isinstance(config, PreTrainedConfig):
            return {}
        if id(config) not in changed:
            changed[id(config)] = copy.copy(config)
            changed[id(config)]._attn_implementation = implementation
        return {"config": changed[id(config)]}

    return _changed(model, changes)


def with_output_hook(module: Module, hook: Callable[[str, Any], None]) -> Module:
    """A view of a module that tells, as each of its parts is done, the part's dotted path and its output."""
    view = _changed(module, lambda part: {"training": part.training})  # a view of every part: each gets a hook
    for path, part in view.named_modules():
        part.register_forward_hook(lambda part, inputs, output, path=path: hook(path, output))
    return view


def _changed(module: Module, changes: Callable[[nn.Module], dict[str, Any]]) -> Module:
    """A view of a module in which some attributes of it and of its parts are exchanged.

    Parts in which nothing changes are the module's own.

    Args:
        module: the module.
        changes: a part -> the attributes that its view has in place of the part's.
    """
    attributes = changes(module)
    parts = {name: _changed(part, changes) for name, part in module._modules.items() if part is not None}
    exchanged = {name: part for name, part in parts.items() if part is not module._modules[name]}
    if not attributes and not exchanged:
        return module
    view = view_of(module)
    vars(view).update(attributes)
    view._modules.update(exchanged)
    return view


def copy_sharing_weights(module: Module) -> Module:
    """A deep copy of a module, config included, whose parameters and buffers are the module's own."""
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def execution_device(model: PreTrainedModel) -> torch.device:
    """Where a model computes: with accelerate's offloading its weights may lie elsewhere."""
    for part in model.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return model.device


def stated_image_size(config: Any) -> Any:
    """The size of images that a config states, of SigLIP in a part of its own; None where it states none."""
    return getattr(getattr(config, "vision_config", config), "image_size", None)


def position_options(module: nn.Module, config: Any, pixel_values: torch.Tensor) -> dict[str, bool]:
    """The arguments that make a model's `forward`, or that of its embeddings, take these images [B, C, H, W].

    transformers interpolates positions, as ViT, DeiT, SigLIP and BEiT need for other images than the config states, by
    `interpolate_pos_encoding=True`. It is not passed for images of the stated size, for which nothing may change, nor
    where that is no square, of which transformers would interpolate the positions in a wrong order.
    """
    stated = stated_image_size(config)
    if stated is None:
        return {}
    height, width = (stated, stated) if isinstance(stated, int) else stated
    if height != width or pixel_values.shape[-2:] == (height, width):
        return {}
    takes = "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
    return {"interpolate_pos_encoding": True} if takes else {}


def image_logits(classifier: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """The logits [B, K] of whole images [B, C, H, W], of any size that the classifier can take."""
    return classifier(pixel_values, **position_options(classifier, classifier.config, pixel_values)).logits


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
    for name, parameter in base_model.named_parameters():
        if name == "embeddings.mask_token":
            parameter.requires_grad_(False)


class _TokensAsInput(nn.Module):
    """Replaces a model's embeddings where the input is embedded tokens already, and passes them on."""

    def __init__(self, embeddings: nn.Module):
        super().__init__()
        self.patch_embeddings = embeddings.patch_embeddings  # ViT reads its dtype

    def forward(self, tokens: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return tokens
