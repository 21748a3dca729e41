"""Class activation mapping: feature maps, weighted and summed (the first category of the paper's section 2)."""

import torch
from torch import nn
from transformers import PreTrainedModel

from ..masking import MaskedClassifier
from ..targets import target_logits
from ..vision_families import on_tokens, with_submodule
from .feature_maps import features_of, model_with_feature_grid
from .registry import Method, register


@register("gradcam", title="GradCAM", needs="gradients", source="Selvaraju et al., 2019 (captum)")
def gradcam(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """GradCAM: feature maps weighted by their mean gradient (captum's LayerGradCam), negative values set to 0."""
    from captum.attr import LayerGradCam

    classifier.token_family()  # raises here, not at the first image, where the model is no known vision transformer

    def attribute(pixel_values, targets):
        pixel_values = pixel_values.detach()
        model, grid = model_with_feature_grid(classifier, pixel_values)

        def score(pixel_values, targets):
            return target_logits(model(pixel_values).logits, targets)

        with torch.enable_grad():
            maps = LayerGradCam(score, grid.view).attribute(
                pixel_values, additional_forward_args=targets, relu_attributions=True
            )
        return maps.detach().flatten(1)

    return attribute


@register("gradcam_plus_plus", title="GradCAM++", needs="gradients", source="Chattopadhay et al., 2018")
def gradcam_plus_plus(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """GradCAM++: a map's weight is the sum of its positive gradients times alpha (Chattopadhay et al., eq. 19)."""
    classifier.token_family()

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
        return (weights * features).sum(dim=1).relu().flatten(1)

    return attribute


@register("eigencam", title="EigenCAM", needs="activations", source="Muhammad & Yeasin, 2020")
def eigencam(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """EigenCAM: each patch's features, projected on their first right singular vector; the same map for every class.

    A singular vector has no sign of its own: it gets the one that makes the map's sum positive. The features are not
    centred, as published; pytorch-grad-cam centres them.
    """
    classifier.token_family()

    @torch.no_grad()
    def attribute(pixel_values, targets):
        model, grid = model_with_feature_grid(classifier, pixel_values)
        features, _ = features_of(model, grid, pixel_values)
        features = features.float().flatten(2).transpose(1, 2)  # [B, N, D]
        _, _, right = torch.linalg.svd(features, full_matrices=False)
        maps = (features @ right[:, 0, :, None])[..., 0]
        return maps * torch.where(maps.sum(dim=1, keepdim=True) < 0, -1, 1)

    return attribute


class _AblatedNorm(nn.Module):
    """Replaces a norm, and sets channel `channels[r]` of the patch tokens in row r to 0."""

    def __init__(self, norm: nn.Module, num_prefix: int):
        super().__init__()
        self.norm, self.num_prefix = norm, num_prefix
        self.channels = torch.empty(0, dtype=torch.int64)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(hidden_states).clone()
        tokens[torch.arange(len(tokens), device=tokens.device), self.num_prefix :, self.channels] = 0
        return tokens


def _last_block_alone(classifier: MaskedClassifier) -> tuple[PreTrainedModel, _AblatedNorm]:
    """A view of the classifier that runs its last block on the tokens entering it, and this block's first norm."""
    family = classifier.token_family()
    last, name = family.block_list(classifier.classifier)[-1], family.norms[0]
    ablated = _AblatedNorm(last.get_submodule(name), classifier.num_prefix_tokens)
    last_alone = nn.ModuleList([with_submodule(last, name, ablated)])
    path = family.blocks_path(classifier.classifier)
    return on_tokens(with_submodule(classifier.classifier, path, last_alone)), ablated


@register("ablationcam", title="Ablation-CAM", needs="activations", source="Desai & Ramaswamy, 2020")
def ablationcam(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Ablation-CAM: feature maps weighted by how far the target's logit falls without them.

    This takes D forwards of the last block per image. Unlike Desai & Ramaswamy's, the weights are not divided by the
    logit: that would only scale a map, or invert it where the logit is negative. The weights are small differences,
    which half precision would round away: use float32.
    """
    classifier.token_family()

    @torch.no_grad()
    def attribute(pixel_values, targets):
        model, grid = model_with_feature_grid(classifier, pixel_values)
        tail, ablated = _last_block_alone(classifier)
        entering = []
        handle = grid.register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
        try:
            features, logits = features_of(model, grid, pixel_values)
        finally:
            handle.remove()
        tokens = entering[0]
        batch_size, num_channels = features.shape[:2]
        rows = torch.arange(batch_size * num_channels, device=tokens.device)
        losses = []
        for part in rows.split(max(1, classifier.chunk_size // tokens.shape[1])):
            images, ablated.channels = part // num_channels, part % num_channels
            without = target_logits(tail(tokens[images]).logits, targets[images])
            losses.append(target_logits(logits, targets)[images] - without)
        weights = torch.cat(losses).view(batch_size, num_channels, 1, 1)
        return (weights * features).sum(dim=1).relu().flatten(1)

    return attribute
