"""v(S) in any form that a user may have: a classifier, its name, or a function."""

import os
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from ..targets import activation
from .masked_classifier import MaskedClassifier

#: (pixel_values [B, C, H, W], subsets bool [B, M, N]) -> probabilities [B, M, K]
ValueFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def as_value_function(
    model: "MaskedClassifier | PreTrainedModel | str | ValueFunction",
) -> "MaskedClassifier | ValueFunction":
    """v from a `MaskedClassifier`, a Hugging Face image classifier, its name or folder, or a function.

    Raises:
        TypeError: where it is none of these. Other networks are refused, because some take the subsets for something
            else, for example for a mask of attention.
    """
    if isinstance(model, (str, os.PathLike)):
        return MaskedClassifier.from_pretrained(str(model))
    if isinstance(model, MaskedClassifier):
        return model
    if isinstance(model, nn.Module):
        return MaskedClassifier(model)  # type: ignore[arg-type]  # it refuses networks of other kinds
    if not callable(model):
        raise TypeError(f"model must be a classifier, its name or a function, got {type(model).__name__}")
    return model


def value_at(v: "MaskedClassifier | ValueFunction", pixel_values: torch.Tensor) -> Callable[..., torch.Tensor]:
    """v at fixed images, embedded once for all calls: subsets [B, M, N] -> probabilities [B, M, K].

    The function returned takes an index of images as a second argument, for subsets of these images only.
    """
    if not isinstance(v, MaskedClassifier):
        return lambda subsets, images=slice(None): v(pixel_values[images], subsets)
    with torch.no_grad():
        embedded = v.embed(pixel_values.to(v.device))

    @torch.no_grad()
    def probabilities(subsets: torch.Tensor, images: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        return activation(v.logits_of(embedded[images], subsets))

    return probabilities
