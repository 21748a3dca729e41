"""v(S): a frozen image classifier on images of which only a subset of patches is visible."""

from .arguments import MaskingArguments, PatchArguments
from .masked_classifier import MaskedClassifier
from .provenance import check_provenance, load_classifier_of, processing_digest, provenance, stated_masking
from .strategies import STRATEGIES
from .value_functions import ValueFunction, as_value_function, value_at

__all__ = [
    "MaskedClassifier",
    "MaskingArguments",
    "PatchArguments",
    "STRATEGIES",
    "ValueFunction",
    "as_value_function",
    "check_provenance",
    "load_classifier_of",
    "processing_digest",
    "provenance",
    "stated_masking",
    "value_at",
]
