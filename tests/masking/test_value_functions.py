"""v(S) in the forms that users may give it in."""

import pytest
import torch
from partial_images import TokenCounter, masked, random_subsets

from salvage_hf.masking import MaskedClassifier, as_value_function, masked_classifier, value_at


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


def test_weights_are_cast_once_for_all_subsets_of_the_images(tiny_classifier, images, monkeypatch):
    casts, cast = [], masked_classifier.in_dtype

    def counting(module, dtype):
        casts.append(module)
        return cast(module, dtype)

    monkeypatch.setattr(masked_classifier, "in_dtype", counting)
    v = masked(tiny_classifier(), mixed_precision="bf16")
    value = value_at(v, images(2))
    for seed in range(3):
        value(random_subsets(2, 3, seed=seed))
    assert sum(module is v.classifier for module in casts) == 1
    v.logits(images(2), random_subsets(2, 3))
    assert sum(module is v.classifier for module in casts) == 2
