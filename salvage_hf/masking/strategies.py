"""The ways of hiding patches from a classifier, one class for each.

A strategy looks at the pixels once (`embed`), whatever the number of subsets, and then answers for any subsets of these
images (`logits`). It holds no model: `embed` gets the classifier, cast to the precision it computes in, and its result
keeps it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import override

from ..modeling import BACKBONES
from ..tensors import two_sides
from ..vision_families import FAMILIES, VisionFamily, embeddings_of, image_logits, on_tokens, position_options
from .packing import PackedClassifier, can_be_packed


@dataclass(frozen=True)
class Embedded:
    """What a strategy keeps of B images.

    Args:
        classifier: the classifier that looked at them, and answers for their subsets.
        visible: the images as they are: tokens [B, P + N, D], the P prefix tokens first, or pixels [B, C, H, W].
        hidden: in the same shape, what replaces hidden patches, for strategies where the subset does not change it.
    """

    classifier: PreTrainedModel
    visible: torch.Tensor
    hidden: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.visible)

    def __getitem__(self, images: torch.Tensor | slice) -> "Embedded":
        hidden = None if self.hidden is None else self.hidden[images]
        return Embedded(self.classifier, self.visible[images], hidden)


class Masking(ABC):
    """A way of hiding patches.

    Args:
        family: the classifier's family, None where it is no known vision transformer.
        patch_size: side of a patch in pixels.
    """

    def __init__(self, family: VisionFamily | None, patch_size: int):
        self.family, self.patch_size = family, patch_size

    @classmethod
    @abstractmethod
    def check(cls, config: Any, family: VisionFamily | None, patch_size: int | None) -> None:
        """Raises ValueError where this way does not work for a classifier; `patch_size` is the user's, or None."""

    @abstractmethod
    def embed(self, classifier: PreTrainedModel, pixel_values: torch.Tensor) -> Embedded:
        """What `logits` needs of the images [B, C, H, W], whatever the subsets are."""

    @abstractmethod
    def num_patches(self, embedded: Embedded) -> int:
        """N of the embedded images."""

    @abstractmethod
    def logits(self, embedded: Embedded, subsets: torch.Tensor, chunk_size: int) -> torch.Tensor:
        """v(S) before softmax or sigmoid.

        Args:
            embedded: what `embed` gave for B images.
            subsets: bool [B, M, N], at least one.
            chunk_size: how many tokens (squares of 16 x 16 pixels, where pixels are replaced) a forward may hold.

        Returns:
            [B, M, K]
        """


def _image_of_row(subsets: torch.Tensor) -> torch.Tensor:
    """The index of the image to which each row of `subsets.flatten(0, 1)` belongs: int64 [B * M]."""
    return torch.arange(len(subsets), device=subsets.device).repeat_interleave(subsets.shape[1])


# Strategies on tokens


class _OnTokens(Masking):
    """Base of the strategies that work on the tokens of a vision transformer."""

    @classmethod
    def _check_patch_size(cls, masking: str, config: Any, patch_size: int | None) -> None:
        own = as_two_sides("patch_size", config.patch_size)
        if patch_size is not None and (patch_size, patch_size) != own:
            raise ValueError(f"patch_size={patch_size} differs from the model's own {own[0]}, got masking={masking!r}")

    def num_prefix_tokens(self, classifier: PreTrainedModel) -> int:
        """P, the number of tokens before the patches."""
        assert self.family is not None  # `check` has refused other models
        return self.family.num_prefix_tokens(classifier.config)

    def embed_tokens(self, classifier: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tokens of whole images with their positions: [B, C, H, W] -> [B, P + N, D]."""
        assert self.family is not None
        return embed_tokens(classifier, self.family, pixel_values)

    @override
    def num_patches(self, embedded: Embedded) -> int:
        return embedded.visible.shape[-2] - self.num_prefix_tokens(embedded.classifier)


def embed_tokens(classifier: PreTrainedModel, family: VisionFamily, pixel_values: torch.Tensor) -> torch.Tensor:
    """Tokens of whole images with positions, prefix tokens first: [B, C, H, W] -> [B, P + N, D].

    ViT and DeiT interpolate their positions for images of another size than the config states, as DINOv2 always does.

    Raises:
        ValueError: where the model has no positions for this image size.
    """
    embeddings = embeddings_of(classifier)
    options = position_options(embeddings, classifier.config, pixel_values)
    height, width = as_two_sides("image_size", classifier.config.image_size)
    if family.fixed_positions and not options and pixel_values.shape[-2:] != (height, width):
        raise ValueError(
            f"pixel_values are {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels; the positions of this "
            f"{classifier.config.model_type} model are for {height} x {width}, and it cannot interpolate them"
        )
    return embeddings(pixel_values, **options)


def _logits(encoder: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """The logits [R, K] of a view on tokens [R, P + s, D], whatever its config wants returned beside them.

    To return attention or hidden states, transformers would put hooks on the blocks, which the classifier shares.
    """
    return encoder(tokens, output_attentions=False, output_hidden_states=False).logits


class DropTokens(_OnTokens):
    """The tokens of hidden patches are removed before the first layer: a forward costs the visible patches only."""

    @classmethod
    @override
    def check(cls, config: Any, family: VisionFamily | None, patch_size: int | None) -> None:
        if not family:
            raise ValueError(
                f"masking='drop' needs one of {', '.join(FAMILIES)}, got a {config.model_type} model; "
                "use 'zero', 'mean' or 'blur'"
            )
        cls._check_patch_size("drop", config, patch_size)

    @override
    def embed(self, classifier: PreTrainedModel, pixel_values: torch.Tensor) -> Embedded:
        return Embedded(classifier, self.embed_tokens(classifier, pixel_values))

    @override
    def logits(self, embedded: Embedded, subsets: torch.Tensor, chunk_size: int) -> torch.Tensor:
        assert self.family is not None
        tokens, classifier = embedded.visible, embedded.classifier
        num_prefix = tokens.shape[1] - subsets.shape[-1]
        rows, image_of_row = subsets.flatten(0, 1), _image_of_row(subsets)  # [B * M, N], [B * M]
        sizes, by_size = rows.sum(dim=-1).sort(stable=True)
        lengths = sizes.cpu() + num_prefix
        packed = PackedClassifier(classifier, self.family) if can_be_packed(classifier) else None
        counts = _rows_per_forward(lengths, chunk_size, of_one_length=packed is None)
        outputs = []
        for part, part_lengths in zip(by_size.split(counts), lengths.split(counts), strict=True):
            seen = nn.functional.pad(rows[part], (num_prefix, 0), value=True)  # [rows, P + N]
            row, token = seen.nonzero().unbind(dim=1)
            packed_tokens = tokens[image_of_row[part][row], token]  # [T, D], one row after the other
            if packed:
                outputs.append(packed.logits(packed_tokens, part_lengths))
            else:
                outputs.append(self._logits_of_one_length(classifier, packed_tokens.unflatten(0, (len(part), -1))))
        # The outputs are sorted by size: put them back into the order of the rows.
        return torch.cat(outputs)[by_size.argsort()].view(*subsets.shape[:2], -1)

    def _logits_of_one_length(self, classifier: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        """The logits [R, K] of rows of one length, [R, P + s, D]; those of no patch are computed once."""
        encoder = on_tokens(classifier)
        if tokens.shape[1] > self.num_prefix_tokens(classifier):
            return _logits(encoder, tokens)
        return self._empty_logits(encoder, tokens[:1]).expand(len(tokens), -1)

    def _empty_logits(self, encoder: PreTrainedModel, prefix_tokens: torch.Tensor) -> torch.Tensor:
        """v of the empty subset, the same for every image: [1, P, D] -> [1, K]. A mean over no patches is zero."""
        assert self.family is not None
        if not self.family.pools_patches:
            return _logits(encoder, prefix_tokens)
        outputs = encoder.base_model(prefix_tokens, output_attentions=False, output_hidden_states=False)
        cls_token = outputs.last_hidden_state[:, 0]
        ((head, _),) = self.family.heads(encoder)
        return head(torch.cat([cls_token, torch.zeros_like(cls_token)], dim=-1))


def _rows_per_forward(lengths: torch.Tensor, most_tokens: int, of_one_length: bool) -> list[int]:
    """How many rows each forward takes: as many as fit into `most_tokens`, at least one.

    Args:
        lengths: int64 [R] on the CPU, the tokens of each row, in ascending order.
        most_tokens: the bound.
        of_one_length: whether the rows of a forward must be equally long.
    """
    if of_one_length:
        values, numbers = lengths.unique_consecutive(return_counts=True)
        parts = (
            torch.arange(number).split(max(1, most_tokens // length))
            for length, number in zip(values.tolist(), numbers.tolist(), strict=True)
        )
        return [len(part) for part in chain.from_iterable(parts)]
    ends, counts, done = lengths.cumsum(0), [], 0
    while done < len(lengths):
        most = most_tokens + (int(ends[done - 1]) if done else 0)
        counts.append(max(1, int(torch.searchsorted(ends, most, right=True)) - done))
        done += counts[-1]
    return counts


# Strategies that put something in the place of hidden patches


class _Replacing(Masking):
    """Base of the strategies that replace hidden patches: every forward has all N patches."""

    @override
    def logits(self, embedded: Embedded, subsets: torch.Tensor, chunk_size: int) -> torch.Tensor:
        rows, image_of_row = subsets.flatten(0, 1), _image_of_row(subsets)
        rows_at_a_time = max(1, chunk_size // self.row_cost(embedded, subsets.shape[-1]))
        outputs = [
            self.logits_of_rows(embedded[image_of_row[part]], rows[part])
            for part in torch.arange(len(rows), device=rows.device).split(rows_at_a_time)
        ]
        return torch.cat(outputs).view(*subsets.shape[:2], -1)

    @abstractmethod
    def row_cost(self, embedded: Embedded, num_patches: int) -> int:
        """How many tokens of `chunk_size` one row takes."""

    @abstractmethod
    def logits_of_rows(self, embedded: Embedded, rows: torch.Tensor) -> torch.Tensor:
        """Logits [R, K] of one subset per image: R embedded images and bool [R, N]."""


class MaskToken(_Replacing, _OnTokens):
    """DINOv2's learned mask token replaces the tokens of hidden patches."""

    @classmethod
    @override
    def check(cls, config: Any, family: VisionFamily | None, patch_size: int | None) -> None:
        if not family or not family.mask_token(config):
            raise ValueError(
                f"masking='mask_token' needs a model with a mask_token (DINOv2), got a {config.model_type} model "
                "without one"
            )
        cls._check_patch_size("mask_token", config, patch_size)

    @override
    def embed(self, classifier: PreTrainedModel, pixel_values: torch.Tensor) -> Embedded:
        tokens = self.embed_tokens(classifier, pixel_values)
        num_patches = tokens.shape[1] - self.num_prefix_tokens(classifier)
        all_masked = torch.ones(len(tokens), num_patches, dtype=torch.bool, device=tokens.device)
        return Embedded(classifier, tokens, embeddings_of(classifier)(pixel_values, bool_masked_pos=all_masked))

    @override
    def row_cost(self, embedded: Embedded, num_patches: int) -> int:
        return embedded.visible.shape[-2]

    @override
    def logits_of_rows(self, embedded: Embedded, rows: torch.Tensor) -> torch.Tensor:
        assert embedded.hidden is not None
        num_prefix = self.num_prefix_tokens(embedded.classifier)
        visible = nn.functional.pad(rows, (num_prefix, 0), value=True)[..., None]  # [R, P + N, 1]
        return _logits(on_tokens(embedded.classifier), torch.where(visible, embedded.visible, embedded.hidden))


class _OnPixels(_Replacing):
    """Base of the strategies that change pixels; they work with any classifier."""

    @classmethod
    @override
    def check(cls, config: Any, family: VisionFamily | None, patch_size: int | None) -> None:
        if patch_size is None and config.model_type not in BACKBONES:
            raise ValueError(
                f"patch_size is needed for a {config.model_type} model, whose config states no patches that could be "
                "hidden: give the side of a patch in pixels, for example patch_size=16"
            )

    @override
    def embed(self, classifier: PreTrainedModel, pixel_values: torch.Tensor) -> Embedded:
        return Embedded(classifier, pixel_values)

    @override
    def num_patches(self, embedded: Embedded) -> int:
        height, width = embedded.visible.shape[-2:]
        return (height // self.patch_size) * (width // self.patch_size)

    @override
    def row_cost(self, embedded: Embedded, num_patches: int) -> int:
        height, width = embedded.visible.shape[-2:]
        return max(num_patches, height * width // 256)  # in models without tokens, 16 x 16 pixels count as one

    @override
    def logits_of_rows(self, embedded: Embedded, rows: torch.Tensor) -> torch.Tensor:
        height, width = embedded.visible.shape[-2:]
        grid = rows.view(-1, 1, height // self.patch_size, width // self.patch_size)
        visible = grid.repeat_interleave(self.patch_size, -2).repeat_interleave(self.patch_size, -1)  # [R, 1, H, W]
        hidden = self.hidden_pixels(embedded, visible)
        return image_logits(embedded.classifier, torch.where(visible, embedded.visible, hidden))

    @abstractmethod
    def hidden_pixels(self, embedded: Embedded, visible: torch.Tensor) -> torch.Tensor:
        """The pixels shown where `visible` [R, 1, H, W] is False, in a shape that broadcasts to [R, C, H, W]."""


class ZeroPixels(_OnPixels):
    """Hidden patches are zeros in normalised pixels: the mean colour of the data the processor was made for."""

    @override
    def hidden_pixels(self, embedded: Embedded, visible: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(embedded.visible)


class MeanPixels(_OnPixels):
    """Hidden patches have the mean colour of the visible ones; zeros where none is visible."""

    @override
    def hidden_pixels(self, embedded: Embedded, visible: torch.Tensor) -> torch.Tensor:
        total = (embedded.visible * visible).sum(dim=(-2, -1), keepdim=True)
        return total / visible.sum(dim=(-2, -1), keepdim=True).clamp_min(1)  # [R, C, 1, 1]


class BlurredPixels(_OnPixels):
    """Hidden patches are blurred: the Gaussian's standard deviation is one patch width, so they stay dimly visible."""

    @override
    def embed(self, classifier: PreTrainedModel, pixel_values: torch.Tensor) -> Embedded:
        with torch.autocast(pixel_values.device.type, enabled=False):  # half precision is for the classifier alone
            return Embedded(classifier, pixel_values, gaussian_blur(pixel_values, self.patch_size))

    @override
    def hidden_pixels(self, embedded: Embedded, visible: torch.Tensor) -> torch.Tensor:
        assert embedded.hidden is not None
        return embedded.hidden


#: `--masking` -> strategy.
STRATEGIES: dict[str, type[Masking]] = {
    "drop": DropTokens,
    "mask_token": MaskToken,
    "zero": ZeroPixels,
    "mean": MeanPixels,
    "blur": BlurredPixels,
}


def as_two_sides(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from a size of images or patches, which is one number where both sides are equal."""
    return two_sides(name, (size, size) if isinstance(size, int) else size)


def gaussian_blur(pixel_values: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur with reflected borders; sigma is in pixels: [B, C, H, W] -> [B, C, H, W]."""
    channels = pixel_values.shape[1]
    radius = min(int(3 * sigma), min(pixel_values.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=pixel_values.device, dtype=pixel_values.dtype)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    kernel = (kernel / kernel.sum()).expand(channels, 1, -1)
    padded = nn.functional.pad(pixel_values, (radius,) * 4, mode="reflect")
    rows = nn.functional.conv2d(padded, kernel[..., None, :], groups=channels)
    return nn.functional.conv2d(rows, kernel[..., :, None], groups=channels)
