"""The test that marks the best methods of a score."""

import itertools

import pytest
import torch

from salvage_hf.evaluation.significance import lead, mark, not_worse


def literal_share_of_resamples(differences):
    """The exact bootstrap: the share of all samples with replacement whose mean difference is at most 0."""
    samples = list(itertools.product(differences, repeat=len(differences)))
    return sum(sum(sample) <= 0 for sample in samples) / len(samples)


@pytest.mark.parametrize("differences", [[1, 2, 3, 1], [5, -4, 3, 2], [1, -1, 0, 0], [-2, -1, 3, 4, 2]])
@pytest.mark.parametrize("level", [0.05, 0.2, 0.5])
def test_not_worse_is_the_bootstrap_over_all_resamples(differences, level):
    share = literal_share_of_resamples(differences)
    values = torch.randint(9, (len(differences),), generator=torch.Generator().manual_seed(0)).double()
    leader = values + torch.tensor(differences)  # whole numbers: ties are exact
    if abs(share - level) > 0.02:  # 10,000 resamples estimate the share to about 0.005
        assert not_worse(values, leader, level=level) == (share >= level)


def test_several_methods_at_once_are_each_as_alone():
    """Also where their scores are defined on different images."""
    values = torch.rand(12, 30, generator=torch.Generator().manual_seed(0)).double()
    values[2:5, 4] = values[5:7, 10:20] = values[8] = float("nan")
    leader = values[0] + 0.05
    assert not_worse(values, leader).tolist() == [bool(not_worse(row, leader)) for row in values]
    assert 0 < not_worse(values, leader).sum() < 12


@pytest.mark.parametrize("differences", [[1, 2, 3, 1], [5, -4, 3, 2], [-2, -1, 3, 4, 2]])
def test_a_lead_is_the_mean_between_quantiles_of_all_resamples(differences):
    samples = sorted(sum(sample) / len(sample) for sample in itertools.product(differences, repeat=len(differences)))
    values = torch.randint(9, (len(differences),), generator=torch.Generator().manual_seed(0)).double()
    nan = torch.tensor([float("nan"), 1.0]).double()
    mean, low, high = lead(torch.cat([values, nan]), torch.cat([values + torch.tensor(differences), nan.flip(0)]), 0.2)
    assert mean == pytest.approx(sum(differences) / len(differences))
    steps = [samples[round((share + shift) * len(samples))] for share in (0.2, 0.8) for shift in (-0.02, 0.02)]
    assert steps[0] <= low <= steps[1]
    assert steps[2] <= high <= steps[3]


def test_marks_follow_the_pairs_and_not_the_spread():
    """A small difference on every image is detected; an even smaller one between noisy images is not."""
    generator = torch.Generator().manual_seed(1)
    leader = torch.rand(100, generator=generator, dtype=torch.float64)
    scores = {
        "leader": leader,
        "like it": leader + 0.1 * torch.randn(100, generator=generator, dtype=torch.float64) - 0.003,
        "always below": leader - 0.02,
        "far below": leader - 0.5,
    }
    assert mark(scores, True) == {"leader": "best", "like it": "best", "always below": "second"}
    downwards = {name: -values for name, values in scores.items()}
    assert mark(downwards, False) == mark(scores, True)


def test_images_without_a_value_are_left_out_of_the_pairs():
    nan = float("nan")
    leader = torch.tensor([0.9, 0.9, 0.9, nan, 0.9], dtype=torch.float64)
    other = torch.tensor([0.1, 0.2, nan, 0.9, nan], dtype=torch.float64)
    assert not not_worse(other, leader)
    undefined = torch.full((20,), nan)
    assert mark({"a": leader.repeat(4), "b": undefined}, True) == {"a": "best"}


def test_a_method_that_is_defined_on_few_images_wins_no_column():
    nan = float("nan")
    rarely = torch.tensor([1.0, *[nan] * 9], dtype=torch.float64)
    assert mark({"always": torch.full((10,), 0.5).double(), "rarely": rarely}, True) == {"always": "best"}


def test_means_are_compared_on_the_images_that_all_have():
    """A method must not win because its score is undefined on the hard images."""
    nan = float("nan")
    easy_only = torch.tensor([*[0.9] * 10, *[nan] * 10], dtype=torch.float64)
    better = torch.tensor([*[0.95] * 10, *[0.5] * 10], dtype=torch.float64)
    assert mark({"easy only": easy_only, "better": better}, True) == {"better": "best", "easy only": "second"}


def test_most_is_counted_among_images_where_any_method_is_defined():
    """Images without a region, or beyond the first that were scored, do not count against a method."""
    nan = float("nan")
    first = torch.tensor([*[0.5] * 10, *[nan] * 20], dtype=torch.float64)
    assert mark({"good": first, "bad": first - 0.1}, True) == {"good": "best", "bad": "second"}


def test_nothing_is_marked_on_few_images_or_without_another_method():
    good = torch.full((9,), 0.9, dtype=torch.float64)
    assert mark({"good": good, "bad": good - 0.1}, True) == {}
    assert mark({"good": good.repeat(2)}, True) == {}
    assert mark({"good": good.repeat(2), "bad": good.repeat(2) - 0.1}, True) == {"good": "best", "bad": "second"}
