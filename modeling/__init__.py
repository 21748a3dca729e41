"""Registers Salvage with the Auto classes. This file stays here; the other two travel to the Hub with the weights."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .configuration_salvage import BACKBONES, WITH_POOLER, SalvageConfig
from .modeling_salvage import SalvageForImageClassification, SalvageModel, SalvageOutput

AutoConfig.register("salvage", SalvageConfig, exist_ok=True)
AutoModel.register(SalvageConfig, SalvageModel, exist_ok=True)
AutoModelForImageClassification.register(SalvageConfig, SalvageForImageClassification, exist_ok=True)
SalvageConfig.register_for_auto_class()
SalvageModel.register_for_auto_class("AutoModel")
SalvageForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = [
    "BACKBONES",
    "WITH_POOLER",
    "SalvageConfig",
    "SalvageForImageClassification",
    "SalvageModel",
    "SalvageOutput",
]
