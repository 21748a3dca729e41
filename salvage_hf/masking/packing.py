"""Rows of different lengths in one sequence, so that subsets of all sizes pass a vision transformer together.

All its layers but attention look at one token at a time, so the tokens of R rows may stand one after another in one
sequence [1, T, D]; attention is bounded by the rows. Where the device has a kernel for rows of any lengths, one call
computes the attention of them all; elsewhere each length takes one call.
"""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..vision_families import VisionFamily, on_tokens, with_attention, with_submodule

try:  # since torch 2.10
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None  # type: ignore[assignment]

#: The name of this attention among transformers' own.
PACKED_ATTENTION = "salvage_packed_rows"


class PackedRows:
    """Where each row of a packed sequence begins and ends.

    Args:
        lengths: int64 [R] on the CPU, in ascending order: the tokens of each row, its prefix tokens first.
        num_prefix: P, the number of prefix tokens of a row.
        device: where the sequence is.
    """

    def __init__(self, lengths: torch.Tensor, num_prefix: int, device: torch.device):
        self.num_prefix, self.device, self.lengths = num_prefix, device, lengths
        values, counts = lengths.unique_consecutive(return_counts=True)
        #: (length, number of rows of this length), in their order.
        self.groups = list(zip(values.tolist(), counts.tolist(), strict=True))
        self.longest = self.groups[-1][0]
        self.bounds = nn.functional.pad(lengths.cumsum(0), (1, 0))  # [R + 1]: row r is bounds[r] to bounds[r + 1]
        self.bounds_on_device = self.bounds.to(device, torch.int32)
        self.num_attentions = 0  # how often attention was computed

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, kernel: Callable | None
    ) -> torch.Tensor:
        """Attention within each row: query, key and value [T, heads, D / heads] -> [T, heads, D / heads].

        `kernel` has the arguments of `varlen_attn`; without one, each length of rows takes one call.
        """
        self.num_attentions += 1
        if kernel:
            bounds = self.bounds_on_device
            return kernel(query, key, value, bounds, bounds, self.longest, self.longest)
        outputs, start = [], 0
        for length, count in self.groups:
            end = start + count * length
            query_rows, key_rows, value_rows = (
                states[start:end].unflatten(0, (count, length)).transpose(1, 2) for states in (query, key, value)
            )
            attended = nn.functional.scaled_dot_product_attention(query_rows, key_rows, value_rows, scale=scaling)
            outputs.append(attended.transpose(1, 2).flatten(0, 1))
            start = end
        return torch.cat(outputs)

    def as_head_reads(self, hidden_states: torch.Tensor, pools_patches: bool) -> torch.Tensor:
        """What a head reads of each row, from the last hidden states [1, T, D]: [R, P, D] or [R, P + 1, D].

        The prefix tokens; where the head takes the mean of the patches, this mean stands behind them as if the row had
        one patch. The mean of no patches is zero.
        """
        starts = self.bounds[:-1, None]
        prefix = hidden_states[0, (starts + torch.arange(self.num_prefix)).to(self.device)]
        if not pools_patches:
            return prefix
        place_in_row = torch.arange(hidden_states.shape[1]) - starts[:, 0].repeat_interleave(self.lengths)
        patches = (place_in_row >= self.num_prefix).nonzero()[:, 0].to(self.device)
        offsets = (self.bounds[:-1] - self.num_prefix * torch.arange(len(self.lengths))).to(self.device)
        means = nn.functional.embedding_bag(patches, hidden_states[0], offsets, mode="mean")
        return torch.cat([prefix, means[:, None]], dim=1)


def packed_attention(module, query, key, value, attention_mask, scaling, *, packed_rows: PackedRows, **kwargs):
    """Attention for transformers' `AttentionInterface`: query, key and value [1, heads, T, D / heads].

    Returns:
        The attended values [1, T, heads, D / heads], and None in place of attention weights.
    """
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    kernel = varlen_attn if _has_kernel(query, scaling) else None
    return packed_rows.attention(query, key, value, scaling, kernel)[None], None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)


def _has_kernel(query: torch.Tensor, scaling: float) -> bool:
    """Whether `varlen_attn` takes these queries [T, heads, D / heads]: it is torch's interface to flash attention."""
    head_size = query.shape[-1]
    return (
        varlen_attn is not None
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and head_size % 8 == 0
        and head_size <= 256
        and scaling == head_size**-0.5  # in torch 2.10 it can have no other
    )


#: Modules of torch that treat every token by itself.
_OF_SINGLE_TOKENS = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity, nn.ModuleList, nn.GELU, nn.SiLU, nn.ReLU)

#: transformers' names of plain attention; others may be anything.
_PLAIN_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def can_be_packed(classifier: PreTrainedModel) -> bool:
    """Whether no part of a classifier can look at rows of its own: then packing them changes no result.

    All that tokens pass after they are embedded must be as transformers and torch have written it, without hooks, with
    plain attention, and in eval mode, because dropped paths and attention weights are drawn per row. The head sees
    each row as a row either way.
    """
    base_model = classifier.base_model
    passed = (part.modules() for name, part in base_model.named_children() if name != "embeddings")
    return all(map(_leaves_rows_alone, chain([classifier, base_model], *passed)))


def _leaves_rows_alone(module: nn.Module) -> bool:
    if module.training or "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return False
    if type(module) in _OF_SINGLE_TOKENS:
        return True
    origins = type(module).__module__, type(module).forward.__module__  # a class may be given another `forward`
    if not all(origin.startswith("transformers.") for origin in origins) or getattr(module, "is_causal", False):
        return False
    config = getattr(module, "config", None)
    return config is None or config._attn_implementation in _PLAIN_ATTENTION


class PackedClassifier:
    """A view of a classifier that takes rows of tokens in one sequence.

    Args:
        classifier: one that `can_be_packed`.
        family: its family.
    """

    def __init__(self, classifier: PreTrainedModel, family: VisionFamily):
        self.family, self.num_prefix = family, family.num_prefix_tokens(classifier.config)
        self.num_blocks, self.dtype = len(family.block_list(classifier)), classifier.dtype
        view, path = with_attention(on_tokens(classifier), PACKED_ATTENTION), classifier.base_model_prefix
        self.base_model = _OfPackedRows(view.get_submodule(path), family.pools_patches)
        self.view = with_submodule(view, path, self.base_model)

    def logits(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The logits [R, K] of rows of tokens.

        Args:
            tokens: [T, D], the embedded tokens of all rows, one row after the other, each with its prefix tokens first.
            lengths: int64 [R] on the CPU, the tokens of each row, in ascending order.
        """
        rows = self.base_model.rows = PackedRows(lengths, self.num_prefix, tokens.device)
        with self._precision(tokens):
            logits = self.view(tokens[None], output_attentions=False, output_hidden_states=False).logits
        if rows.num_attentions != self.num_blocks:
            raise RuntimeError(
                f"{rows.num_attentions} of {self.num_blocks} blocks took their attention from transformers' "
                "AttentionInterface; the others compute it in a way that masking='drop' does not know"
            )
        return logits

    def _precision(self, tokens: torch.Tensor):
        """Without autocast where weights and tokens have its type already.

        It would write every norm's result in float32, for layers that round it to that type again.
        """
        is_half = tokens.dtype in (torch.float16, torch.bfloat16) and self.dtype == tokens.dtype
        return torch.autocast(tokens.device.type, enabled=False) if is_half else nullcontext()


class _OfPackedRows(nn.Module):
    """Stands in the place of a base model, and gives the head what it reads of each row as a batch of rows."""

    rows: PackedRows  # set before each forward

    def __init__(self, base_model: nn.Module, pools_patches: bool):
        super().__init__()
        self.base_model, self.pools_patches = base_model, pools_patches

    def forward(self, tokens: torch.Tensor, *args, **kwargs) -> BaseModelOutputWithPooling:
        outputs = self.base_model(tokens, packed_rows=self.rows, output_attentions=False, output_hidden_states=False)
        states = self.rows.as_head_reads(outputs.last_hidden_state, self.pools_patches)
        return BaseModelOutputWithPooling(last_hidden_state=states)  # type: ignore[arg-type]
