"""Configuration of a Salvage explainer."""

import copy

from transformers import AutoConfig, PretrainedConfig

#: Larger sizes, and more patches along a side of the position embeddings, are mistakes: they are refused before a model
#: of them takes all memory.
LARGEST_SIZE, MOST_PATCHES = 100_000, 500

#: The vision transformers of transformers that an explainer's backbone can be: their tokens are patches of one size.
BACKBONES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "deit", "beit")

#: Those with a pooler, which explainers leave out. Their learned positions fit images of the configured size, and are
#: interpolated for others.
WITH_POOLER = ("vit", "deit", "beit")

#: Both model classes are in the file saved with the weights, so a saved model of either must name both.
_AUTO_MAP = {
    "AutoConfig": "configuration_salvage.SalvageConfig",
    "AutoModel": "modeling_salvage.SalvageModel",
    "AutoModelForImageClassification": "modeling_salvage.SalvageForImageClassification",
}

#: The name of the pipeline, and where a process without this package finds its code.
TASK = "image-attribution"
_PIPELINES = {TASK: {"impl": "pipeline_salvage.ImageAttributionPipeline", "pt": ["AutoModel"]}}


def _check_size(name, value):
    """Raises ValueError where a size is no whole number from 1 to `LARGEST_SIZE`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(f"{name} must be a whole number from 1 to {LARGEST_SIZE}, got {_shown(value)}")


def _check_positive(name, value):
    """Raises ValueError where a setting is no positive finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive, got {_shown(value)}")


def _check_type(name, value, *types):
    """Raises ValueError where a setting is of none of the types."""
    if not isinstance(value, types):
        raise ValueError(f"{name} must be {' or '.join(t.__name__ for t in types)}, got {_shown(value)}")


def _shown(value):
    """A simple value in one short line, of others the type."""
    simple = isinstance(value, (str, int, float, list, tuple, dict, type(None), Exception))
    return " ".join(repr(value).split())[:80] if simple else type(value).__name__


def _checked_backbone(config):
    """The config of a backbone, from another one, its settings or None; ValueError where these cannot be meant."""
    if config is None:
        config = {"model_type": "dinov2_with_registers", "image_size": 518, "patch_size": 14}
    _check_type("backbone_config", config, dict, PretrainedConfig)
    if isinstance(config, dict):
        try:
            config = AutoConfig.for_model(**config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"backbone_config is no config of a known model: {_shown(error)}") from error
    else:
        config = copy.deepcopy(config)
    if config.model_type not in BACKBONES:
        raise ValueError(f"backbone_config must be of one of {', '.join(BACKBONES)}, got {_shown(config.model_type)}")
    config.name_or_path = ""  # a local path must not reach the Hub
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "num_channels"):
        _check_size(name, getattr(config, name, None))
    image_size = config.image_size
    for side in image_size if isinstance(image_size, (list, tuple)) else [image_size]:
        _check_size("image_size", side)
        if side // config.patch_size > MOST_PATCHES:
            raise ValueError(
                f"image_size must be at most {MOST_PATCHES} patches of {config.patch_size} pixels a side, got {side}"
            )
    return config


def _checked_channel_map(channel_map, num_channels):
    """A channel map as rows of floats, or None; ValueError where it is none for a backbone of `num_channels`."""
    if channel_map is None:
        return None
    rows = channel_map if isinstance(channel_map, (list, tuple)) else []
    lengths = {len(row) if isinstance(row, (list, tuple)) else 0 for row in rows}
    numbers = [number for row in rows if isinstance(row, (list, tuple)) for number in row]
    are_finite = all(
        isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) < float("inf")
        for number in numbers
    )
    if len(rows) != num_channels or len(lengths) != 1 or min(lengths) < 2 or not are_finite:
        raise ValueError(
            f"channel_map must be {num_channels} rows, a channel of the backbone each, of a finite number per channel "
            f"of the image and one more, got {_shown(channel_map)}"
        )
    return [[float(number) for number in row] for row in rows]


class SalvageConfig(PretrainedConfig):
    """Configuration of `SalvageModel` and `SalvageForImageClassification`.

    Labels (`num_labels`, `id2label`, `label2id`) are those of the explained classifier. With `num_labels=1` the
    model explains one sigmoid output, otherwise a softmax over the labels.

    Args:
        backbone_config: configuration of the backbone, a vision transformer of `BACKBONES`, as an object or a dict.
            Defaults to DINOv2 ViT-B/14 with registers, the paper's backbone.
        patch_size: side in pixels of the patches that are explained, in the images that the model is given; the
            backbone's when None. Where both differ, the model resizes images so that one becomes the other.
        channel_map: what makes the backbone's channels from those of an image, where they are normalised by other
            numbers: for each channel of the backbone a factor per channel of the image, and what is added to their
            sum. None leaves them as they are.
        head_hidden_size: width of the mask transformer; the backbone's hidden size when None.
        head_num_layers: layers of the mask transformer (Segmenter uses 2).
        head_num_attention_heads: attention heads of a layer; the backbone's number when None.
        head_mlp_ratio: width of a layer's feed-forward part, as a multiple of `head_hidden_size`.
        paired_values: whether each patch has two values per class, phi+ and phi- (eq. 3). Explainers trained for
            Shapley values themselves (ViT-Shapley, FastSHAP) have one, stored as the positive value and not centred.
        logit_temperature: divides the summed values before softmax or sigmoid (eq. 4; the paper uses 1).
        initializer_range: standard deviation of the head's initial weights; the backbone's when None.
        objective: name of what the explainer was trained to minimise: "salvage", "vit_shapley" or "fastshap".
        explained_classifier: what identifies the classifier that it was trained for: its name, revision and
            fingerprint, the masking, the patch size and a digest of the image processor; None where nobody has stated
            it.

    Raises:
        ValueError: where a size is no positive whole number, or so large that it can only be a mistake.
    """

    model_type = "salvage"
    sub_configs = {"backbone_config": AutoConfig}
    # So that the Trainer gathers the logits alone, and not the values of every patch.
    keys_to_ignore_at_inference = ["attributions", "positive_values", "negative_values"]
    # Whether transformers knows the pipeline in this process already: where a config names one, it runs the code beside
    # the weights, and refuses to without `trust_remote_code`.
    has_registered_pipeline = False

    def __init__(
        self,
        backbone_config=None,
        patch_size=None,
        channel_map=None,
        head_hidden_size=None,
        head_num_layers=2,
        head_num_attention_heads=None,
        head_mlp_ratio=4,
        paired_values=True,
        logit_temperature=1.0,
        initializer_range=None,
        objective="salvage",
        explained_classifier=None,
        **kwargs,
    ):
        self.backbone_config = backbone_config = _checked_backbone(backbone_config)
        self.patch_size = backbone_config.patch_size if patch_size is None else patch_size
        self.channel_map = _checked_channel_map(channel_map, backbone_config.num_channels)
        if head_hidden_size is None:
            head_hidden_size = backbone_config.hidden_size
        if head_num_attention_heads is None:
            head_num_attention_heads = backbone_config.num_attention_heads
        if initializer_range is None:
            initializer_range = backbone_config.initializer_range
        self.head_hidden_size = head_hidden_size
        self.head_num_layers = head_num_layers
        self.head_num_attention_heads = head_num_attention_heads
        self.head_mlp_ratio = head_mlp_ratio
        self.objective = objective
        self.paired_values = paired_values
        self.logit_temperature = logit_temperature
        self.initializer_range = initializer_range
        self.explained_classifier = explained_classifier
        sizes = ("patch_size", "head_hidden_size", "head_num_layers", "head_num_attention_heads", "head_mlp_ratio")
        for name in sizes:
            _check_size(name, getattr(self, name))
        if self.head_hidden_size % self.head_num_attention_heads:
            raise ValueError(
                f"head_hidden_size={self.head_hidden_size} is not a multiple of "
                f"head_num_attention_heads={self.head_num_attention_heads}"
            )
        _check_positive("logit_temperature", logit_temperature)
        _check_positive("initializer_range", initializer_range)
        _check_type("paired_values", paired_values, bool)
        _check_type("objective", objective, str)
        if explained_classifier is not None:
            _check_type("explained_classifier", explained_classifier, dict)
        kwargs.setdefault("auto_map", dict(_AUTO_MAP))
        kwargs["custom_pipelines"] = {} if self.has_registered_pipeline else copy.deepcopy(_PIPELINES)
        if kwargs.get("num_labels") is not None:  # before names are made for all of them
            _check_size("num_labels", kwargs["num_labels"])
        super().__init__(**kwargs)

    def to_dict(self):
        # As it was: transformers puts classes, which no file can hold, into `custom_pipelines`.
        return {**super().to_dict(), "custom_pipelines": copy.deepcopy(_PIPELINES)}
