"""Layer-wise relevance propagation: the forward pass of a transformer, whose operations follow a method's rules.

A rule is an operation with a backward pass of its own, so that `torch.autograd.grad` returns relevance in place of the
gradient. `Rules` has the ordinary operations; each subclass changes those that its paper changes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from ..keyed_random import KeyedGenerator
from ..masking import MaskedClassifier
from ..targets import target_logits
from ..vision_families import on_tokens
from .registry import Method, register


class Rules:
    """The operations of a vision transformer, with ordinary forward and backward passes."""

    def linear(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """A fully connected layer."""
        return layer(x)

    def norm(self, layer: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        """A layer norm."""
        return layer(x)

    def activation(self, function: Callable, x: torch.Tensor) -> torch.Tensor:
        """An element-wise non-linear function."""
        return function(x)

    def softmax(self, scores: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention probabilities from products of queries and keys."""
        return (scores * scaling).softmax(dim=-1)

    def scale(self, factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """A constant factor for every channel."""
        return factor * x

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """A matrix product of two tensors that both depend on the image."""
        return a @ b

    def gate(self, gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """An element-wise product."""
        return gate * x

    def add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """A residual connection."""
        return a + b

    def mean(self, tokens: torch.Tensor) -> torch.Tensor:
        """The mean over tokens, [B, T, D] -> [B, D]."""
        return tokens.mean(dim=1)


def walk(classifier: MaskedClassifier, tokens: torch.Tensor, rules: Rules) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Runs the classifier on embedded tokens [B, P + N, D] with the operations of `rules`.

    Returns:
        logits [B, K]; attention probabilities of every block, [B, heads, P + N, P + N] each.
    """
    model, family = classifier.classifier, classifier.token_family()
    attentions = []
    for block in family.block_list(model):
        norms: list[Any] = [block.get_submodule(name) for name in family.norms]
        scales: list[Any] = [block.get_submodule(name).lambda1 for name in family.layer_scales or ()] or [None, None]
        x, probabilities = _attention(rules, block.attention, _norm(rules, norms[0], tokens))
        attentions.append(probabilities)
        tokens = rules.add(tokens, _scaled(rules, scales[0], x))
        x = _mlp(rules, block.mlp, _norm(rules, norms[1], tokens), family.gated_mlp(model.config))
        tokens = rules.add(tokens, _scaled(rules, scales[1], x))
    tokens = _norm(rules, model.base_model.layernorm, tokens)
    return _head(rules, classifier, tokens), attentions


def check_walk(classifier: MaskedClassifier) -> None:
    """Raises ValueError where `walk` does not compute what the classifier computes, so that relevance would be wrong.

    This is tried with random tokens: layers may have been exchanged or have hooks, or a subclass may compute otherwise.
    """
    classifier = classifier.in_float32()
    family = classifier.token_family()  # raises where the model is no known vision transformer
    num_tokens = family.num_prefix_tokens(classifier.config) + 4
    generator = KeyedGenerator("tokens of LRP's check", 0, keys=torch.zeros(1, dtype=torch.int64))
    tokens = generator.normal(num_tokens, classifier.config.hidden_size).to(classifier.device)
    with torch.no_grad():
        walked, _ = walk(classifier, tokens, Rules())
        own = on_tokens(classifier.classifier)(tokens).logits
    if not torch.allclose(walked, own, rtol=1e-3, atol=1e-3 * float(own.abs().max())):
        raise ValueError(
            f"LRP cannot explain this {type(classifier.classifier).__name__}: it computes other than a "
            f"{classifier.config.model_type} model does; hooks or layers of its own would be left out"
        )


def _linear(rules: Rules, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return rules.linear(_plain(layer, nn.Linear), x)


def _norm(rules: Rules, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return rules.norm(_plain(layer, nn.LayerNorm), x)


def _plain(layer: Any, kind: Any) -> Any:
    """A layer whose weights are all that it computes with; ValueError where it is wrapped, quantised or offloaded."""
    if type(layer) is not kind:
        raise ValueError(
            f"LRP needs plain {kind.__name__} layers, got {type(layer).__module__}.{type(layer).__name__}; merge "
            "adapters into the classifier first, with merge_and_unload(), and load it without quantisation"
        )
    if layer.weight.is_meta:
        raise ValueError("LRP needs all weights in memory, but some are offloaded; load the classifier without")
    return layer


def _attention(rules: Rules, attention: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What attention adds to the tokens [B, T, D], and its probabilities [B, heads, T, T]."""
    query, key, value = (
        _linear(rules, layer, x).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # [B, heads, T, D / heads]
    probabilities = rules.softmax(rules.product(query, key.transpose(-1, -2)), attention.scaling)
    mixed = rules.product(probabilities, value).transpose(1, 2).flatten(2)  # [B, T, D]
    return _linear(rules, attention.o_proj, mixed), probabilities


def _scaled(rules: Rules, scale: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return x if scale is None else rules.scale(scale, x)


def _mlp(rules: Rules, mlp: Any, x: torch.Tensor, gated: bool) -> torch.Tensor:
    if gated:
        gate = rules.activation(mlp.act_fn, _linear(rules, mlp.gate_proj, x))
        return _linear(rules, mlp.down_proj, rules.gate(gate, _linear(rules, mlp.up_proj, x)))
    return _linear(rules, mlp.fc2, rules.activation(mlp.activation_fn, _linear(rules, mlp.fc1, x)))


def _head(rules: Rules, classifier: MaskedClassifier, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, K] from the tokens after the last norm [B, P + N, D]."""
    family = classifier.token_family()
    heads = family.heads(classifier.classifier)
    if family.pools_patches:
        ((layer, place),) = heads
        pooled = rules.mean(tokens[:, classifier.num_prefix_tokens :])
        return _linear(rules, layer, torch.cat([tokens[:, place], pooled], dim=1))
    if len(heads) == 1:
        ((layer, place),) = heads
        return _linear(rules, layer, tokens[:, place])
    share = torch.tensor(1 / len(heads))
    first, second = (rules.scale(share, _linear(rules, layer, tokens[:, place])) for layer, place in heads)
    return rules.add(first, second)


def _divided(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a / b, with b moved by 1e-9 away from 0; the quotient is 0 where b is 0."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b + 1e-9 * b.sign()))


class _PassedOn(Function):
    """A function of single tokens whose relevance goes to its input unchanged."""

    @staticmethod
    def forward(ctx, x, function):
        return function(x)

    @staticmethod
    def backward(ctx, relevance):
        return relevance, None


class _InProportion(Function):
    """Relevance in proportion to what each input entry contributes to the output: x f'(x) R / f(x), times `share`."""

    @staticmethod
    def forward(ctx, function, share, *inputs):
        ctx.function, ctx.share = function, share
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx, relevance):
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            output = ctx.function(*inputs)
            gradients = torch.autograd.grad(output, inputs, _divided(relevance, output.detach()))
        return None, None, *(ctx.share * x.detach() * g for x, g in zip(inputs, gradients, strict=True))


class _PositiveLinear(Function):
    """The z+ rule (alpha = 1, beta = 0): relevance in proportion to the positive weight-input products; no bias."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.save_for_backward(x, layer.weight)
        return layer(x)

    @staticmethod
    def backward(ctx, relevance):
        x, weight = ctx.saved_tensors
        above, below = x.clamp(min=0), x.clamp(max=0)
        excites, inhibits = weight.clamp(min=0), weight.clamp(max=0)
        ratio = _divided(relevance, above @ excites.T + below @ inhibits.T)
        return above * (ratio @ excites) + below * (ratio @ inhibits), None


class _Residual(Function):
    """Relevance in proportion to both summands, scaled to keep the sum of each image (Chefer et al., eq. 10)."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a + b

    @staticmethod
    def backward(ctx, relevance):
        summands = ctx.saved_tensors
        ratio = _divided(relevance, sum(summands))
        parts = [x * ratio for x in summands]
        sums = [_image_sum(part) for part in parts]
        total, size = _image_sum(relevance), sum(s.abs() for s in sums)
        return tuple(part * _divided(_divided(s.abs(), size) * total, s) for part, s in zip(parts, sums, strict=True))


def _image_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of all entries of each image, in a shape that broadcasts to them: [B, 1, ...]."""
    return x.sum(dim=tuple(range(1, x.ndim)), keepdim=True)


class _BeyondAttentionRules(Rules):
    """Chefer et al., 2021: the z+ rule for linear layers, half to each factor of a product, sums kept at residuals."""

    def linear(self, layer, x):
        return _PositiveLinear.apply(x, layer)

    def norm(self, layer, x):
        return _PassedOn.apply(x, layer)

    def activation(self, function, x):
        return _PassedOn.apply(x, function)

    def softmax(self, scores, scaling):
        return _PassedOn.apply(scores, lambda scores: (scores * scaling).softmax(dim=-1))

    def scale(self, factor, x):
        return _PassedOn.apply(x, lambda x: factor * x)

    def product(self, a, b):
        return _InProportion.apply(torch.matmul, 0.5, a, b)

    def gate(self, gate, x):
        return _InProportion.apply(torch.mul, 0.5, gate, x)

    def add(self, a, b):
        return _Residual.apply(a, b)

    def mean(self, tokens):
        return _InProportion.apply(super().mean, 1.0, tokens)


@register("lrp", title="LRP", needs="gradients", source="Chefer et al., 2021")
def lrp(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """LRP beyond attention: relevance through all layers, then a rollout of the relevant attention.

    A layer's factor in the rollout is I + the mean over heads of (gradient * relevance)+. As published, CLS's row of
    the rollout is the map, even where the head also averages the patches (DINOv2).
    """
    check_walk(classifier)
    rules = _BeyondAttentionRules()

    def attribute(pixel_values, targets):
        with torch.no_grad():
            tokens = classifier.embed_tokens(pixel_values)
        with torch.enable_grad():
            tokens = tokens.detach().requires_grad_()
            logits, attentions = walk(classifier, tokens, Rules())
            gradients = torch.autograd.grad(target_logits(logits, targets).sum(), attentions)
            logits, attentions = walk(classifier, tokens, rules)
            # Relevance is 1 at the target. With one label both targets have its logit, and `gradients` has the sign.
            start = torch.zeros_like(logits)
            start[torch.arange(len(targets)), targets if logits.shape[-1] > 1 else 0] = 1
            relevances = torch.autograd.grad(logits, attentions, start)
        identity = torch.eye(tokens.shape[1], device=tokens.device, dtype=tokens.dtype)
        row = identity[:1]  # [1, P + N]: CLS's row of the rollout, multiplied from the last layer to the first
        for gradient, relevance in zip(reversed(gradients), reversed(relevances), strict=True):
            row = row @ (identity + (gradient * relevance).clamp_min(0).mean(dim=1))
        return row[:, 0, classifier.num_prefix_tokens :]

    return attribute


class _ConservativeRules(Rules):
    """Ali et al., 2022: attention probabilities and the deviation in a layer norm count as constants.

    So do the gates of GELU, SiLU and SwiGLU: otherwise relevance would not be conserved.
    """

    def norm(self, layer, x):
        centred = x - x.mean(dim=-1, keepdim=True)
        deviation = (centred.square().mean(dim=-1, keepdim=True) + layer.eps).sqrt()
        return centred / deviation.detach() * layer.weight + layer.bias

    def activation(self, function, x):
        # GELU and SiLU are x times a gate, which is function(x) / x.
        return x * torch.where(x == 0, 0, function(x) / torch.where(x == 0, 1, x)).detach()

    def softmax(self, scores, scaling):
        return super().softmax(scores, scaling).detach()

    def gate(self, gate, x):
        return gate.detach() * x


@register("conservative_lrp", title="Cons. LRP", needs="gradients", source="Ali et al., 2022")
def conservative_lrp(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Conservative propagation: gradient times input at the embedded tokens; attention, norms, gates are constants."""
    check_walk(classifier)

    def attribute(pixel_values, targets):
        return conservative_relevance(classifier, pixel_values, targets)[:, classifier.num_prefix_tokens :]

    return attribute


def conservative_relevance(
    classifier: MaskedClassifier, pixel_values: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Relevance of each embedded token, position included: [B, P + N]; without biases its sum is the target's logit."""
    with torch.no_grad():
        tokens = classifier.embed_tokens(pixel_values)
    with torch.enable_grad():
        tokens = tokens.detach().requires_grad_()
        logits, _ = walk(classifier, tokens, _ConservativeRules())
        gradient = torch.autograd.grad(target_logits(logits, targets).sum(), tokens)[0]
    return (gradient * tokens.detach()).sum(dim=-1)
