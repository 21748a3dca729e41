"""v(S): a frozen image classifier on images of which only a subset of patches is visible.

Token dropping removes the tokens of hidden patches before the first layer, so a forward costs the visible patches
only; pixels are embedded once, whatever the number of subsets. Letters: B images, M subsets per image, N patches,
K classes, S a subset (True where visible).
"""

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

#: (pixel_values [B, C, H, W], subsets bool [B, M, N]) -> probabilities [B, M, K]
ValueFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

MASKINGS = ("drop", "mask_token", "zero", "mean", "blur")


class _Family(NamedTuple):
    """What differs between the vision transformers whose tokens can be dropped."""

    num_prefix_tokens: Callable[[Any], int]  # CLS, registers, distillation: they stand before the patches
    pools_patches: bool  # the head sees [CLS, mean of patches] rather than CLS alone
    fixed_positions: bool  # refuses every image size but the configured one


_FAMILIES = {
    "dinov2": _Family(lambda config: 1, pools_patches=True, fixed_positions=False),
    "dinov2_with_registers": _Family(lambda config: 1 + config.num_register_tokens, True, fixed_positions=False),
    "vit": _Family(lambda config: 1, pools_patches=False, fixed_positions=True),
    "deit": _Family(lambda config: 2, pools_patches=False, fixed_positions=True),
}


class _TokensAsInput(nn.Module):
    """Stands where a model's embeddings stood: what the model takes for pixels are embedded tokens already."""

    def __init__(self, embeddings: nn.Module):
        super().__init__()
        self.patch_embeddings = embeddings.patch_embeddings  # asked for its dtype by ViT

    def forward(self, tokens: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return tokens


_Module = TypeVar("_Module", bound=nn.Module)


def with_submodule(module: _Module, path: str, submodule: nn.Module) -> _Module:
    """A shallow copy of a module (same parameters, same other submodules) with the one at a dotted path exchanged."""
    name, _, rest = path.partition(".")
    twin = copy.copy(module)
    twin._modules = {
        **module._modules,
        name: with_submodule(module.get_submodule(name), rest, submodule) if rest else submodule,
    }
    return twin


def on_tokens(classifier: PreTrainedModel) -> nn.Module:
    """A view of a vision transformer that takes embedded tokens [B, P + N, D] for pixels."""
    path = f"{classifier.base_model_prefix}.embeddings"
    return with_submodule(classifier, path, _TokensAsInput(classifier.get_submodule(path)))


class MaskedClassifier(nn.Module):
    """A Hugging Face image classifier that can be asked about partial images.

    Args:
        classifier: any image classifier. It is put into eval mode and otherwise left as it is.
        masking: how patches are hidden. "drop" (default for vision transformers) removes their tokens, "mask_token"
            puts DINOv2's mask token in their place; "zero" (normalised pixels), "mean" (mean colour of the visible
            patches) and "blur" (a Gaussian of one patch width, through which hidden pixels shine) change pixels and
            work with any classifier. The default for other classifiers is "zero".
        patch_size: side of a patch in pixels; the model's own when None. Needed for models without patches.
        image_size: (height, width) that `num_patches` and `grid_size` refer to.
        chunk_size: how many tokens (with pixel strategies: squares of 16 x 16 pixels) a forward may hold: the bound on
            memory.
        autocast_dtype: v(S) is computed under autocast to this type, say torch.bfloat16; the classifier itself keeps
            its own precision.
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        masking: str | None = None,
        patch_size: int | None = None,
        image_size: tuple[int, int] | None = None,
        chunk_size: int = 16384,
        autocast_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        config = classifier.config
        if type(classifier).__name__ not in _classifier_names(config):
            raise ValueError(
                f"classifier is a {type(classifier).__name__}, which has no classification head; "
                "load it with AutoModelForImageClassification"
            )
        if config.problem_type == "multi_label_classification":
            raise ValueError(
                "problem_type is 'multi_label_classification'; Salvage explains one softmax or one sigmoid"
            )
        family = _FAMILIES.get(config.model_type)
        masking = masking or ("drop" if family else "zero")
        if masking not in MASKINGS:
            raise ValueError(f"masking={masking!r} is not one of {', '.join(MASKINGS)}")
        if masking == "drop" and not family:
            raise ValueError(
                f"masking='drop' needs one of {', '.join(_FAMILIES)}, got a {config.model_type} model; "
                "use 'zero', 'mean' or 'blur'"
            )
        if masking == "mask_token" and not config.model_type.startswith("dinov2"):
            raise ValueError(f"masking='mask_token' needs a DINOv2 model, got {config.model_type}")
        if masking == "mask_token" and not getattr(config, "use_mask_token", True):
            raise ValueError("masking='mask_token' needs a mask_token, got a classifier with use_mask_token=False")
        own_patch_size = config.patch_size if family else None
        if masking in ("drop", "mask_token") and patch_size not in (None, own_patch_size):
            raise ValueError(
                f"patch_size={patch_size} differs from the model's own {own_patch_size}, got masking={masking!r}"
            )
        patch_size = patch_size or own_patch_size
        if patch_size is None:
            raise ValueError(f"patch_size is needed for a {config.model_type} model, for example patch_size=16")
        # DINOv2's config names the size of its position grid (518), whatever size its images have.
        if image_size is None and not (family and not family.fixed_positions) and getattr(config, "image_size", None):
            image_size = _two_sides(config.image_size)
        self.classifier = classifier.eval()
        self.masking, self.patch_size, self.image_size, self.chunk_size = masking, patch_size, image_size, chunk_size
        self.autocast_dtype = autocast_dtype
        self._family = family
        # A second view of the same model; not registered, or its parameters would be saved and moved twice.
        self._tower = []
        if masking in ("drop", "mask_token"):
            self._tower.append(on_tokens(classifier))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, masking: str | None = None, dtype: torch.dtype = torch.float32, **kwargs
    ) -> "MaskedClassifier":
        """Loads a frozen classifier from the Hub or a folder; its processor says for which image size.

        Args:
            name_or_path: Hub name or folder of an image classifier with its image processor.
            masking, kwargs: as in the constructor.
            dtype: float32 by default, whatever precision the checkpoint is stored in.
        """
        classifier = AutoModelForImageClassification.from_pretrained(name_or_path, dtype=dtype)
        classifier.requires_grad_(False)
        if "image_size" not in kwargs:
            kwargs["image_size"] = processed_size(AutoImageProcessor.from_pretrained(name_or_path))
        return cls(classifier, masking=masking, **kwargs)

    @property
    def config(self):
        """The classifier's config."""
        return self.classifier.config

    @property
    def num_labels(self) -> int:
        """K; 1 means one sigmoid output."""
        return self.config.num_labels

    @property
    def device(self) -> torch.device:
        """Where the classifier lies."""
        return self.classifier.device

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of patches at the processor's image size."""
        if self.image_size is None:
            raise ValueError("image_size is unknown: neither the processor nor the config states it; pass image_size=")
        return self._grid(*self.image_size)

    @property
    def num_patches(self) -> int:
        """N at the processor's image size."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_prefix_tokens(self) -> int:
        """P, the tokens before the patches: CLS, registers, distillation."""
        return self.check_tokens().num_prefix_tokens(self.config)

    def check_tokens(self) -> _Family:
        """The classifier's family; ValueError where it is no vision transformer of a known one with these patches."""
        if self._family is None:
            raise ValueError(f"a {self.config.model_type} model has no tokens; needed is one of {', '.join(_FAMILIES)}")
        if self.patch_size != self.config.patch_size:
            raise ValueError(f"tokens are patches of {self.config.patch_size} pixels, got patch_size={self.patch_size}")
        return self._family

    @property
    def pools_patches(self) -> bool:
        """Whether the head sees the mean of the patches beside CLS, as DINOv2's does."""
        return bool(self._family and self._family.pools_patches)

    def patch_grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """(rows, columns) of patches of these images [B, C, H, W]."""
        return self._grid(*pixel_values.shape[-2:])

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"an image of {height} x {width} pixels is not divided by patches of {self.patch_size} x "
                f"{self.patch_size}; resize it to a multiple of {self.patch_size}"
            )
        return height // self.patch_size, width // self.patch_size

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What of the images is needed for any number of subsets.

        With "drop" their tokens with positions [B, P + N, D], the P prefix tokens first; with "mask_token" these and
        the tokens of hidden patches [B, 2, P + N, D]; with "blur" the blurred pixels and the pixels [B, 2, C, H, W];
        the other pixel strategies need the pixels themselves.
        """
        if pixel_values.ndim != 4:
            raise ValueError(f"pixel_values must be [B, C, H, W], got shape {tuple(pixel_values.shape)}")
        self.patch_grid(pixel_values)
        if self.masking == "blur":
            return torch.stack([gaussian_blur(pixel_values, self.patch_size), pixel_values], dim=1)
        if not self._tower:
            return pixel_values
        tokens = self.embed_tokens(pixel_values)
        if self.masking == "drop":
            return tokens
        everything = torch.ones(
            pixel_values.shape[0], self._num_patches_of(tokens), dtype=torch.bool, device=tokens.device
        )
        hidden = self.classifier.base_model.embeddings(pixel_values, bool_masked_pos=everything)
        return torch.stack([hidden, tokens], dim=1)

    def embed_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The tokens of whole images with positions, prefix tokens first: [B, C, H, W] -> [B, P + N, D]."""
        height, width = _two_sides(self.config.image_size)
        if self._family and self._family.fixed_positions and pixel_values.shape[-2:] != (height, width):
            raise ValueError(
                f"pixel_values are {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels; the positions of this "
                f"{self.config.model_type} model are for {height} x {width}"
            )
        return self.classifier.base_model.embeddings(pixel_values)

    def _num_patches_of(self, tokens: torch.Tensor) -> int:
        return tokens.shape[-2] - self.num_prefix_tokens

    def forward(self, pixel_values: torch.Tensor, subsets: torch.Tensor) -> torch.Tensor:
        """As `logits`, with gradients: for fine-tuning a classifier on masked images."""
        return self.logits_of(self.embed(pixel_values), subsets)

    @torch.no_grad()
    def logits(self, pixel_values: torch.Tensor, subsets: torch.Tensor) -> torch.Tensor:
        """v(S) before softmax or sigmoid.

        Args:
            pixel_values: [B, C, H, W], processed images whose sides are multiples of the patch size.
            subsets: bool [B, M, N], True where visible; the empty subset is valid.

        Returns:
            [B, M, K]
        """
        return self(pixel_values, subsets)

    def probabilities(self, pixel_values: torch.Tensor, subsets: torch.Tensor) -> torch.Tensor:
        """v(S) [B, M, K]: softmax of `logits`, or sigmoid with one label. Arguments as in `logits`."""
        return activation(self.logits(pixel_values, subsets))

    def logits_of(self, embedded: torch.Tensor, subsets: torch.Tensor) -> torch.Tensor:
        """`logits` for images that `embed` has seen already: [B, ...] and bool [B, M, N] -> [B, M, K]."""
        if subsets.dtype != torch.bool or subsets.ndim != 3 or subsets.shape[0] != embedded.shape[0]:
            raise ValueError(
                f"subsets must be boolean [B, M, N] with B = {embedded.shape[0]}, "
                f"got {subsets.dtype} {tuple(subsets.shape)}"
            )
        if self._tower:
            num_patches = self._num_patches_of(embedded)
        else:
            num_patches = (embedded.shape[-2] // self.patch_size) * (embedded.shape[-1] // self.patch_size)
        if subsets.shape[-1] != num_patches:
            raise ValueError(f"subsets have {subsets.shape[-1]} patches, the images have {num_patches}")
        if subsets.numel() == 0:
            return embedded.new_zeros(*subsets.shape[:2], self.num_labels)
        subsets = subsets.to(embedded.device)
        with torch.autocast(embedded.device.type, self.autocast_dtype) if self.autocast_dtype else nullcontext():
            if self.masking == "drop":
                return self._dropped(embedded, subsets)
            return self._replaced(embedded, subsets)

    def _dropped(self, tokens: torch.Tensor, subsets: torch.Tensor) -> torch.Tensor:
        batch_size, num_subsets, num_patches = subsets.shape
        num_prefix = tokens.shape[1] - num_patches
        rows = subsets.flatten(0, 1)  # [B * M, N]
        image_of_row = torch.arange(batch_size, device=rows.device).repeat_interleave(num_subsets)
        # Rows of one size make one dense rectangle; sorting by size brings them together.
        row_sizes, by_size = rows.sum(dim=-1).sort(stable=True)
        sizes, counts = row_sizes.unique_consecutive(return_counts=True)
        prefix = torch.arange(num_prefix, device=rows.device)
        outputs = []
        for size, group in zip(sizes.tolist(), by_size.split(counts.tolist()), strict=True):
            if size == 0:
                outputs.append(self._empty_logits(tokens[:1, :num_prefix]).expand(len(group), -1))
                continue
            for part in group.split(max(1, self.chunk_size // (num_prefix + size))):
                # Visible patches first, in raster order; nonzero would wait for the device to count them.
                visible = rows[part].byte().argsort(dim=-1, descending=True, stable=True)[:, :size] + num_prefix
                visible = torch.cat([prefix.expand(len(part), -1), visible], dim=1)  # [rows, P + s]
                seen = tokens[image_of_row[part, None], visible]  # [rows, P + s, D]
                outputs.append(self._tower[0](seen).logits)
        logits = torch.cat(outputs)
        # rows came out sorted by size: put each back where it was
        return logits[by_size.argsort()].view(batch_size, num_subsets, -1)

    def _empty_logits(self, prefix_tokens: torch.Tensor) -> torch.Tensor:
        """v of the empty subset, the same for every image: [1, P, D] -> [1, K]. A mean over no patches is zero."""
        if not self.pools_patches:
            return self._tower[0](prefix_tokens).logits
        cls = getattr(self._tower[0], self.classifier.base_model_prefix)(prefix_tokens).last_hidden_state[:, 0]
        return self.classifier.classifier(torch.cat([cls, torch.zeros_like(cls)], dim=-1))

    def _replaced(self, embedded: torch.Tensor, subsets: torch.Tensor) -> torch.Tensor:
        batch_size, num_subsets, num_patches = subsets.shape
        rows = subsets.flatten(0, 1)
        image_of_row = torch.arange(batch_size, device=rows.device).repeat_interleave(num_subsets)
        outputs = []
        if self.masking == "mask_token":
            row_length = embedded.shape[-2]
        else:  # models without tokens: what 16 x 16 pixels cost stands for one
            row_length = max(num_patches, embedded.shape[-2] * embedded.shape[-1] // 256)
        for part in torch.arange(len(rows), device=rows.device).split(max(1, self.chunk_size // row_length)):
            images = image_of_row[part]
            if self.masking == "mask_token":
                hidden, seen = embedded[images].unbind(1)
                num_prefix = seen.shape[1] - num_patches
                visible = nn.functional.pad(rows[part], (num_prefix, 0), value=True)[..., None]
                outputs.append(self._tower[0](torch.where(visible, seen, hidden)).logits)
            else:
                visible = self._pixel_mask(rows[part], embedded)
                if self.masking == "blur":
                    hidden, seen = embedded[images].unbind(1)
                else:
                    seen = embedded[images]
                    hidden = torch.zeros_like(seen)
                if self.masking == "mean":
                    total = (seen * visible).sum(dim=(-2, -1), keepdim=True)
                    hidden = total / visible.sum(dim=(-2, -1), keepdim=True).clamp_min(1) + hidden
                outputs.append(self.classifier(torch.where(visible, seen, hidden)).logits)
        return torch.cat(outputs).view(batch_size, num_subsets, -1)

    def _pixel_mask(self, subsets: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """bool [R, N] -> bool [R, 1, H, W]"""
        height, width = pixel_values.shape[-2:]
        grid = subsets.view(-1, 1, height // self.patch_size, width // self.patch_size)
        return grid.repeat_interleave(self.patch_size, -2).repeat_interleave(self.patch_size, -1)


def _two_sides(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from a config's image_size, which is one number where both sides are alike."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _classifier_names(config) -> set[str]:
    names: Any = AutoModelForImageClassification._model_mapping.get(type(config), ())
    return {cls.__name__ for cls in (names if isinstance(names, (tuple, list)) else (names,))}


def activation(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities [..., K] in float32, whatever the logits are in: softmax, or sigmoid where K = 1."""
    return logits.float().sigmoid() if logits.shape[-1] == 1 else logits.float().softmax(dim=-1)


def target_probability(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The probability of each image's target class.

    Args:
        probabilities: [B, M, K]; with K = 1 that of label 1.
        targets: int64 [B], a class, or 0 or 1 with one label (0 is explained by 1 - p).

    Returns:
        [B, M]
    """
    if probabilities.shape[-1] == 1:
        present = probabilities[..., 0]
        return torch.where(targets[:, None] == 1, present, 1 - present)
    return probabilities.gather(-1, targets[:, None, None].expand(-1, probabilities.shape[1], 1))[..., 0]


def target_attributions(attributions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The map of each image's target class: [B, N, K] and [B] -> [B, N]. With one label, 0 changes the sign."""
    if attributions.shape[-1] == 1:
        return attributions[..., 0] * (2 * targets[:, None] - 1)
    return attributions.gather(-1, targets[:, None, None].expand(-1, attributions.shape[1], 1))[..., 0]


def predicted_targets(logits: torch.Tensor) -> torch.Tensor:
    """The predicted class of each image, [B, K] -> int64 [B]; with one label 0 or 1."""
    return (logits[:, 0] > 0).long() if logits.shape[-1] == 1 else logits.argmax(dim=-1)


def check_targets(targets: torch.Tensor, num_labels: int) -> None:
    """Raises ValueError where a target is no class of the classifier."""
    highest = max(num_labels, 2) - 1
    if targets.numel() and (targets.min() < 0 or targets.max() > highest):
        wrong = targets[(targets < 0) | (targets > highest)][0].item()
        raise ValueError(f"targets contain {wrong}; the classifier's labels are 0..{highest}")


def as_value_function(
    model: "MaskedClassifier | PreTrainedModel | str | ValueFunction",
) -> "MaskedClassifier | ValueFunction":
    """v from whatever a user has.

    Args:
        model: a `MaskedClassifier`, a Hugging Face image classifier, its name or folder, or any function
            (pixel_values [B, C, H, W], subsets [B, M, N]) -> probabilities [B, M, K].
    """
    if isinstance(model, (str, os.PathLike)):
        return MaskedClassifier.from_pretrained(str(model))
    if isinstance(model, PreTrainedModel):
        return MaskedClassifier(model)
    if not callable(model):
        raise TypeError(f"model must be a classifier, its name or a function, got {type(model).__name__}")
    return model


def value_at(v: "MaskedClassifier | ValueFunction", pixel_values: torch.Tensor) -> Callable[..., torch.Tensor]:
    """v at fixed images, embedded once for all calls: subsets [B, M, N] -> probabilities [B, M, K].

    A second argument selects some of the images, in the form of an index.
    """
    if not isinstance(v, MaskedClassifier):
        return lambda subsets, images=slice(None): v(pixel_values[images], subsets)
    with torch.no_grad():
        embedded = v.embed(pixel_values.to(v.device))

    @torch.no_grad()
    def probabilities(subsets: torch.Tensor, images: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        return activation(v.logits_of(embedded[images], subsets))

    return probabilities


def digest(*parts: str | bytes) -> str:
    """A short name of some content, the same in every process."""
    joined = hashlib.sha256()
    for part in parts:
        joined.update(part.encode() if isinstance(part, str) else part)
    return joined.hexdigest()[:16]


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's weights: results belong to weights, not to the folder these lay in."""
    weights = sorted(model.state_dict().items())
    return digest(*(part for name, w in weights for part in (name, w.detach().float().cpu().numpy().tobytes())))


def processed_size(processor) -> tuple[int, int] | None:
    """(height, width) of the images an image processor returns, None where it depends on the image."""
    size = processor.size or {}
    if getattr(processor, "do_center_crop", False):
        size = processor.crop_size
    if "height" in size and "width" in size:
        return size["height"], size["width"]
    return None


def gaussian_blur(pixel_values: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur with reflected borders: [B, C, H, W] -> [B, C, H, W]."""
    channels = pixel_values.shape[1]
    radius = min(int(3 * sigma), min(pixel_values.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=pixel_values.device, dtype=pixel_values.dtype)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    kernel = (kernel / kernel.sum()).expand(channels, 1, -1)
    padded = nn.functional.pad(pixel_values, (radius,) * 4, mode="reflect")
    rows = nn.functional.conv2d(padded, kernel[..., None, :], groups=channels)
    return nn.functional.conv2d(rows, kernel[..., :, None], groups=channels)
