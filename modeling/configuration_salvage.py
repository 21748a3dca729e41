"""Configuration of a Salvage explainer."""

import copy

from transformers import AutoConfig, PretrainedConfig


class SalvageConfig(PretrainedConfig):
    """Configuration of `SalvageModel` and `SalvageForImageClassification`.

    Labels (`num_labels`, `id2label`, `label2id`) are those of the explained classifier. With `num_labels=1` the
    model explains one sigmoid output, otherwise a softmax over the labels.

    Args:
        backbone_config: configuration of the DINOv2 encoder, with or without registers, as an object or a dict.
            Defaults to DINOv2 ViT-B/14 with registers, the paper's backbone.
        head_hidden_size: width of the mask transformer; the backbone's hidden size when None.
        head_num_layers: layers of the mask transformer (Segmenter uses 2).
        head_num_attention_heads: attention heads of a layer; the backbone's number when None.
        head_mlp_ratio: width of a layer's feed-forward part, as a multiple of `head_hidden_size`.
        paired_values: whether each patch has two values per class, phi+ and phi- (eq. 3). Explainers trained for
            Shapley values themselves (ViT-Shapley, FastSHAP) have one, stored as the positive value and not centred.
        logit_temperature: divides the summed values before softmax or sigmoid (eq. 4; the paper uses 1).
        initializer_range: standard deviation of the head's initial weights; the backbone's when None.
        objective: name of what the explainer was trained to minimise: "salvage", "vit_shapley" or "fastshap".
    """

    model_type = "salvage"
    sub_configs = {"backbone_config": AutoConfig}

    def __init__(
        self,
        backbone_config=None,
        head_hidden_size=None,
        head_num_layers=2,
        head_num_attention_heads=None,
        head_mlp_ratio=4,
        paired_values=True,
        logit_temperature=1.0,
        initializer_range=None,
        objective="salvage",
        **kwargs,
    ):
        if backbone_config is None:
            backbone_config = {"model_type": "dinov2_with_registers", "image_size": 518, "patch_size": 14}
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        else:
            backbone_config = copy.deepcopy(backbone_config)
        backbone_config.name_or_path = ""  # a local path must not reach the Hub
        self.backbone_config = backbone_config
        self.head_hidden_size = head_hidden_size or backbone_config.hidden_size
        self.head_num_layers = head_num_layers
        self.head_num_attention_heads = head_num_attention_heads or backbone_config.num_attention_heads
        self.head_mlp_ratio = head_mlp_ratio
        self.objective = objective
        self.paired_values = paired_values
        self.logit_temperature = logit_temperature
        self.initializer_range = initializer_range or backbone_config.initializer_range
        if self.head_hidden_size % self.head_num_attention_heads:
            raise ValueError(
                f"head_hidden_size={self.head_hidden_size} is not a multiple of "
                f"head_num_attention_heads={self.head_num_attention_heads}"
            )
        if not logit_temperature > 0:
            raise ValueError(f"logit_temperature must be positive, got {logit_temperature}")
        # Both model classes are in the file saved with the weights, so a saved model of either must name both.
        kwargs.setdefault(
            "auto_map",
            {
                "AutoConfig": "configuration_salvage.SalvageConfig",
                "AutoModel": "modeling_salvage.SalvageModel",
                "AutoModelForImageClassification": "modeling_salvage.SalvageForImageClassification",
            },
        )
        super().__init__(**kwargs)
