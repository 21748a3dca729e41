"""v(S) of images of another size than the classifier's config states."""

import functools
import math

import pytest
import torch
from partial_images import random_subsets

from salvage_hf.masking import MaskedClassifier
from salvage_hf.vision_families import embeddings_of, image_logits

NUM_PREFIX = {"vit": 1, "deit": 2, "deit_teacher": 2}
#: The second has as many patches as the stated 16 x 16 pixels.
SIZES = [(24, 24), (8, 32), (12, 20)]


def literal_bicubic(grid, rows, columns):
    """Keys' bicubic interpolation with a = -0.75: [4, 4, D] -> [rows, columns, D]."""

    def kernel(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    out = torch.zeros(rows, columns, grid.shape[-1])
    for row in range(rows):
        for column in range(columns):
            y, x = (row + 0.5) * 4 / rows - 0.5, (column + 0.5) * 4 / columns - 0.5
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    out[row, column] += kernel(y - i) * kernel(x - j) * grid[min(max(i, 0), 3), min(max(j, 0), 3)]
    return out


def made_for(tiny_classifier, family, classifier, height, width):
    """The classifier, made for images of this size: its positions are interpolated once and for all."""
    other = tiny_classifier(family, image_size=[height, width])
    weights, name = classifier.state_dict(), f"{classifier.base_model_prefix}.embeddings.position_embeddings"
    prefix, places = weights[name][0].split([NUM_PREFIX[family], 16])
    places = literal_bicubic(places.view(4, 4, -1), height // 4, width // 4).flatten(0, 1)
    other.load_state_dict({**weights, name: torch.cat([prefix, places])[None]})
    return other


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("masking", ["drop", "zero"])
@pytest.mark.parametrize("family", NUM_PREFIX)
def test_positions_are_interpolated(tiny_classifier, images, family, masking, height, width):
    classifier, pixel_values = tiny_classifier(family), images(2, height, width)
    subsets = random_subsets(2, 5, (height // 4) * (width // 4))
    subsets[0, 0], subsets[1, 1] = False, True
    v = MaskedClassifier(classifier, masking)
    exact = MaskedClassifier(made_for(tiny_classifier, family, classifier, height, width), masking)
    expected = exact.logits(pixel_values, subsets)
    torch.testing.assert_close(v.logits(pixel_values, subsets), expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=1).min() > 1e-3
    torch.testing.assert_close(image_logits(classifier, pixel_values), image_logits(exact.classifier, pixel_values))


@pytest.mark.parametrize("family", [*NUM_PREFIX, "siglip", "beit"])
def test_images_of_the_stated_size_are_seen_as_without_interpolation(tiny_classifier, images, family):
    classifier = tiny_classifier(family)
    assert torch.equal(image_logits(classifier, images(2)), classifier(images(2)).logits)


@pytest.mark.parametrize("family", ["siglip", "beit", "swin", "resnet"])
def test_pixels_are_hidden_in_images_of_any_size(tiny_classifier, images, family):
    v = MaskedClassifier(tiny_classifier(family), patch_size=4)
    subsets = torch.ones(2, 1, 24, dtype=torch.bool)
    options = {"interpolate_pos_encoding": True} if family in ("siglip", "beit") else {}
    with torch.no_grad():
        expected = v.classifier(images(2, 16, 24), **options).logits
    assert torch.equal(v.logits(images(2, 16, 24), subsets)[:, 0], expected)


def test_positions_that_cannot_be_interpolated_are_refused(tiny_classifier, images):
    """transformers would take the positions of 2 x 8 patches for those of 4 x 4."""
    v = MaskedClassifier(tiny_classifier("vit", image_size=[8, 32]))
    v.logits(images(1, 8, 32), torch.ones(1, 1, 16, dtype=torch.bool))
    with pytest.raises(
        ValueError, match="pixel_values are 16 x 16 pixels; the positions of this vit model are for 8 x"
    ):
        v.logits(images(1), torch.ones(1, 1, 16, dtype=torch.bool))
    v = MaskedClassifier(tiny_classifier("vit"))
    embeddings = embeddings_of(v.classifier)
    embeddings.forward = functools.partial(lambda forward, pixel_values: forward(pixel_values), embeddings.forward)
    with pytest.raises(ValueError, match="are for 16 x 16, and it cannot interpolate them"):
        v.logits(images(1, 24), torch.ones(1, 1, 36, dtype=torch.bool))
