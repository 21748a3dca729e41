"""Registers Salvage with the Auto classes and pipelines. This file stays here; the others travel with the weights."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_salvage import BACKBONES, TASK, WITH_POOLER, SalvageConfig
from .geometry_salvage import Geometry, picture_geometry, process
from .modeling_salvage import SalvageForImageClassification, SalvageModel, SalvageOutput
from .pipeline_salvage import ImageAttributionPipeline, coloured, overlay, pale

AutoConfig.register("salvage", SalvageConfig, exist_ok=True)
AutoModel.register(SalvageConfig, SalvageModel, exist_ok=True)
AutoModelForImageClassification.register(SalvageConfig, SalvageForImageClassification, exist_ok=True)
SalvageConfig.register_for_auto_class()
SalvageModel.register_for_auto_class("AutoModel")
SalvageForImageClassification.register_for_auto_class("AutoModelForImageClassification")
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=ImageAttributionPipeline, pt_model=AutoModel)
SalvageConfig.has_registered_pipeline = True

__all__ = [
    "BACKBONES",
    "WITH_POOLER",
    "Geometry",
    "ImageAttributionPipeline",
    "SalvageConfig",
    "SalvageForImageClassification",
    "SalvageModel",
    "SalvageOutput",
    "coloured",
    "overlay",
    "pale",
    "picture_geometry",
    "process",
]
