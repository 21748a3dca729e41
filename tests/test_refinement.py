"""Refined maps against a literal version, and the direction in which they move against the slope of SRG itself."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from salvage_hf import MaskedClassifier, attribution_methods, refinement, subsets
from salvage_hf.faithfulness import rank_scores
from salvage_hf.keyed_random import KeyedGenerator, image_keys
from salvage_hf.refinement import LEAST_BUDGET, inclusion_probabilities, measure, refine


@pytest.fixture
def setting(tiny_classifier, images):
    """A classifier, maps of two images of 16 patches, the images and their targets."""
    maps = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.01], [3.0]])
    return MaskedClassifier(tiny_classifier()), maps, images(2), torch.tensor([0, 2])


def literal_inclusion(weights, size):
    """The time by which `size` clocks have rung on average, by bisection, and how likely each has rung by then."""
    weights = np.maximum(weights / weights.max(), 1e-9) if weights.max() > 0 else np.ones_like(weights)
    low, high = 1e-7, 1e11
    while high / low > 1 + 1e-12:
        time = math.sqrt(low * high)
        if sum(1 - math.exp(-w * time) for w in weights) < size:
            low = time
        else:
            high = time
    return np.array([-math.expm1(-w * high) for w in weights])


def literal_refinement(v, maps, pixel_values, targets, budget):
    """Image by image, subset by subset and patch by patch, in numpy: (attributions, effects, standard errors)."""
    num_patches, num_rounds = maps.shape[1], math.ceil(budget / 128)
    round_sizes = [len(part) for part in np.array_split(np.arange(budget), num_rounds)]
    results = []
    for b, target in enumerate(targets):
        given = maps[b].double().numpy()
        standardised = (given - given.mean()) / given.std()
        order = standardised
        products, squares, information = np.zeros(num_patches), np.zeros(num_patches), np.zeros(num_patches)
        residual_squares, free = 0.0, 0
        for number, size in enumerate(round_sizes):
            of_sizes = KeyedGenerator("sizes of refinement", 0, number, keys=torch.zeros(1).long())
            halves = [math.ceil(size / 2), size // 2]
            sizes = [
                subsets.stratified_sizes(1, half, num_patches - 1, generator=of_sizes)[0].tolist() for half in halves
            ]
            drawn = subsets.attribution_guided(
                torch.from_numpy(order)[None],
                size,
                generator=KeyedGenerator("subsets of refinement", 0, number, keys=image_keys(pixel_values[b : b + 1])),
                sizes=torch.tensor(sizes[0] + sizes[1]),
                exponent=2.0,
            )
            predictions = v.probabilities(pixel_values[b : b + 1], drawn)[0, :, target].double().numpy()
            rows = drawn[0].numpy()
            for first, of_half, weights in (
                (0, sizes[0], order - order.min()),
                (halves[0], sizes[1], order.max() - order),
            ):
                part = slice(first, first + len(of_half))
                share = np.array(of_half) / num_patches
                functions = np.stack([share**0, share, share**2, share**0.5], axis=1)
                p = predictions[part]
                residuals = p - functions @ np.linalg.lstsq(functions, p, rcond=None)[0]
                for row, of_size, residual in zip(rows[part], of_half, residuals, strict=True):
                    likely = literal_inclusion((weights / weights.max()) ** 2, of_size)
                    for patch in range(num_patches):
                        deviation = row[patch] - likely[patch]
                        products[patch] += deviation * residual
                        squares[patch] += (deviation * residual) ** 2
                        information[patch] += likely[patch] * (1 - likely[patch])
                residual_squares += residuals @ residuals
                free += len(of_half) - 4
            order = standardised + 0.1 * products / math.sqrt(residual_squares / free)
        values = np.zeros(num_patches)
        for patch, value in zip(sorted(range(num_patches), key=lambda i: order[i]), sorted(given), strict=True):
            values[patch] = value
        results.append((values, products / information, np.sqrt(squares * budget / free) / information))
    return [torch.tensor(np.array(part)) for part in zip(*results, strict=True)]


@pytest.mark.parametrize("budget", [16, 41, 128, 300])
def test_refinement_equals_the_literal_version(setting, budget):
    v, maps, pixel_values, targets = setting
    refined = refine(v, maps, pixel_values, targets, budget)
    values, effects, stderr = literal_refinement(v, maps, pixel_values, targets, budget)
    assert not torch.equal(refined.attributions, maps)
    torch.testing.assert_close(refined.attributions.double(), values)
    torch.testing.assert_close(refined.effects, effects, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(refined.stderr, stderr, rtol=1e-3, atol=1e-6)


def test_without_subsets_the_map_is_the_given_one(setting):
    v, maps, pixel_values, targets = setting
    refined = refine(v, maps, pixel_values, targets, 0)
    assert torch.equal(refined.attributions, maps)
    assert not refined.effects.any()
    assert refined.stderr.isposinf().all()


# Inclusion probabilities


@pytest.mark.parametrize(("num_patches", "tolerance"), [(3, 0.1), (7, 0.05)])
def test_inclusion_probabilities_are_near_those_by_enumeration(num_patches, tolerance):
    weights = torch.rand(num_patches, generator=torch.Generator().manual_seed(1)).double() ** 2
    exact = torch.zeros(num_patches - 1, num_patches, dtype=torch.float64)
    for order in itertools.permutations(range(num_patches)):
        left, probability = weights.sum(), 1.0
        for patch in order:
            probability, left = probability * weights[patch] / left, left - weights[patch]
        for size in range(1, num_patches):
            exact[size - 1, list(order[:size])] += probability
    found = inclusion_probabilities(weights[None], torch.arange(1, num_patches))[0]
    assert (found - exact).abs().max() < tolerance


def test_inclusion_probabilities_are_those_of_draws():
    weights = torch.linspace(0, 1, 64).double()[None] ** 2
    sizes = torch.tensor([1, 5, 30, 60, 63])
    generator = torch.Generator().manual_seed(0)
    orders = subsets.positions(subsets.weighted_orders(weights, 20_000, generator=generator))[0]
    drawn = torch.stack([(orders < size).double().mean(dim=0) for size in sizes])
    found = inclusion_probabilities(weights, sizes)[0]
    torch.testing.assert_close(found.sum(dim=1), sizes.double())
    assert (found - drawn).abs().max() < 0.04


def test_patches_of_one_weight_are_equally_likely():
    found = inclusion_probabilities(
        torch.tensor([0.0, 1e300], dtype=torch.float64)[:, None].expand(2, 8), torch.arange(1, 8)
    )
    torch.testing.assert_close(found, (torch.arange(1, 8).double() / 8)[:, None].expand(2, 7, 8))


# What is measured


def drawn_by(maps, number, seed=0):
    """Subsets of maps [B, N] as `refine` draws them, and their sizes [M]."""
    sizes = refinement._sizes(number, maps.shape[1], seed)
    generator = torch.Generator().manual_seed(seed)
    return subsets.attribution_guided(maps, number, generator=generator, sizes=sizes, exponent=2.0), sizes


def test_measured_effects_scatter_around_those_of_many_subsets_as_their_errors_say():
    """200 measurements of the effects of 8 patches in a game that is additive but for noise."""
    generator = torch.Generator().manual_seed(0)
    own = 0.1 * torch.randn(8, generator=generator).double()
    maps = torch.linspace(-1, 1, 8).double().expand(200, -1)
    drawn, sizes = drawn_by(maps, 512)
    noise = 0.5 * torch.randn(200, 512, generator=generator).double()
    found = measure(drawn.double() @ own + noise, drawn, sizes, maps)
    many, sizes_of_many = drawn_by(maps[:1], 40_000, seed=1)
    expected = measure(many.double() @ own, many, sizes_of_many, maps[:1])
    deviations = (found.effects - expected.effects) / found.stderr
    assert deviations.mean(dim=0).abs().max() < 4 / 200**0.5
    assert 0.9 < deviations.std() < 1.1


def test_the_slope_is_that_of_the_srg_of_random_orders():
    """Beside the gradient by enumeration of all orders of six patches, in the logarithms of their weights."""
    num_patches = 6
    generator = torch.Generator().manual_seed(3)
    game = torch.rand(2**num_patches, generator=generator).double()
    scores = torch.randn(num_patches, generator=generator).double()
    orders = torch.tensor(list(itertools.permutations(range(num_patches))))
    powers = 2 ** torch.arange(num_patches)

    def expected_insertion(log_weights):
        """The mean prediction over sizes 1..N-1 from the first patches of orders drawn by weights."""
        weights = log_weights.exp()[orders]  # [720, 6]
        left = weights.flip(1).cumsum(1).flip(1)
        probability = (weights / left).prod(dim=1)
        shown = powers[orders].cumsum(dim=1)[:, : num_patches - 1]
        return probability @ game[shown].mean(dim=1)

    gradient = torch.zeros(num_patches, dtype=torch.float64)
    for sign in (1, -1):  # LIF, and MIF, whose curve is to be low
        weights = (2 * subsets.min_max_weights(sign * scores).clamp_min(1e-9).log()).requires_grad_()
        (found,) = torch.autograd.grad(expected_insertion(weights), weights)
        gradient += found
    drawn, sizes = drawn_by(scores[None], 40_000)
    found = measure(game[(drawn * powers).sum(dim=-1)], drawn, sizes, scores[None]).slope[0]
    assert torch.corrcoef(torch.stack([gradient, found]))[0, 1] > 0.95


# Refinement as a whole


def test_neither_the_batch_nor_the_chunk_changes_a_refined_map(setting):
    v, maps, pixel_values, targets = setting
    together = refine(v, maps, pixel_values, targets, 300)
    for chunk_size in (None, 50):
        small = MaskedClassifier(v.classifier, chunk_size=chunk_size)
        for b in range(2):
            alone = refine(small, maps[b : b + 1], pixel_values[b : b + 1], targets[b : b + 1], 300)
            torch.testing.assert_close(alone.effects[0], together.effects[b], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone.attributions[0], together.attributions[b])
    other = refine(v, maps, pixel_values, targets, 300, seed=1)
    assert not torch.allclose(other.effects, together.effects, atol=1e-3)


@pytest.mark.parametrize("budget", [16, 17, 128, 129, 1000])
def test_the_budget_is_what_the_classifier_is_asked(setting, monkeypatch, budget):
    v, maps, pixel_values, targets = setting
    asked, logits_of = [], MaskedClassifier.logits_of
    monkeypatch.setattr(
        MaskedClassifier, "logits_of", lambda v, *inputs: asked.append(inputs[1].shape[1]) or logits_of(v, *inputs)
    )
    refine(v, maps, pixel_values, targets, budget)
    assert sum(asked) == budget
    assert max(asked) <= 128
    assert max(asked) - min(asked) <= 1


def test_a_prediction_that_never_changes_leaves_the_order(setting):
    v, maps, pixel_values, targets = setting
    torch.nn.init.zeros_(v.classifier.classifier.weight)
    refined = refine(v, maps, pixel_values, targets, 64)
    assert torch.equal(refined.attributions, maps)


def test_a_map_without_differences_stays_without_them(setting):
    v, maps, pixel_values, targets = setting
    refined = refine(v, torch.full_like(maps, 0.1), pixel_values, targets, 64)
    assert torch.equal(refined.attributions, torch.full_like(maps, 0.1))
    assert (refined.effects.abs() > 0).any()


@pytest.mark.parametrize("num_patches", [1, 2, 3, 4])
def test_few_patches_give_numbers(setting, images, num_patches):
    v, _, _, targets = setting
    maps = torch.arange(2.0 * num_patches).view(2, num_patches)
    refined = refine(v, maps, images(2, 4, 4 * num_patches), targets, 64)
    assert refined.attributions.sort(dim=1).values.equal(maps)
    assert refined.effects.isfinite().all()
    assert (refined.stderr >= 0).all()
    if num_patches < 3:  # two patches have a first and a last one, in every order that the weights 0 and 1 draw
        assert refined.stderr.isposinf().all()


def test_the_method_is_the_refinement(setting, salvage_model):
    v, _, pixel_values, targets = setting
    explainer = salvage_model()
    with torch.no_grad():
        maps = explainer(pixel_values).attributions[torch.arange(2), :, targets]
    method = attribution_methods.load("salvage_refined", v, explainer=explainer, budget=32, seed=3)
    expected = refine(v, maps, pixel_values, targets, 32, seed=3).attributions
    torch.testing.assert_close(method(pixel_values, targets), expected)


@pytest.mark.parametrize("budget", [-1, 1, LEAST_BUDGET - 1, 1.5, True, "16", None])
def test_wrong_budgets_are_refused(setting, budget):
    with pytest.raises(ValueError, match="budget must be"):
        refine(*setting, budget)


def test_maps_of_another_grid_are_refused(setting):
    v, maps, pixel_values, targets = setting
    with pytest.raises(ValueError, match=r"attributions must be real numbers \[B, N\] with B = 2, N = 16"):
        refine(v, maps[:, :9], pixel_values, targets, 16)


def test_refinement_ranks_the_real_classifiers_patches_better(imagenette_classifier, imagenette_images):
    """Random maps become ones that rank patches, by 128 subsets; of small images, whose forwards take less time."""
    v = MaskedClassifier.from_pretrained(imagenette_classifier)
    pixel_values, targets = interpolate(imagenette_images[0][:5], 56, mode="area"), imagenette_images[1][:5]
    maps = attribution_methods.load("random", v)(pixel_values, targets)
    assert maps.shape == (5, 16)
    before = rank_scores(v, pixel_values, maps, targets).srg
    after = rank_scores(v, pixel_values, refine(v, maps, pixel_values, targets, 128).attributions, targets).srg
    assert (after - before).min() > 0.1
