"""Estimates of Shapley values: a slow SVARM, written from its strata, and the exact values by enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch

from salvage_hf import MaskedClassifier, attribution_methods
from salvage_hf.attribution_methods import shapley
from salvage_hf.masking import value_at

N = 9
ALL_SUBSETS = torch.tensor(list(itertools.product([False, True], repeat=N)))


def exact_shapley(subsets, values):
    """Equation 1 by enumeration: all subsets of N patches, bool [2 ** N, N], and their v."""
    value_of = {tuple(subset): value for subset, value in zip(subsets.tolist(), values.tolist(), strict=True)}
    exact = []
    for patch in range(N):
        total = 0.0
        for subset, value in value_of.items():
            if not subset[patch]:
                size = sum(subset)
                weight = math.factorial(size) * math.factorial(N - 1 - size) / math.factorial(N)
                total += weight * (value_of[(*subset[:patch], True, *subset[patch + 1 :])] - value)
        exact.append(total)
    return torch.tensor(exact, dtype=torch.float64)


def slow_svarm(subsets, values):
    """The estimate from subsets that were asked about and their v, patch by patch and stratum by stratum."""
    num_patches = len(subsets[0])
    of_size = {size: [v for s, v in zip(subsets, values, strict=True) if sum(s) == size] for size in (0, num_patches)}
    ends = {size: sum(found) / len(found) for size, found in of_size.items()}
    estimates = []
    for patch in range(num_patches):
        total = 0.0
        for is_shown, sizes, sign in ((True, range(1, num_patches + 1), 1), (False, range(num_patches), -1)):
            known = dict(ends)
            for size in sizes:
                stratum = [v for s, v in zip(subsets, values, strict=True) if sum(s) == size and s[patch] == is_shown]
                if stratum:
                    known[size] = sum(stratum) / len(stratum)
            places = sorted(known)
            total += sign * sum(np.interp(list(sizes), places, [known[size] for size in places]))
        estimates.append(total / num_patches)
    return torch.tensor(estimates, dtype=torch.float32)


@pytest.fixture
def asked(monkeypatch):
    """What the estimators of this module ask about: a list of (subsets [B, M, N], probabilities [B, M, K])."""
    calls = []

    def recording(v, pixel_values):
        value = value_at(v, pixel_values)

        def probabilities(subsets):
            calls.append((subsets, value(subsets)))
            return calls[-1][1]

        return probabilities

    monkeypatch.setattr(shapley, "value_at", recording)
    return calls


@pytest.mark.parametrize("budget", [2, 3, 8, 25, 26, 100, 700])
@pytest.mark.parametrize("side", [4, 8, 12])
def test_svarm_is_the_mean_over_its_strata(tiny_classifier, images, asked, budget, side):
    """The literal version agrees, for 1, 4 and 9 patches, with strata that are empty and with all of them full."""
    pixel_values, targets = images(2, side), torch.tensor([0, 2])
    method = attribution_methods.load("svarm", classifier=MaskedClassifier(tiny_classifier()), budget=budget)
    maps = method(pixel_values, targets)
    subsets, values = (torch.cat(parts, dim=1) for parts in zip(*asked, strict=True))
    assert subsets.shape[1] <= budget
    assert subsets.shape[1] == budget or side == 4  # one patch has two subsets
    for image, target in enumerate(targets.tolist()):
        expected = slow_svarm(subsets[image].tolist(), values[image, :, target].tolist())
        torch.testing.assert_close(maps[image], expected, rtol=1e-5, atol=1e-6)


def test_svarm_of_all_subsets_is_exact():
    values = torch.rand(2, len(ALL_SUBSETS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strata = shapley._Strata(2, N, torch.device("cpu"))
    for part in torch.arange(len(ALL_SUBSETS)).split(100):
        strata.add(ALL_SUBSETS[part].expand(2, -1, -1), values[:, part])
    expected = torch.stack([exact_shapley(ALL_SUBSETS, of_image) for of_image in values])
    torch.testing.assert_close(strata.shapley_values(), expected)


@pytest.mark.parametrize(
    ("budget", "of_size"),
    [
        (2, [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        (10, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (25, [1, 3, 3, 3, 2, 3, 3, 3, 3, 1]),  # no room for all of 1 and of 8 patches, and one of each size between
        (26, [1, 9, 1, 1, 1, 1, 1, 1, 9, 1]),
        (86, [1, 9, 11, 11, 11, 11, 11, 11, 9, 1]),
    ],
)
def test_svarm_covers_the_sizes_evenly(tiny_classifier, images, asked, budget, of_size):
    method = attribution_methods.load("svarm", classifier=MaskedClassifier(tiny_classifier()), budget=budget)
    method(images(2, 12), torch.tensor([0, 2]))
    subsets = torch.cat([subsets for subsets, _ in asked], dim=1)
    for of_image in subsets:
        sizes = of_image.sum(dim=1)
        assert sizes.bincount(minlength=N + 1).tolist() == of_size
        assert budget < 26 or all(len(of_image[sizes == size].unique(dim=0)) == N for size in (1, N - 1))
    assert budget == 2 or not torch.equal(*subsets)  # every image has random subsets of its own


@pytest.mark.parametrize(("name", "budget", "tolerance"), [("kernelshap", 512, 1e-4), ("svarm", 60000, 0.02)])
def test_estimates_converge_to_shapley_values(tiny_classifier, images, name, budget, tolerance):
    v = MaskedClassifier(tiny_classifier("dinov2_with_registers"))
    pixel_values, targets = images(2, 12), torch.tensor([0, 2])
    maps = attribution_methods.load(name, classifier=v, budget=budget)(pixel_values, targets)
    probabilities = v.probabilities(pixel_values, ALL_SUBSETS.expand(2, -1, -1))
    for image, target in enumerate(targets.tolist()):
        exact = exact_shapley(ALL_SUBSETS, probabilities[image, :, target])
        assert exact.std() > 2 * tolerance
        assert (maps[image] - exact).abs().max() < tolerance


@pytest.mark.parametrize(("name", "least"), [("kernelshap", 17), ("svarm", 2)])
def test_estimates_need_a_least_number_of_subsets(tiny_classifier, images, name, least):
    method = attribution_methods.load(name, classifier=MaskedClassifier(tiny_classifier()), budget=least - 1)
    with pytest.raises(ValueError, match=f"budget must be at least {least} for 16 patches, got {least - 1}"):
        method(images(1), torch.tensor([0]))
