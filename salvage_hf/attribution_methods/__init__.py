"""Attribution methods: name -> method, each (pixel_values [B, C, H, W], targets [B]) -> [B, N].

Maps are on the patch grid, raster order. Methods take batches (where one goes image by image, its docstring or source
says so) and leave the classifier as they found it; random ones are keyed by image, so that the batch an image comes in
changes nothing.
"""

# Importing a module registers its methods; tables keep this order.
from . import explainers, sampling, relevance, gradients, activations, attention, reference  # noqa: F401, I001
from .registry import REGISTRY, Method, MethodInfo, load, register

__all__ = ["REGISTRY", "Method", "MethodInfo", "load", "register"]
