"""The explained class: its probability, map, logit and name."""

import pytest
import torch

from salvage_hf.targets import (
    activation,
    check_targets,
    predicted_targets,
    target_attributions,
    target_logits,
    target_names,
    target_probability,
)


@pytest.mark.parametrize("num_labels", [1, 2, 4])
def test_target_probability_and_attributions(num_labels):
    generator = torch.Generator().manual_seed(0)
    probabilities = activation(torch.randn(5, 3, num_labels, generator=generator))
    attributions = torch.randn(5, 7, num_labels, generator=generator)
    targets = torch.arange(5) % max(2, num_labels)
    for b, target in enumerate(targets.tolist()):
        if num_labels > 1:
            expected = probabilities[b, :, target], attributions[b, :, target]
        elif target == 1:
            expected = probabilities[b, :, 0], attributions[b, :, 0]
        else:
            expected = 1 - probabilities[b, :, 0], -attributions[b, :, 0]
        assert torch.equal(target_probability(probabilities, targets)[b], expected[0])
        assert torch.equal(target_attributions(attributions, targets)[b], expected[1])


def test_predicted_targets_are_the_most_probable():
    assert predicted_targets(torch.tensor([[0.1, 3.0, 2.0], [5.0, -1.0, 0.0]])).tolist() == [1, 0]
    assert predicted_targets(torch.tensor([[-0.1], [0.1]])).tolist() == [0, 1]


def test_targets_out_of_range():
    check_targets(torch.tensor([0, 2]), 3)
    check_targets(torch.tensor([0, 1]), 1)
    for targets, num_labels in (([0, 3], 3), ([-1], 3), ([2], 1)):
        with pytest.raises(ValueError, match=f"targets contain {targets[-1]}; .* 0..{max(num_labels, 2) - 1}"):
            check_targets(torch.tensor(targets), num_labels)


@pytest.mark.parametrize("targets", [[0.0, 1.0], [True, False], [0, float("nan")], 1, None, "cat", [[0, 1]], []])
def test_targets_are_whole_numbers(targets):
    with pytest.raises(ValueError, match=r"targets must be whole numbers \[B\].*, got "):
        check_targets(targets, 3)


def test_target_logits_are_those_of_the_class_and_change_their_sign_for_the_absent_label():
    logits = torch.tensor([[0.5, -2.0, 3.0], [1.0, 4.0, 0.0]])
    assert target_logits(logits, torch.tensor([2, 1])).tolist() == [3.0, 4.0]
    assert target_logits(logits[:, :1], torch.tensor([0, 1])).tolist() == [-0.5, 1.0]


def test_one_label_has_two_targets():
    assert target_names(["cat", "dog"]) == ["cat", "dog"]
    assert target_names(["abnormal"]) == ["not abnormal", "abnormal"]
