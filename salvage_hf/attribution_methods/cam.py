"""Class activation mapping: feature maps, weighted and summed (the first category of the paper's section 2).

Which layer gives the feature maps, of a CNN or a transformer, and how a map comes to the grid of patches says
`feature_maps`. captum computes GradCAM, because its layers take any module; it has none of the other three. A further
dependency for these (pytorch-grad-cam) would save little: they are a few lines each, and it asks its user for the layer
and the shape of tokens, which is most of the work here.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from ..masking import MaskedClassifier
from ..targets import target_logits
from ..vision_families import image_logits, on_tokens, with_submodule
from .feature_maps import FeatureGrid, check_feature_maps, exchanged, features_of, model_with_feature_grid, on_patches
from .registry import Method, register


@register("gradcam", title="GradCAM", needs="gradients", source="Selvaraju et al., 2019 (captum)")
def gradcam(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """GradCAM: feature maps weighted by their mean gradient (captum's LayerGradCam), negative values set to 0."""
    from captum.attr import LayerGradCam

    check_feature_maps(classifier)

    def attribute(pixel_values, targets):
        pixel_values = pixel_values.detach()
        model, grid = model_with_feature_grid(classifier, pixel_values)

        def score(pixel_values, targets):
            return target_logits(image_logits(model, pixel_values), targets)

        with torch.enable_grad():
            maps = LayerGradCam(score, grid.view).attribute(
                pixel_values, additional_forward_args=targets, relu_attributions=True
            )
        return on_patches(maps[:, 0].detach(), classifier.patch_grid(pixel_values))

    return attribute


@register("gradcam_plus_plus", title="GradCAM++", needs="gradients", source="Chattopadhay et al., 2018")
def gradcam_plus_plus(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """GradCAM++: a map's weight is the sum of its positive gradients times alpha (Chattopadhay et al., eq. 19)."""
    check_feature_maps(classifier)

    def attribute(pixel_values, targets):
        pixel_values = pixel_values.detach()
        model, grid = model_with_feature_grid(classifier, pixel_values)
        with torch.enable_grad():
            features, logits = features_of(model, grid, pixel_values.requires_grad_())
            gradients = torch.autograd.grad(target_logits(logits, targets).sum(), features)[0].float()
        features = features.detach().float()
        # For Y = exp(score) the derivatives are Y g, Y g^2 and Y g^3, and Y cancels in alpha.
        total = features.sum(dim=(2, 3), keepdim=True) * gradients**3
        denominator = 2 * gradients**2 + total
        alpha = torch.where(denominator != 0, gradients**2 / torch.where(denominator != 0, denominator, 1), 0)
        weights = (alpha * gradients.relu()).sum(dim=(2, 3), keepdim=True)
        return on_patches((weights * features).sum(dim=1).relu(), classifier.patch_grid(pixel_values))

    return attribute


@register("eigencam", title="EigenCAM", needs="activations", source="Muhammad & Yeasin, 2020")
def eigencam(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """EigenCAM: each place's features, projected on their first right singular vector; the same map for every class.

    A singular vector has no sign of its own: it gets the one that makes the map's sum positive. The features are not
    centred, as published; pytorch-grad-cam centres them.
    """
    check_feature_maps(classifier)

    @torch.no_grad()
    def attribute(pixel_values, targets):
        model, grid = model_with_feature_grid(classifier, pixel_values)
        features, _ = features_of(model, grid, pixel_values)
        places = features.float().flatten(2).transpose(1, 2)  # [B, rows * columns, D]
        _, _, right = torch.linalg.svd(places, full_matrices=False)
        maps = (places @ right[:, 0, :, None])[..., 0]
        maps = maps * torch.where(maps.sum(dim=1, keepdim=True) < 0, -1, 1)
        return on_patches(maps.unflatten(1, features.shape[2:]), classifier.patch_grid(pixel_values))

    return attribute


def _logits_from_maps(
    classifier: MaskedClassifier, model: PreTrainedModel, grid: FeatureGrid, pixel_values: torch.Tensor, tokens: list
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(feature maps [R, D, rows, columns], the image of each, int64 [R]) -> logits [R, K]; the rest is the image's.

    Args:
        classifier: the classifier.
        model: its view with the grid.
        grid: the grid.
        pixel_values: the images.
        tokens: what entered the grid's layer, to which the last block of a vision transformer adds what it makes of it.
    """
    family = classifier.family
    if family is None:
        # All that the logits see of an image passes through the maps: one image before them is enough for any R.
        def ask(maps, images):
            with exchanged(grid, maps):
                return image_logits(model, pixel_values[:1])

        return ask
    last_block = nn.ModuleList([family.block_list(model)[-1]])
    last_alone = on_tokens(with_submodule(model, family.blocks_path(model), last_block))

    def ask_last_block(maps, images):
        with exchanged(grid, maps):
            return last_alone(tokens[0][images]).logits

    return ask_last_block


@register("ablationcam", title="Ablation-CAM", needs="activations", source="Desai & Ramaswamy, 2020")
def ablationcam(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Ablation-CAM: feature maps weighted by how far the target's logit falls without them.

    This takes D forwards per image of what follows the maps: the last block of a vision transformer, the head of a CNN.
    Unlike Desai & Ramaswamy's, the weights are not divided by the logit: that would only scale a map, or invert it
    where the logit is negative. The weights are small differences, which half precision would round away: use float32.
    """
    check_feature_maps(classifier)

    @torch.no_grad()
    def attribute(pixel_values, targets):
        model, grid = model_with_feature_grid(classifier, pixel_values)
        tokens: list[torch.Tensor] = []
        handle = grid.register_forward_pre_hook(lambda module, inputs: tokens.extend(inputs[:1]))
        try:
            features, logits = features_of(model, grid, pixel_values)
        finally:
            handle.remove()
        ask = _logits_from_maps(classifier, model, grid, pixel_values, tokens)
        batch_size, num_channels = features.shape[:2]
        rows = torch.arange(batch_size * num_channels, device=features.device)
        num_tokens = features[0, 0].numel() + grid.num_prefix
        losses = []
        for part in rows.split(max(1, classifier.chunk_size // num_tokens)):
            images, channels = part // num_channels, part % num_channels
            ablated = features[images]
            ablated[torch.arange(len(part), device=part.device), channels] = 0
            without = target_logits(ask(ablated, images), targets[images])
            losses.append(target_logits(logits, targets)[images] - without)
        weights = torch.cat(losses).view(batch_size, num_channels, 1, 1)
        return on_patches((weights * features).sum(dim=1).relu(), classifier.patch_grid(pixel_values))

    return attribute
