"""Methods on images of another size than the one that a classifier's position embeddings are for."""

import pytest
import torch

from salvage_hf import MaskedClassifier, attribution_methods

OPTIONS = {
    "rise": {"budget": 8},
    "kernelshap": {"budget": 60},
    "svarm": {"budget": 100},
    "smoothgrad": {"num_samples": 2},
    "integrated_gradients": {"num_steps": 4},
}
UNTRAINED = [name for name, method in attribution_methods.REGISTRY.items() if method.objective is None]


@torch.no_grad()
def for_size_of(classifier, rows, columns):
    """The same classifier with positions for a grid, interpolated once and stored."""
    embeddings = classifier.base_model.embeddings
    prefix = embeddings.position_embeddings.shape[1] - 16
    tokens = torch.zeros(1, prefix + rows * columns, 32)
    positions = embeddings.interpolate_pos_encoding(tokens, 4 * rows, 4 * columns)
    other = type(classifier)(type(classifier.config)(**{**classifier.config.to_dict(), "image_size": [24, 8]}))
    other.load_state_dict(
        {**classifier.state_dict(), f"{other.base_model_prefix}.embeddings.position_embeddings": positions}
    )
    return other.eval()


@pytest.mark.parametrize("family", ["vit", "deit"])
@pytest.mark.parametrize("name", UNTRAINED)
def test_maps_are_those_of_a_classifier_of_that_size(tiny_classifier, images, name, family):
    classifier = tiny_classifier(family)
    pixel_values, targets = images(2, 24, 8), torch.tensor([1, 0])
    before = classifier.base_model.embeddings
    maps = [
        attribution_methods.load(name, MaskedClassifier(model), **OPTIONS.get(name, {}))(pixel_values, targets)
        for model in (classifier, for_size_of(classifier, 6, 2))
    ]
    assert maps[0].shape == (2, 12)
    torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-4)
    assert classifier.base_model.embeddings is before
