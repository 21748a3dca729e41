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

from .configuration_salvage import BACKBONES, WITH_POOLER, SalvageConfig
from .geometry_salvage import placed_on_pictures
from .pipeline_salvage import ImageAttributionPipeline  # noqa: F401  # what is imported here travels with the weights

#: What is random in training -> how it is switched off: a run's numbers must depend on its own random numbers alone.
_RANDOM = {
    **dict.fromkeys(
        ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"), 0.0
    ),
    **dict.fromkeys(("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")),
}


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
    """The Salvage explainer: a vision transformer and a mask transformer (sections 4.1 and 5.1).

    It takes the images that the explained classifier takes, by the classifier's image processor. The backbone may want
    other ones: then `backbone_pixels` makes them from these. So patch i is the same part of the picture for the
    classifier, for v(S) and for the explainer, however the processor crops, and there is one image processor.

    Examples:
        >>> model = AutoModel.from_pretrained("org/salvage-pet")
        >>> out = model(pixel_values)
        >>> out.attributions[:, :, label]
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        pooler = {"add_pooling_layer": False} if config.backbone_config.model_type in WITH_POOLER else {}
        self.backbone = AutoModel.from_config(config.backbone_config, **pooler)
        self.head = SalvageMaskTransformer(config)
        self.post_init()

    @classmethod
    def from_classifier(cls, classifier: PreTrainedModel, **config_overrides) -> "SalvageModel":
        """A new explainer in float32 for a plain vision transformer, with a copy of the classifier's backbone.

        Args:
            classifier: an image classifier of one of the types in `BACKBONES`, for example
                `Dinov2ForImageClassification`. `from_backbone` takes others.
            config_overrides: passed on to `SalvageConfig`.

        Raises:
            TypeError: where `classifier` is no model of transformers.
            ValueError: where it is another model, or has no classification head.
        """
        if not isinstance(classifier, PreTrainedModel):
            raise TypeError(f"classifier must be an image classifier, got {type(classifier).__name__}")
        if classifier.config.model_type not in BACKBONES:
            raise ValueError(
                f"classifier is a {type(classifier).__name__} (model type {classifier.config.model_type!r}), whose "
                "backbone an explainer cannot start from: give it another one, by --explainer_backbone NAME or "
                f"SalvageModel.from_backbone, of one of the types {', '.join(BACKBONES)}"
            )
        if classifier.base_model is classifier:
            raise ValueError(
                f"classifier is a {type(classifier).__name__}, a backbone without a classification head; "
                "load it with AutoModelForImageClassification"
            )
        return cls.from_backbone(classifier, classifier, **config_overrides)

    @classmethod
    def from_backbone(
        cls, backbone: PreTrainedModel, classifier: PreTrainedModel, **config_overrides
    ) -> "SalvageModel":
        """A new explainer in float32 for any image classifier, with a copy of the backbone of another model.

        Args:
            backbone: a vision transformer of one of the types in `BACKBONES`, with or without a head.
            classifier: the classifier to explain, whose labels the explainer gets.
            config_overrides: passed on to `SalvageConfig`: `patch_size` and `channel_map`, where the backbone wants
                other images than the classifier.

        Raises:
            TypeError: where one of both is no model of transformers.
            ValueError: where `backbone` is of another type.
        """
        for name, model in (("backbone", backbone), ("classifier", classifier)):
            if not isinstance(model, PreTrainedModel):
                raise TypeError(f"{name} must be a model of transformers, got {type(model).__name__}")
        if backbone.config.model_type not in BACKBONES:
            raise ValueError(
                f"backbone is a {type(backbone).__name__} (model type {backbone.config.model_type!r}); needed is one "
                f"of the types {', '.join(BACKBONES)}"
            )
        backbone_config = copy.deepcopy(backbone.config)
        backbone_config.num_labels = 2  # the default: the explainer's own config has the labels
        backbone_config.architectures = None
        backbone_config.dtype = None
        for name, value in _RANDOM.items():
            if hasattr(backbone_config, name):
                setattr(backbone_config, name, value)
        labels = {"id2label": dict(classifier.config.id2label), "label2id": dict(classifier.config.label2id)}
        model = cls(SalvageConfig(backbone_config=backbone_config, **{**labels, **config_overrides}))
        # Not always `base_model`, which of DINOv3 without a head is its encoder alone.
        source = backbone if isinstance(backbone, type(model.backbone)) else backbone.base_model
        weights = source.state_dict()
        model.backbone.load_state_dict({name: weights[name] for name in model.backbone.state_dict()})
        return model

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def backbone_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images as the backbone takes them: [B, C, H, W] -> [B, its channels, its H, its W].

        Their channels are normalised by its numbers (`channel_map`), and they are resized so that the patches of
        `config.patch_size` pixels become its own ones.

        Raises:
            ValueError: where these are no images with the right number of channels, or patches do not divide them.
        """
        config = self.config
        ours, theirs = config.patch_size, config.backbone_config.patch_size
        channels = len(config.channel_map[0]) - 1 if config.channel_map else config.backbone_config.num_channels
        if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            given = list(getattr(pixel_values, "shape", [])) or type(pixel_values).__name__
            raise ValueError(f"pixel_values must be a tensor [B, {channels}, H, W], got {given}")
        height, width = pixel_values.shape[-2:]
        if height % ours or width % ours:
            raise ValueError(
                f"pixel_values are {height} x {width} pixels, which patches of {ours} x {ours} do not divide"
            )
        if not config.channel_map and ours == theirs:
            return pixel_values
        made = pixel_values.float()  # half precision would round them, and torch resizes none on a CPU
        with torch.autocast(made.device.type, enabled=False):
            if config.channel_map:
                channel_map = made.new_tensor(config.channel_map)  # [its channels, C + 1]
                made = torch.einsum("dc,bchw->bdhw", channel_map[:, :-1], made) + channel_map[:, -1, None, None]
            if ours != theirs:
                size = height // ours * theirs, width // ours * theirs
                made = nn.functional.interpolate(made, size, mode="bilinear", antialias=True)
        return made.to(pixel_values.dtype)

    def patch_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The backbone's patch tokens, without those before them: [B, C, H, W] -> [B, N, its hidden size]."""
        config, pixel_values = self.config.backbone_config, self.backbone_pixels(pixel_values)
        size = (config.image_size,) * 2 if isinstance(config.image_size, int) else tuple(config.image_size)
        options = {}
        if config.model_type in WITH_POOLER and pixel_values.shape[-2:] != size:
            options["interpolate_pos_encoding"] = True
        # CLS; DeiT also has a distillation token, and DINOv2 and DINOv3 have registers.
        num_prefix_tokens = 2 if config.model_type == "deit" else 1 + getattr(config, "num_register_tokens", 0)
        return self.backbone(pixel_values, **options).last_hidden_state[:, num_prefix_tokens:]

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

    def answers(self, output: SalvageOutput) -> tuple[torch.Tensor, torch.Tensor]:
        """What can be explained: the T = K classes; with one label its absence and its presence, T = 2.

        Returns:
            Their probabilities, float32 [B, T], and their maps, [B, N, T]. The map of the absence is that of the
            presence with the sign changed.
        """
        logits, attributions = output.logits.float(), output.attributions
        if logits.shape[-1] > 1:
            return logits.softmax(dim=-1), attributions
        return torch.cat([-logits, logits], dim=-1).sigmoid(), torch.cat([-attributions, attributions], dim=-1)

    def post_process_attributions(
        self, outputs: SalvageOutput, target_sizes, image_processor, classes: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Maps on the pixels of the original pictures.

        Other models have such functions in their image processor. This model's is the one of the explained classifier,
        of a class of transformers, so it is a method of the model: whoever has the model has it.

        Args:
            outputs: what the model returned for B images.
            target_sizes: (height, width) of the B upright pictures, as a list or [B, 2].
            image_processor: what made their pixel values. It is asked where it crops and pads.
            classes: int64 [B, T], the classes whose maps are returned (with one label, 0 or 1); the predicted ones when
                None, so that T = 1.

        Returns:
            Of each picture, float32 [T, height, width]: interpolated between the centres of the patches, and NaN where
            the model sees nothing of the picture.

        Raises:
            ValueError: where these are not B sizes, or not classes of the model, or the image processor makes no N
                patches of a picture.
        """
        probabilities, attributions = self.answers(outputs)
        classes = probabilities.argmax(dim=-1, keepdim=True) if classes is None else classes
        return placed_on_pictures(attributions, classes, target_sizes, image_processor, self.config.patch_size)


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
