"""v(S): a frozen image classifier on images of which only a subset of patches is visible."""

from .masked_classifier import MaskedClassifier
from .provenance import check_provenance, processing_digest, provenance
from .strategies import STRATEGIES
from .value_functions import ValueFunction, as_value_function, value_at

__all__ = [
    "MaskedClassifier",
    "STRATEGIES",
    "ValueFunction",
    "as_value_function",
    "check_provenance",
    "processing_digest",
    "provenance",
    "value_at",
]
