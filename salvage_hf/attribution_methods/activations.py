"""Methods that read feature maps: the patch tokens of the last block's first norm, laid out as D maps on the grid."""

import torch
from torch import nn

from ..masking import MaskedClassifier, activation, on_tokens, target_probability, with_submodule
from ..subsets import KeyedGenerator, image_keys, min_max_weights
from .registry import Method, patch_sums, register, target_logits


def blocks_path(classifier: MaskedClassifier) -> str:
    """Where in the classifier the transformer's blocks are; ValueError where it is no transformer of a known family."""
    classifier.check_tokens()
    base = classifier.classifier.base_model
    return f"{classifier.classifier.base_model_prefix}.{'layers' if hasattr(base, 'layers') else 'encoder.layer'}"


def first_norm(block: nn.Module) -> str:
    """The name of a block's first norm."""
    return "norm1" if hasattr(block, "norm1") else "layernorm_before"


class FeatureGrid(nn.Module):
    """Stands where a norm stood; on the way its patch tokens are D maps on the grid, which `view` shows to hooks."""

    def __init__(self, norm: nn.Module, num_prefix: int):
        super().__init__()
        self.norm, self.num_prefix, self.view = norm, num_prefix, nn.Identity()
        self.grid_size = (0, 0)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As the norm, [B, P + N, D]."""
        tokens = self.norm(hidden_states)
        prefix, patches = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        maps = self.view(patches.transpose(1, 2).unflatten(2, self.grid_size))  # [B, D, rows, columns]
        return torch.cat([prefix, maps.flatten(2).transpose(1, 2)], dim=1)


def model_with_feature_grid(classifier: MaskedClassifier) -> tuple[nn.Module, FeatureGrid]:
    """A view of the classifier with a `FeatureGrid` for the first norm of its last block."""
    path = blocks_path(classifier)
    blocks = classifier.classifier.get_submodule(path)
    name = first_norm(blocks[-1])
    grid = FeatureGrid(getattr(blocks[-1], name), classifier.num_prefix_tokens)
    return with_submodule(classifier.classifier, f"{path}.{len(blocks) - 1}.{name}", grid), grid


def features_of(model: nn.Module, grid: FeatureGrid, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature maps [B, D, rows, columns] and logits [B, K] of one forward."""
    seen = []
    handle = grid.view.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        logits = model(pixel_values).logits
    finally:
        handle.remove()
    return seen[0], logits


@register("eigencam", title="EigenCAM", needs="activations", source="Muhammad & Yeasin, 2020")
def eigencam(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """EigenCAM: the features of each patch projected on their first right singular vector; the same for every class.

    The sign of a singular vector is arbitrary: the one that makes the map's sum positive is taken. The features are not
    centred, as published; pytorch-grad-cam centres them.
    """
    model, grid = model_with_feature_grid(classifier)

    @torch.no_grad()
    def attribute(pixel_values, targets):
        grid.grid_size = classifier.patch_grid(pixel_values)
        features, _ = features_of(model, grid, pixel_values)
        features = features.float().flatten(2).transpose(1, 2)  # [B, N, D]
        _, _, right = torch.linalg.svd(features, full_matrices=False)
        maps = (features @ right[:, 0, :, None])[..., 0]
        return maps * torch.where(maps.sum(dim=1, keepdim=True) < 0, -1, 1)

    return attribute


class _AblatedNorm(nn.Module):
    """Stands where a norm stood; row r loses channel `channels[r]` of its patch tokens."""

    def __init__(self, norm: nn.Module, num_prefix: int):
        super().__init__()
        self.norm, self.num_prefix = norm, num_prefix
        self.channels = torch.empty(0, dtype=torch.int64)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(hidden_states).clone()
        tokens[torch.arange(len(tokens), device=tokens.device), self.num_prefix :, self.channels] = 0
        return tokens


@register("ablationcam", title="Ablation-CAM", needs="activations", source="Desai & Ramaswamy, 2020")
def ablationcam(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Ablation-CAM: a feature map weighs what the target's logit loses without it, D forwards of the last block.

    The weights are not divided by the logit: that would scale a map, and turn it round where the logit is negative.
    They are small differences, which a classifier in half precision rounds away: use float32.
    """
    path = blocks_path(classifier)
    last = classifier.classifier.get_submodule(path)[-1]
    name = first_norm(last)
    ablated = _AblatedNorm(getattr(last, name), classifier.num_prefix_tokens)
    # Only the last block runs, on the tokens that the blocks before it have made.
    last_alone = nn.ModuleList([with_submodule(last, name, ablated)])
    tail = on_tokens(with_submodule(classifier.classifier, path, last_alone))
    model, grid = model_with_feature_grid(classifier)

    @torch.no_grad()
    def attribute(pixel_values, targets):
        grid.grid_size = classifier.patch_grid(pixel_values)
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


@register("vit_cx", title="ViT-CX", needs="masked forwards", source="Xie et al., 2023")
def vit_cx(classifier: MaskedClassifier, seed: int = 0, distance_threshold: float = 0.1) -> Method:
    """ViT-CX: feature maps, clustered, as masks over the pixels; each mask weighs its causal impact on the prediction.

    Masks: the maps upsampled to the image and scaled to 0..1, those merged (complete linkage) whose cosine similarity
    is above 1 - distance_threshold, the sum scaled again. Impact: the prediction from what the mask shows, noise on
    the rest, minus that from the whole image with the same noise added, plus that from the image. The map is the sum
    of the masks weighted by impact, over their coverage of the pixel. The noise is Gaussian of deviation 0.1.

    The number of masks differs between images (some dozens), so images take turns; a mask costs two forwards.
    """
    from sklearn.cluster import AgglomerativeClustering

    model, grid = model_with_feature_grid(classifier)

    def masks_of(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Feature maps [D, rows, columns] -> masks [masks, H, W]."""
        upsampled = nn.functional.interpolate(maps[None].float(), size=size, mode="bilinear", antialias=True)[0]
        flat = min_max_weights(upsampled.flatten(1))
        unit = nn.functional.normalize(flat, dim=1)
        distance = (1 - unit @ unit.T).clamp_min(0).cpu().numpy()
        clustering = AgglomerativeClustering(
            n_clusters=None, distance_threshold=distance_threshold, metric="precomputed", linkage="complete"
        )
        labels = torch.from_numpy(clustering.fit(distance).labels_).to(flat.device)
        merged = torch.zeros(int(labels.max()) + 1, flat.shape[1], device=flat.device).index_add_(0, labels, flat)
        return min_max_weights(merged).view(-1, *size)

    @torch.no_grad()
    def attribute(pixel_values, targets):
        grid.grid_size = classifier.patch_grid(pixel_values)
        features, logits = features_of(model, grid, pixel_values)
        whole = target_probability(activation(logits)[:, None], targets)[:, 0]
        keys, maps = image_keys(pixel_values), []
        num_tokens = features[0, 0].numel() + classifier.num_prefix_tokens
        for image, maps_of_image, key, target, prediction in zip(
            pixel_values, features, keys, targets, whole, strict=True
        ):
            generator = KeyedGenerator((seed, 1), key[None])
            total, coverage = torch.zeros_like(image[0]), torch.zeros_like(image[0])
            masks = masks_of(maps_of_image, tuple(image.shape[-2:]))
            for part in masks[:, None].split(max(1, classifier.chunk_size // (2 * num_tokens))):
                noise = 0.1 * generator.normal(len(part), *image.shape)[0] * (1 - part)
                answers = activation(classifier.classifier(torch.cat([part * image + noise, image + noise])).logits)
                masked, noisy = target_probability(answers[None], target[None])[0].chunk(2)
                impact = masked - noisy + prediction
                total += (impact[:, None, None] * part[:, 0]).sum(dim=0)
                coverage += part[:, 0].sum(dim=0)
            maps.append(total / coverage.clamp_min(torch.finfo(torch.float32).tiny))
        return patch_sums(torch.stack(maps), classifier.patch_size)

    return attribute
