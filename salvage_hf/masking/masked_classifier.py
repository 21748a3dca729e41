"""A Hugging Face image classifier that can be asked about partial images.

Letters: B images, M subsets per image, N patches, K classes, S a subset (True where a patch is visible).
"""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..data.processors import processed_size
from ..pretrained import load_model, load_processor
from ..targets import activation
from ..tensors import described, is_dense, one_of, processed_images, whole_number
from ..vision_families import (
    FAMILIES,
    VisionFamily,
    execution_device,
    in_dtype,
    stated_image_size,
    with_submodule,
)
from .strategies import STRATEGIES, Embedded, Masking, as_two_sides, embed_tokens

logger = logging.getLogger(__name__)


class MaskedClassifier(nn.Module):
    """v(S): what a frozen classifier predicts from the patches in S.

    Args:
        classifier: any image classifier, also compiled or in `DataParallel`. It is put into eval mode and otherwise
            left as it is. What is exchanged in it later counts from then on.
        masking: how patches are hidden. "drop" removes their tokens, "mask_token" puts DINOv2's mask token in their
            place; "zero" (normalised pixels), "mean" (mean colour of the visible patches) and "blur" (a Gaussian of one
            patch width, which leaves hidden patches dimly visible) change pixels and work with any classifier. When
            None it is "drop" where that is exact, for the patches of `FAMILIES`, and "zero" elsewhere; the log says it.
        patch_size: side of a patch in pixels; when None the model's own. Needed for models whose tokens are not patches
            of one size (`BACKBONES` are of one).
        image_size: (height, width) that `num_patches` and `grid_size` refer to, or one number for both.
        chunk_size: how many tokens (with pixel strategies: squares of 16 x 16 pixels) a forward may hold; this bounds
            the memory. `tokens_that_fit` when None.
        mixed_precision: "bf16" or "fp16" (accelerate's names) computes v(S) in that type, tokens and weights included.
            The classifier itself keeps its own type, because methods take its gradients.
        processor: its image processor, so that an explainer can be checked against it; not used otherwise.

    Raises:
        TypeError: where the classifier is no model of transformers.
        ValueError: where the classifier has no head, has multiple labels per image or none (regression), or does not
            suit the arguments.

    Examples:
        >>> v = MaskedClassifier.from_pretrained("org/dinov2-pet")
        >>> subsets = torch.rand(len(pixel_values), 8, v.num_patches) < 0.5
        >>> v.probabilities(pixel_values, subsets)  # [images, 8, classes]
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        masking: str | None = None,
        patch_size: int | None = None,
        image_size: int | Sequence[int] | None = None,
        chunk_size: int | None = None,
        mixed_precision: str = "no",
        processor: Any = None,
    ):
        super().__init__()
        if isinstance(classifier, nn.Module):
            classifier = extract_model_from_parallel(classifier, keep_fp32_wrapper=True, keep_torch_compile=False)
        check_classifier(classifier)
        config = classifier.config
        family = FAMILIES.get(config.model_type)
        patch_size = None if patch_size is None else whole_number("patch_size", patch_size, 1)
        is_chosen = masking is None
        if masking is None:
            masking = "drop" if family and (patch_size is None or _are_own(config, patch_size)) else "zero"
        strategy = STRATEGIES[one_of("masking", masking, STRATEGIES)]
        strategy.check(config, family, patch_size)
        self.patch_size: int = _square_side(config.patch_size) if patch_size is None else patch_size
        if is_chosen:
            logger.info(
                "masking=%r: hidden patches of %d x %d pixels %s.",
                masking,
                self.patch_size,
                self.patch_size,
                "are left out of the tokens" if masking == "drop" else "become zeros in normalised pixels",
            )
        # DINOv2's config states the size of its position grid (518), not that of its images.
        states_size = not family or family.fixed_positions
        if image_size is None and states_size:
            image_size = stated_image_size(config)
        self.image_size = None if image_size is None else as_two_sides("image_size", image_size)
        if patch_size is not None and self.image_size is not None and (side := math.gcd(*self.image_size)) % patch_size:
            fitting = ", ".join(str(number) for number in range(2, side + 1) if side % number == 0)
            raise ValueError(
                f"patch_size={patch_size} does not divide the images, which have {self.image_size[0]} x "
                f"{self.image_size[1]} pixels; sides that do are {fitting or 1}"
            )
        self._chunk_size = None if chunk_size is None else whole_number("chunk_size", chunk_size, 1)
        self.mixed_precision = one_of("mixed_precision", mixed_precision, _DTYPES)
        self.classifier, self.masking, self.processor = classifier.eval(), masking, processor

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
        """Loads a classifier from the Hub or a folder with its image processor, which gives the image size; freezes it.

        With `image_size` it needs no image processor.

        Args:
            name_or_path: Hub name or folder of an image classifier with its image processor.
            masking: as in the constructor.
            revision: branch, tag or commit on the Hub.
            token: for private and gated models.
            trust_remote_code: whether code from the classifier's repository may run.
            attn_implementation: "sdpa", "eager" or another name of transformers; its default when None.
            dtype: float32 by default, whatever precision the checkpoint is stored in.
            kwargs: further arguments of the constructor.

        Raises:
            ValueError: also where the files do not hold all weights of a classifier, or some are not finite.
        """
        source: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
        source = {name: value for name, value in source.items() if value is not None}
        options = {**source, "dtype": dtype}
        if attn_implementation:
            options["attn_implementation"] = attn_implementation
        classifier = load_model(AutoModelForImageClassification, name_or_path, **options)
        classifier.requires_grad_(False)
        try:
            processor = load_processor(name_or_path, **source)
        except ValueError:
            if "image_size" not in kwargs:
                raise
            processor = None
        if "image_size" not in kwargs:
            kwargs["image_size"] = processed_size(processor)
        return cls(classifier, masking=masking, processor=processor, **kwargs)

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
        """Where the classifier computes."""
        return execution_device(self.classifier)

    @property
    def chunk_size(self) -> int:
        """How many tokens a forward may hold."""
        return self._chunk_size or tokens_that_fit(self.device, getattr(self.config, "hidden_size", None))

    @property
    def family(self) -> VisionFamily | None:
        """The classifier's family; None where it is no known vision transformer."""
        return FAMILIES.get(self.config.model_type)

    @property
    def strategy(self) -> Masking:
        """How patches are hidden."""
        return STRATEGIES[self.masking](self.family, self.patch_size)

    def in_float32(self) -> "MaskedClassifier":
        """This classifier with its weights in float32; itself where they are, otherwise a copy for the time being."""
        types = {parameter.dtype for parameter in self.classifier.parameters() if parameter.is_floating_point()}
        if types <= {torch.float32, torch.float64}:
            return self
        return with_submodule(self, "classifier", in_dtype(self.classifier, torch.float32))

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

    @property
    def has_tokens(self) -> bool:
        """Whether the patches are the tokens of a known family, so that attention is attention to patches."""
        return self.family is not None and _are_own(self.config, self.patch_size)

    def token_family(self) -> VisionFamily:
        """The classifier's family; raises ValueError where it has none, or `patch_size` is not that of its tokens."""
        if self.family is None:
            raise ValueError(
                f"how the tokens of a {self.config.model_type} model pass its blocks, if it has any, is not known; "
                f"use one of {', '.join(FAMILIES)}"
            )
        if not self.has_tokens:
            own = _square_side(self.config.patch_size)
            raise ValueError(f"tokens are patches of {own} pixels, got patch_size={self.patch_size}")
        return self.family

    @property
    def num_prefix_tokens(self) -> int:
        """P, the number of tokens before the patches: CLS, registers, distillation."""
        return self.token_family().num_prefix_tokens(self.config)

    def embed_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The tokens of whole images, with positions and prefix tokens first: [B, C, H, W] -> [B, P + N, D]."""
        return embed_tokens(self.classifier, self.token_family(), self.as_input(pixel_values))

    def as_input(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Processed images [B, C, H, W] on the classifier's device and in its type.

        Raises:
            ValueError: where they are not processed images that patches divide, with the classifier's channels.
        """
        pixel_values = processed_images("pixel_values", pixel_values)
        channels = getattr(self.config, "num_channels", 3)
        if pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values must be [B, {channels}, H, W] for this classifier, got shape {list(pixel_values.shape)}"
            )
        self.patch_grid(pixel_values)
        return pixel_values.to(self.device, self.classifier.dtype)

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

    def whole_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """v(N), of whole images, before softmax or sigmoid: [B, C, H, W] -> [B, K], without gradients."""
        everything = torch.ones(len(pixel_values), 1, math.prod(self.patch_grid(pixel_values)), dtype=torch.bool)
        return self.logits(pixel_values, everything)[:, 0]

    def embed(self, pixel_values: torch.Tensor) -> Embedded:
        """What `logits_of` needs of the images [B, C, H, W], computed once for any number of subsets."""
        pixel_values = self.as_input(pixel_values)
        with self._autocast():
            return self.strategy.embed(self._in_precision(), pixel_values)

    def logits_of(self, embedded: Embedded, subsets: torch.Tensor) -> torch.Tensor:
        """As `forward`, from what `embed` returned for B images: subsets bool [B, M, N] -> [B, M, K]."""
        is_boolean = isinstance(subsets, torch.Tensor) and is_dense(subsets) and subsets.dtype == torch.bool
        if not is_boolean or subsets.ndim != 3 or len(subsets) != len(embedded):
            raise ValueError(f"subsets must be boolean [B, M, N] with B = {len(embedded)}, got {described(subsets)}")
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
        return in_dtype(self.classifier, dtype) if dtype else self.classifier


#: accelerate's name of a precision -> type of the forwards; around fp8 layers accelerate computes in bfloat16 too.
_DTYPES = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}


def tokens_that_fit(device: torch.device, hidden_size: int | None) -> int:
    """The default of `chunk_size` for a device and a model whose tokens have `hidden_size` numbers, None if unknown.

    On a CPU 4,096. On a GPU as many as a sixteenth of its memory holds, within 16,384 and 262,144, and 16,384 where the
    size is unknown.

    A GPU is kept busy only by many tokens at once; a CPU is fastest where a forward's numbers fit into its cache. A
    GPU's forward without gradients holds about 16 numbers of 4 bytes for each of a token's: the residual stream, its
    norm, query, key and value, what attention adds, and the MLP's layers.
    """
    if device.type != "cuda":
        return 4_096
    if hidden_size is None:
        return 16_384
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(max(memory // 16 // (64 * hidden_size), 16_384), 262_144)


def check_classifier(classifier: Any) -> None:
    """Raises TypeError where this is no model of transformers, ValueError where Salvage cannot explain it."""
    if not isinstance(classifier, PreTrainedModel):
        has_adapters = bool(getattr(classifier, "peft_config", None))
        raise TypeError(
            f"classifier must be an image classifier of transformers, got {type(classifier).__name__}"
            + ("; merge its adapters first, with merge_and_unload()" if has_adapters else "")
        )
    mapping, configs = AutoModelForImageClassification._model_mapping, type(classifier.config).__mro__
    mapped: list[Any] = [mapping[config] for config in configs if config in mapping]
    classes = tuple(cls for entry in mapped for cls in (entry if isinstance(entry, tuple) else (entry,)))
    # A model with code of its own is in no mapping.
    if not isinstance(classifier, classes) and not type(classifier).__name__.endswith("ForImageClassification"):
        raise ValueError(
            f"classifier is a {type(classifier).__name__}, which has no classification head; "
            "load it with AutoModelForImageClassification"
        )
    if classifier.config.model_type == "siglip2":
        raise ValueError(
            "classifier is a siglip2 model (NaFlex), which takes lists of patches of images of any shape: it has no "
            "fixed grid of patches to explain; SigLIP 2 of a fixed size has the model type siglip"
        )
    problem = classifier.config.problem_type
    if problem == "multi_label_classification":
        raise ValueError(
            f"problem_type is {problem!r}: each label has a sigmoid of its own, and needs one map per label, of a "
            "classifier of this label alone; Salvage explains one softmax or one sigmoid"
        )
    if problem == "regression":
        raise ValueError(f"problem_type is {problem!r}; Salvage explains one softmax or one sigmoid")


def _are_own(config: Any, patch_size: int) -> bool:
    """Whether the patches of a vision transformer have this side."""
    return as_two_sides("patch_size", config.patch_size) == (patch_size, patch_size)


def _square_side(patch_size: int | Sequence[int]) -> int:
    """The side of a model's patches, from its config; raises ValueError where they are not square."""
    height, width = as_two_sides("patch_size", patch_size)
    if height != width:
        raise ValueError(f"the classifier's patches are {height} x {width} pixels; square patches are needed")
    return height
