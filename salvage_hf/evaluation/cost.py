"""What an explanation costs, in forwards of the classifier."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..attribution_methods import Method
from ..masking import MaskedClassifier
from ..vision_families import image_logits

_ATEN = torch.ops.aten
#: Operation -> function that counts its floating-point operations. torch's table lacks the attention of CPUs.
_FLOP_COUNTS = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}


class _Operations(TorchDispatchMode):
    """Counts floating-point operations of matrix products, convolutions and attention, forward and backward.

    torch's FlopCounterMode cannot be used, because it also counts per module: its hooks on the modules' inputs raise an
    error where `torch.autograd.grad` takes the gradient of the pixels, as the gradient methods and LRP do.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        count: Callable | None = _FLOP_COUNTS.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def count_forwards(v: MaskedClassifier, method: Method, pixel_values: torch.Tensor, targets: torch.Tensor) -> float:
    """The floating-point operations of explaining these images, in forwards of the classifier on whole images."""
    with _Operations() as of_method:
        method(pixel_values, targets)
    with torch.no_grad(), _Operations() as of_forward:
        image_logits(v.classifier, pixel_values)
    return of_method.total / of_forward.total
