"""Methods that take gradients of the target's logit with respect to the pixels."""

import torch

from ..keyed_random import KeyedGenerator, image_keys
from ..masking import MaskedClassifier
from ..targets import target_logits
from ..vision_families import image_logits
from .registry import Method, patch_sums, register


def _pixel_gradients(classifier: MaskedClassifier, pixel_values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Gradient of the target's logit with respect to the pixels, [B, C, H, W]."""
    pixel_values = pixel_values.detach().requires_grad_()
    with torch.enable_grad():
        score = target_logits(image_logits(classifier.classifier, pixel_values), targets)
        return torch.autograd.grad(score.sum(), pixel_values)[0]


@register("saliency", title="Saliency", needs="gradients", source="Simonyan et al., 2014")
def saliency(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Saliency: the largest absolute gradient over the channels of a pixel, summed over the pixels of a patch."""

    def attribute(pixel_values, targets):
        gradients = _pixel_gradients(classifier, pixel_values, targets)
        return patch_sums(gradients.abs().amax(dim=1), classifier.patch_size)

    return attribute


@register("smoothgrad", title="SmoothGrad", needs="gradients", source="Smilkov et al., 2017")
def smoothgrad(classifier: MaskedClassifier, seed: int = 0, num_samples: int = 50, noise_level: float = 0.15) -> Method:
    """SmoothGrad: saliency from the mean gradient over noisy copies of the image.

    Args:
        classifier: the classifier to explain.
        seed: seed of the noise.
        num_samples: noisy copies.
        noise_level: standard deviation of the Gaussian noise, as a share of the image's range of values.
    """

    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")

    def attribute(pixel_values, targets):
        generator = KeyedGenerator("noise of SmoothGrad", seed, keys=image_keys(pixel_values))
        span = pixel_values.amax(dim=(1, 2, 3)) - pixel_values.amin(dim=(1, 2, 3))
        total = torch.zeros_like(pixel_values)
        for _ in range(num_samples):
            noisy = pixel_values + noise_level * span[:, None, None, None] * generator.normal(*pixel_values.shape[1:])
            total += _pixel_gradients(classifier, noisy, targets)
        return patch_sums((total / num_samples).abs().amax(dim=1), classifier.patch_size)

    return attribute


@register("integrated_gradients", title="Int. Grad.", needs="gradients", source="Sundararajan et al., 2017 (captum)")
def integrated_gradients(classifier: MaskedClassifier, seed: int = 0, num_steps: int = 50) -> Method:
    """Integrated gradients of the target's logit, from an image of the mean colour (zeros), summed over each patch.

    Args:
        classifier: the classifier to explain.
        seed: not used.
        num_steps: points of the Gauss-Legendre quadrature, each a forward and a backward pass.
    """
    from captum.attr import IntegratedGradients

    def score(pixel_values, targets):
        return target_logits(image_logits(classifier.classifier, pixel_values), targets)

    def attribute(pixel_values, targets):
        pixel_values = pixel_values.detach()
        with torch.enable_grad():
            attributions = IntegratedGradients(score).attribute(
                pixel_values, additional_forward_args=targets, n_steps=num_steps, internal_batch_size=len(pixel_values)
            )
        return patch_sums(attributions.detach().sum(dim=1), classifier.patch_size)

    return attribute
