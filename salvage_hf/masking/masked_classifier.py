"""A Hugging Face image classifier that can be asked about partial images.

Letters: B images, M subsets per image, N patches, K classes, S a subset (True where a patch is visible).
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from ..data.processors import processed_size
from ..targets import activation
from ..vision_families import FAMILIES, VisionFamily, view_of
from .strategies import STRATEGIES, Embedded, embed_tokens, two_sides


class MaskedClassifier(nn.Module):
    """v(S): what a frozen classifier predicts from the patches in S.

    Args:
        classifier: any image classifier. It is put into eval mode and otherwise left as it is.
        masking: how patches are hidden. "drop" (default for vision transformers) removes their tokens, "mask_token"
            puts DINOv2's mask token in their place; "zero" (normalised pixels), "mean" (mean colour of the visible
            patches) and "blur" (a Gaussian of one patch width, which leaves hidden patches dimly visible) change pixels
            and work with any classifier. The default for other classifiers is "zero".
        patch_size: side of a patch in pixels; the model's own when None. Needed for models without patches.
        image_size: (height, width) that `num_patches` and `grid_size` refer to.
        chunk_size: how many tokens (with pixel strategies: squares of 16 x 16 pixels) a forward may hold; this bounds
            the memory.
        mixed_precision: "bf16" or "fp16" (accelerate's names) computes v(S) in that type, tokens and weights included.
            The classifier itself keeps its own type, because methods take its gradients.

    Raises:
        ValueError: where the classifier has no head, has multiple labels per image, or does not suit the arguments.

    Example:
        >>> v = MaskedClassifier.from_pretrained("org/dinov2-pet")
        >>> subsets = torch.rand(len(pixel_values), 8, v.num_patches) < 0.5
        >>> v.probabilities(pixel_values, subsets)  # [images, 8, classes]
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        masking: str | None = None,
        patch_size: int | None = None,
        image_size: tuple[int, int] | None = None,
        chunk_size: int = 16384,
        mixed_precision: str = "no",
    ):
        super().__init__()
        config = classifier.config
        _check_classifier(classifier)
        family = FAMILIES.get(config.model_type)
        masking = masking or ("drop" if family else "zero")
        if masking not in STRATEGIES:
            raise ValueError(f"masking={masking!r} is not one of {', '.join(STRATEGIES)}")
        if patch_size is not None and patch_size < 1:
            raise ValueError(f"patch_size must be at least 1 pixel, got {patch_size}")
        STRATEGIES[masking].check(config, family, patch_size)
        if mixed_precision not in _DTYPES:
            raise ValueError(f"mixed_precision={mixed_precision!r} is not one of {', '.join(_DTYPES)}")
        self.patch_size: int = config.patch_size if patch_size is None else patch_size
        # DINOv2's config states the size of its position grid (518), not that of its images.
        states_size = not family or family.fixed_positions
        if image_size is None and states_size and getattr(config, "image_size", None):
            image_size = two_sides(config.image_size)
        self.classifier = classifier.eval()
        self.family, self.masking, self.image_size, self.chunk_size = family, masking, image_size, chunk_size
        self.strategy = STRATEGIES[masking](family, self.patch_size)
        self.mixed_precision = mixed_precision

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        masking: str | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        dtype: torch.dtype = torch.float32,
        **kwargs,
    ) -> "MaskedClassifier":
        """Loads a classifier from the Hub or a folder, and freezes it; its image processor gives the image size.

        Args:
            name_or_path: Hub name or folder of an image classifier with its image processor.
            masking: as in the constructor.
            revision: branch, tag or commit on the Hub.
            token: for private and gated models.
            trust_remote_code: whether code from the classifier's repository may run.
            attn_implementation: "sdpa", "eager" or another name of transformers; its default when None.
            dtype: float32 by default, whatever precision the checkpoint is stored in.
            kwargs: further arguments of the constructor.
        """
        source: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
        source = {name: value for name, value in source.items() if value is not None}
        attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
        classifier = AutoModelForImageClassification.from_pretrained(name_or_path, dtype=dtype, **attention, **source)
        classifier.requires_grad_(False)
        if "image_size" not in kwargs:
            kwargs["image_size"] = processed_size(AutoImageProcessor.from_pretrained(name_or_path, **source))
        return cls(classifier, masking=masking, **kwargs)

    # Facts about the classifier

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

    def token_family(self) -> VisionFamily:
        """The classifier's family; raises ValueError where it has none, or `patch_size` is not that of its tokens."""
        if self.family is None:
            raise ValueError(f"a {self.config.model_type} model has no tokens; use one of {', '.join(FAMILIES)}")
        if self.patch_size != self.config.patch_size:
            raise ValueError(f"tokens are patches of {self.config.patch_size} pixels, got patch_size={self.patch_size}")
        return self.family

    @property
    def num_prefix_tokens(self) -> int:
        """P, the number of tokens before the patches: CLS, registers, distillation."""
        return self.token_family().num_prefix_tokens(self.config)

    def embed_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The tokens of whole images, with positions and prefix tokens first: [B, C, H, W] -> [B, P + N, D]."""
        return embed_tokens(self.classifier, self.token_family(), pixel_values)

    # v(S)

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

    def embed(self, pixel_values: torch.Tensor) -> Embedded:
        """What `logits_of` needs of the images [B, C, H, W], computed once for any number of subsets."""
        if pixel_values.ndim != 4:
            raise ValueError(f"pixel_values must be [B, C, H, W], got shape {tuple(pixel_values.shape)}")
        self.patch_grid(pixel_values)
        with self._autocast():
            return self.strategy.embed(self._in_precision(), pixel_values)

    def logits_of(self, embedded: Embedded, subsets: torch.Tensor) -> torch.Tensor:
        """As `forward`, from what `embed` returned for B images: subsets bool [B, M, N] -> [B, M, K]."""
        if subsets.dtype != torch.bool or subsets.ndim != 3 or subsets.shape[0] != len(embedded):
            raise ValueError(
                f"subsets must be boolean [B, M, N] with B = {len(embedded)}, "
                f"got {subsets.dtype} {tuple(subsets.shape)}"
            )
        num_patches = self.strategy.num_patches(embedded)
        if subsets.shape[-1] != num_patches:
            raise ValueError(f"subsets have {subsets.shape[-1]} patches, the images have {num_patches}")
        if subsets.numel() == 0:
            return embedded.visible.new_zeros(*subsets.shape[:2], self.num_labels)
        subsets = subsets.to(embedded.visible.device)
        with self._autocast():
            return self.strategy.logits(embedded, subsets, self.chunk_size)

    def _autocast(self):
        dtype = _DTYPES[self.mixed_precision]
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def _in_precision(self) -> PreTrainedModel:
        """The classifier with its weights cast once for all subsets of some images; autocast casts them per forward."""
        dtype = _DTYPES[self.mixed_precision]
        return _cast(self.classifier, dtype) if dtype else self.classifier


#: accelerate's name of a precision -> type of the forwards; around fp8 layers accelerate computes in bfloat16 too.
_DTYPES = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}


def _cast(module: Any, dtype: torch.dtype) -> Any:
    """A view of a module with its floating-point parameters and buffers in another type; the module keeps its own."""

    def cast(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor

    view = view_of(module)
    for tensors in (view._parameters, view._buffers):
        tensors.update({name: cast(tensor) for name, tensor in tensors.items()})
    view._modules.update({name: _cast(part, dtype) for name, part in module._modules.items() if part is not None})
    return view


def _check_classifier(classifier: PreTrainedModel) -> None:
    """Raises ValueError where a model has no classification head, or is a multi-label classifier."""
    mapped: Any = AutoModelForImageClassification._model_mapping.get(type(classifier.config), ())
    names = {cls.__name__ for cls in (mapped if isinstance(mapped, (tuple, list)) else (mapped,))}
    if type(classifier).__name__ not in names:
        raise ValueError(
            f"classifier is a {type(classifier).__name__}, which has no classification head; "
            "load it with AutoModelForImageClassification"
        )
    if classifier.config.problem_type == "multi_label_classification":
        raise ValueError("problem_type is 'multi_label_classification'; Salvage explains one softmax or one sigmoid")
