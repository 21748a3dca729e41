"""Salvage: faithful explanations of Hugging Face image classifiers.

Importing this package registers Salvage with transformers' Auto classes and the eight metrics with `evaluate`.
"""

from . import attribution_methods, faithfulness, localization, refinement, subsets
from .evaluate_modules import registration
from .evaluate_modules.registration import load_metric
from .explainer import Explainer
from .explanation import Explanation
from .masking import MaskedClassifier
from .modeling import SalvageConfig, SalvageForImageClassification, SalvageModel, SalvageOutput
from .version import VERSION

__version__ = VERSION

registration.register()

__all__ = [
    "Explainer",
    "Explanation",
    "MaskedClassifier",
    "SalvageConfig",
    "SalvageForImageClassification",
    "SalvageModel",
    "SalvageOutput",
    "attribution_methods",
    "faithfulness",
    "load_metric",
    "localization",
    "refinement",
    "subsets",
]
