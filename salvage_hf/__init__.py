"""Salvage: faithful explanations of Hugging Face image classifiers.

Importing this package registers Salvage with transformers' Auto classes and the eight metrics with `evaluate`.
"""

from . import attribution_methods, faithfulness, localization, metric_registration, subsets
from .masking import MaskedClassifier
from .modeling import SalvageConfig, SalvageForImageClassification, SalvageModel, SalvageOutput

metric_registration.register()

__all__ = [
    "MaskedClassifier",
    "SalvageConfig",
    "SalvageForImageClassification",
    "SalvageModel",
    "SalvageOutput",
    "attribution_methods",
    "faithfulness",
    "localization",
    "subsets",
]
