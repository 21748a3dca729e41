"""v(S) in the forms that users have it in."""

import pytest
import torch

from salvage_hf.masking import MaskedClassifier, as_value_function, value_at

N = 16  # patches of 4 x 4 pixels in the tiny images


def masked(classifier, masking=None, **kwargs):
    return MaskedClassifier(classifier, masking=masking, patch_size=4, image_size=(16, 16), **kwargs)


def random_subsets(batch_size, num_subsets, num_patches=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand(batch_size, num_subsets, 1, generator=generator)
    return torch.rand(batch_size, num_subsets, num_patches, generator=generator) < density


class TokenCounter:
    """Counts what reaches a module: rows * tokens of every call."""

    def __init__(self, module):
        self.calls = []
        module.register_forward_pre_hook(lambda _, args: self.calls.append(args[0].shape[:2]))

    @property
    def tokens(self):
        return sum(rows * length for rows, length in self.calls)


@pytest.mark.parametrize("masking", ["drop", "mean"])
def test_value_at_embeds_once_and_gives_probabilities(tiny_classifier, images, masking):
    classifier = tiny_classifier()
    counter = TokenCounter(classifier.base_model.embeddings)
    v, subsets = masked(classifier, masking), random_subsets(2, 3)
    expected = v.probabilities(images(2), subsets)
    counter.calls.clear()
    value = value_at(v, images(2))
    for _ in range(2):
        probabilities = value(subsets)
        assert not probabilities.requires_grad
        torch.testing.assert_close(probabilities, expected)
    if masking == "drop":
        assert len(counter.calls) == 1


def test_v_can_be_given_in_many_forms(tiny_classifier, save_processor, images, tmp_path):
    classifier = tiny_classifier()
    classifier.save_pretrained(tmp_path)
    save_processor(tmp_path)
    v, subsets = MaskedClassifier(classifier), random_subsets(2, 3)
    expected = v.probabilities(images(2), subsets)
    for form in (v, classifier, str(tmp_path), v.probabilities):
        value = value_at(as_value_function(form), images(2))
        torch.testing.assert_close(value(subsets), expected, rtol=0, atol=1e-6)
    assert as_value_function(v) is v
    with pytest.raises(TypeError, match="got int"):
        as_value_function(3)
