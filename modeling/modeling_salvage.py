"""Salvage: an explainer that gives every patch a positive and a negative Shapley value for every class.

The letters of the shape comments: B images, M subsets per image, N patches, K classes, L tokens (patches and class
tokens), D hidden size of the head.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_salvage import SalvageConfig


@dataclass
class SalvageOutput(ModelOutput):
    """What a Salvage model returns.

    Args:
        loss: classification loss of `logits`, when `SalvageForImageClassification` is given labels.
        logits: [B, K], u(N) before softmax or sigmoid: the prediction of the explainer itself (eq. 6).
        attributions: [B, N, K], `positive_values - negative_values`: the Shapley value of each patch for each class.
        positive_values: [B, N, K], phi+ of eq. 3.
        negative_values: [B, N, K], phi- of eq. 3; zeros without `paired_values`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    attributions: torch.FloatTensor | None = None
    positive_values: torch.FloatTensor | None = None
    negative_values: torch.FloatTensor | None = None


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention in plain torch, for query, key and value [B, heads, L, D / heads].

    Returns:
        The attended values [B, L, heads, D / heads], and the attention weights [B, heads, L, L].
    """
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1)  # [B, heads, L, L]
    return (weights @ value).transpose(1, 2), weights


class SalvageMaskTransformerLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer."""

    def __init__(self, config):
        super().__init__()
        hidden_size = config.head_hidden_size
        self.config = config
        self.num_attention_heads = config.head_num_attention_heads
        self.scaling = (hidden_size // config.head_num_attention_heads) ** -0.5
        self.is_causal = False  # read by transformers' attention functions
        self.layernorm_before = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.layernorm_after = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, config.head_mlp_ratio * hidden_size),
            nn.GELU(),
            nn.Linear(config.head_mlp_ratio * hidden_size, hidden_size),
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        batch_size, length, hidden_size = hidden_states.shape
        qkv = self.qkv(self.layernorm_before(hidden_states))
        # [B, L, 3D] -> 3 x [B, heads, L, D / heads]
        query, key, value = qkv.view(batch_size, length, 3, self.num_attention_heads, -1).permute(2, 0, 3, 1, 4)
        name = self.config._attn_implementation
        attention = eager_attention if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        attended, _ = attention(self, query, key, value, None, scaling=self.scaling, dropout=0.0)
        attended = attended.reshape(batch_size, length, hidden_size)  # [B, L, heads, D / heads] -> [B, L, D]
        hidden_states = hidden_states + self.output(attended)
        return hidden_states + self.mlp(self.layernorm_after(hidden_states))


class SalvageMaskTransformer(nn.Module):
    """Segmenter's mask transformer (Strudel et al., 2021) with two tokens per class, for phi+ and phi- (eq. 3).

    Without `paired_values` there is one token per class. Unlike Segmenter, the output is not normalised over classes:
    this would force unit variance on every patch, background included.
    """

    def __init__(self, config):
        super().__init__()
        hidden_size = config.head_hidden_size
        self.num_labels, self.paired_values = config.num_labels, config.paired_values
        num_tokens = (2 if config.paired_values else 1) * config.num_labels
        self.input_projection = nn.Linear(config.backbone_config.hidden_size, hidden_size)
        self.class_embeddings = nn.Parameter(torch.empty(1, num_tokens, hidden_size))
        self.layers = nn.ModuleList(SalvageMaskTransformerLayer(config) for _ in range(config.head_num_layers))
        self.layernorm = nn.LayerNorm(hidden_size)
        self.patch_projection = nn.Linear(hidden_size, hidden_size, bias=False)
        self.class_projection = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, patch_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patch features [B, N, hidden size of the backbone] -> phi+ and phi-, float32 [B, N, K] each."""
        batch_size, num_patches, _ = patch_features.shape
        class_tokens = self.class_embeddings.expand(batch_size, -1, -1)
        # [B, N + 2K, D], or [B, N + K, D]
        hidden_states = torch.cat([self.input_projection(patch_features), class_tokens], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        hidden_states = self.layernorm(hidden_states)
        patches = self.patch_projection(hidden_states[:, :num_patches])
        classes = self.class_projection(hidden_states[:, num_patches:])
        values = patches @ classes.transpose(1, 2) * classes.shape[-1] ** -0.5  # [B, N, 2K], or [B, N, K]
        if not self.paired_values:
            return values.float(), torch.zeros_like(values, dtype=torch.float32)
        # In float32, because values are summed over all patches: half precision would lose their differences.
        positive, negative = values.float().split(self.num_labels, dim=-1)
        if self.num_labels > 1:
            # Softmax ignores an amount added to all classes, so training determines only the centred values.
            positive = positive - positive.mean(dim=-1, keepdim=True)
            negative = negative - negative.mean(dim=-1, keepdim=True)
        return positive, negative


class SalvagePreTrainedModel(PreTrainedModel):
    config_class = SalvageConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SalvageMaskTransformerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, SalvageMaskTransformer):
            nn.init.trunc_normal_(module.class_embeddings, std=self.config.initializer_range)
            # All values start at zero: u(S) is uniform, and guided sampling starts as uniform sampling.
            nn.init.zeros_(module.class_projection.weight)


class SalvageModel(SalvagePreTrainedModel):
    """The Salvage explainer: a DINOv2 encoder and a mask transformer (sections 4.1 and 5.1).

    Example:
        >>> model = AutoModel.from_pretrained("org/salvage-pet")
        >>> out = model(pixel_values)
        >>> out.attributions[:, :, label]
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = AutoModel.from_config(config.backbone_config)
        self.head = SalvageMaskTransformer(config)
        self.post_init()

    @classmethod
    def from_classifier(cls, classifier: PreTrainedModel, **config_overrides) -> "SalvageModel":
        """A new explainer in float32 for a DINOv2 image classifier, with a copy of the classifier's backbone.

        Args:
            classifier: a `Dinov2ForImageClassification` or `Dinov2WithRegistersForImageClassification`.
            config_overrides: passed on to `SalvageConfig`.

        Raises:
            TypeError: where `classifier` is no model of transformers.
            ValueError: where it is another model, or has no classification head.
        """
        if not isinstance(classifier, PreTrainedModel):
            raise TypeError(f"classifier must be a DINOv2 image classifier, got {type(classifier).__name__}")
        config = classifier.config
        if not config.model_type.startswith("dinov2"):
            raise ValueError(
                f"classifier is a {type(classifier).__name__} (model type {config.model_type!r}); Salvage starts from "
                "a DINOv2 image classifier, with or without registers"
            )
        if classifier.base_model is classifier:
            raise ValueError(
                f"classifier is a {type(classifier).__name__}, a backbone without a classification head; "
                "load it with AutoModelForImageClassification"
            )
        backbone_config = copy.deepcopy(config)
        backbone_config.num_labels = 2  # the default: the explainer's own config has the labels
        backbone_config.architectures = None
        backbone_config.dtype = None
        labels = {"id2label": dict(config.id2label), "label2id": dict(config.label2id)}
        model = cls(SalvageConfig(backbone_config=backbone_config, **{**labels, **config_overrides}))
        model.backbone.load_state_dict(classifier.base_model.state_dict())
        return model

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def patch_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The backbone's patch tokens, without CLS and registers: [B, C, H, W] -> [B, N, its hidden size]."""
        patch_size, channels = self.config.backbone_config.patch_size, self.config.backbone_config.num_channels
        if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            given = list(getattr(pixel_values, "shape", [])) or type(pixel_values).__name__
            raise ValueError(f"pixel_values must be a tensor [B, {channels}, H, W], got {given}")
        if pixel_values.shape[-2] % patch_size or pixel_values.shape[-1] % patch_size:
            raise ValueError(
                f"pixel_values are {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels, "
                f"which patches of {patch_size} x {patch_size} do not divide"
            )
        num_prefix_tokens = 1 + getattr(self.config.backbone_config, "num_register_tokens", 0)
        return self.backbone(pixel_values).last_hidden_state[:, num_prefix_tokens:]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        patch_features: torch.Tensor | None = None,
    ) -> SalvageOutput:
        """Explains all classes of a batch of images in one pass.

        Args:
            pixel_values: [B, C, H, W], processed images.
            patch_features: in place of `pixel_values`, what the method `patch_features` returned for them.

        Raises:
            ValueError: unless exactly one of both is given, or where patches do not divide the images.
        """
        if (pixel_values is None) == (patch_features is None):
            raise ValueError("give exactly one of pixel_values and patch_features")
        if patch_features is None:
            patch_features = self.patch_features(pixel_values)
        positive_values, negative_values = self.head(patch_features)
        return SalvageOutput(
            logits=positive_values.sum(dim=1) / self.config.logit_temperature,
            attributions=positive_values - negative_values,
            positive_values=positive_values,
            negative_values=negative_values,
        )

    def subset_logits(self, output: SalvageOutput, subsets: torch.Tensor) -> torch.Tensor:
        """u(S) before softmax or sigmoid (eq. 4).

        Args:
            output: what the model returned for B images.
            subsets: bool [B, M, N], True where a patch is visible.

        Returns:
            [B, M, K]
        """
        with torch.autocast(output.attributions.device.type, enabled=False):  # half precision would round the sums
            visible = subsets.to(output.attributions.dtype) @ output.attributions  # [B, M, N] @ [B, N, K]
        return (visible + output.negative_values.sum(dim=1, keepdim=True)) / self.config.logit_temperature


class SalvageForImageClassification(SalvageModel):
    """Salvage as a classifier, "classifying by explaining" (section 4.3): same weights, same output, plus a loss."""

    # The loss is a mean over the batch: the Trainer has to divide it by the number of accumulated batches.
    accepts_loss_kwargs = False

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        patch_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SalvageOutput:
        """As `SalvageModel`; labels [B] (class indices, or 0 and 1 with one label) add the classification loss."""
        output = super().forward(pixel_values, patch_features, return_dict=True)
        if labels is not None:
            if self.num_labels == 1:
                loss = nn.functional.binary_cross_entropy_with_logits(output.logits.squeeze(-1), labels.float())
            else:
                loss = nn.functional.cross_entropy(output.logits, labels)
            output = SalvageOutput(**{**output, "loss": loss})
        return output
