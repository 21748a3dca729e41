"""Attribution methods: name -> method, each (pixel_values [B, C, H, W], targets [B]) -> [B, N].

A map has one value per patch, row by row. Methods take batches; where one goes through the images one by one, its
docstring says so. They leave the classifier as they found it. What is random in a map depends on the seed and the image
alone, not on the batch.
"""

# Importing a module registers its methods; tables keep this order.
from . import trained, removal, shapley, lrp, gradient, cam, attention, reference  # noqa: F401, I001
from .registry import REGISTRY, Method, MethodInfo, load, register

__all__ = ["REGISTRY", "Method", "MethodInfo", "load", "register"]
