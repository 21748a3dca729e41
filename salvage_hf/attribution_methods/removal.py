"""Removal-based methods: they ask the classifier about images of which parts are hidden."""

import torch
from torch import nn

from ..keyed_random import KeyedGenerator, image_keys
from ..masking import MaskedClassifier, value_at
from ..subsets import min_max_weights
from ..targets import activation, target_probability
from ..vision_families import image_logits
from .feature_maps import features_of, model_with_feature_grid
from .registry import Method, patch_sums, register


@register("rise", title="RISE", needs="masked forwards", source="Petsiuk et al., 2018")
def rise(classifier: MaskedClassifier, seed: int = 0, budget: int = 2000) -> Method:
    """Randomised input sampling: the mean of v(S) over random subsets that show the patch.

    A mask is a subset of patches, passed to v(S), that shows each patch with probability 1/2. Petsiuk et al. upsample
    and shift their masks, because they explain models without patches; this is not needed here.

    Args:
        classifier: the classifier to explain.
        seed: seed of the subsets.
        budget: subsets per image, each a forward of the classifier.
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")

    @torch.no_grad()
    def attribute(pixel_values, targets):
        rows, columns = classifier.patch_grid(pixel_values)
        value = value_at(classifier, pixel_values)
        generator = KeyedGenerator("subsets of RISE", seed, keys=image_keys(pixel_values))
        total, shown = 0, 0
        for number in torch.arange(budget).split(512):  # the subsets are never all in memory
            masks = generator.uniform(len(number), rows * columns) < 0.5
            predictions = target_probability(value(masks), targets)
            total = total + (predictions.to(masks.device)[:, None] @ masks.float())[:, 0]
            shown = shown + masks.sum(dim=1)
        return total / shown.clamp_min(1)

    return attribute


@register("vit_cx", title="ViT-CX", needs="masked forwards", source="Xie et al., 2023")
def vit_cx(classifier: MaskedClassifier, seed: int = 0, distance_threshold: float = 0.1) -> Method:
    """ViT-CX: clustered feature maps are masks over the pixels, weighted by their causal impact on the prediction.

    Masks: the feature maps are upsampled to the image and scaled to 0..1; those with a cosine similarity above
    1 - distance_threshold are added up (complete linkage), and the sum is scaled again. The impact of a mask is the
    prediction from what it shows, with noise on the rest, minus the prediction from the whole image with the same noise
    added, plus the prediction from the image. The map is the sum of the masks weighted by their impact, divided by the
    sum of the masks at the pixel. The noise is Gaussian with a standard deviation of 0.1.

    Images are explained one by one, because their numbers of masks differ (some dozens); a mask costs two forwards.
    """
    from sklearn.cluster import AgglomerativeClustering

    classifier.token_family()  # raises here, not at the first image, where the model is no known vision transformer

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
        model, grid = model_with_feature_grid(classifier, pixel_values)
        features, logits = features_of(model, grid, pixel_values)
        whole = target_probability(activation(logits)[:, None], targets)[:, 0]
        keys, maps = image_keys(pixel_values), []
        num_tokens = features[0, 0].numel() + classifier.num_prefix_tokens
        for image, maps_of_image, key, target, prediction in zip(
            pixel_values, features, keys, targets, whole, strict=True
        ):
            generator = KeyedGenerator("noise of ViT-CX", seed, keys=key[None])
            total, coverage = torch.zeros_like(image[0]), torch.zeros_like(image[0])
            masks = masks_of(maps_of_image, tuple(image.shape[-2:]))
            for part in masks[:, None].split(max(1, classifier.chunk_size // (2 * num_tokens))):
                noise = 0.1 * generator.normal(len(part), *image.shape)[0] * (1 - part)
                shown = torch.cat([part * image + noise, image + noise])
                answers = activation(image_logits(classifier.classifier, shown))
                masked, noisy = target_probability(answers[None], target[None])[0].chunk(2)
                impact = masked - noisy + prediction
                total += (impact[:, None, None] * part[:, 0]).sum(dim=0)
                coverage += part[:, 0].sum(dim=0)
            maps.append(total / coverage.clamp_min(torch.finfo(torch.float32).tiny))
        return patch_sums(torch.stack(maps), classifier.patch_size)

    return attribute
