import itertools

import pytest
import torch

from salvage_hf import subsets as sampling
from salvage_hf.faithfulness import mean_and_stderr, rank_scores, relative_scores
from salvage_hf.keyed_random import KeyedGenerator, image_keys
from salvage_hf.masking import MaskedClassifier


def game(pixel_values, subsets):
    """A v with interactions on "images" x [B, K, 1, N]: patch i adds x[k, i] to class k, pairs of neighbours more."""
    evidence = pixel_values[:, :, 0].transpose(1, 2)  # [B, N, K]
    visible = subsets.float()
    pairs = visible[..., :-1] * visible[..., 1:]  # neighbours that are both visible
    logits = visible @ evidence + 2 * pairs @ (evidence[:, :-1] * evidence[:, 1:])
    return logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)


def make(batch_size, num_patches, num_labels, seed=0):
    """(pixel_values, attributions, targets) of a random game."""
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(batch_size, num_labels, 1, num_patches, generator=generator)
    attributions = torch.randn(batch_size, num_patches, generator=generator)
    targets = torch.arange(batch_size) % max(2, num_labels)  # with one label 0 and 1
    return pixel_values, attributions, targets


def prediction(v, pixel_values, members, target):
    """v(S)[target] of one image [1, ...], S given as a collection of patches."""
    subset = torch.zeros(1, 1, pixel_values.shape[-1], dtype=torch.bool)
    subset[0, 0, list(members)] = True
    probabilities = v(pixel_values, subset)[0, 0]
    if len(probabilities) == 1:
        return probabilities[0].item() if target == 1 else 1 - probabilities[0].item()
    return probabilities[target].item()


class Counted:
    """A v that remembers what it was asked."""

    def __init__(self, v=game):
        self.v, self.asked = v, []

    def __call__(self, pixel_values, subsets):
        self.asked.append(subsets)
        return self.v(pixel_values, subsets)

    @property
    def subsets(self):
        return torch.cat(self.asked, dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# Algorithm 1


def algorithm_1(v, pixel_values, attributions, target, metric):
    """Line by line, for one image without ties: the curve over sizes 1..N and its mean."""
    num_patches = len(attributions)
    sorted_features = sorted(range(num_patches), key=lambda i: attributions[i].item(), reverse=metric == "LIF")
    visible, predictions = set(), []
    for i in range(num_patches):
        visible.add(sorted_features[i])
        predictions.append(prediction(v, pixel_values, visible, target))
    return torch.tensor(predictions), sum(predictions) / num_patches


@pytest.mark.parametrize("num_labels", [1, 2, 4])
@pytest.mark.parametrize("num_patches", [1, 2, 6, 9])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_rank_scores_equal_algorithm_1(batch_size, num_patches, num_labels):
    pixel_values, attributions, targets = make(batch_size, num_patches, num_labels)
    scores = rank_scores(game, pixel_values, attributions, targets)
    assert scores.mif.shape == scores.lif.shape == (batch_size,)
    assert scores.mif_curve.shape == scores.lif_curve.shape == (batch_size, num_patches)
    for b in range(batch_size):
        image, target = pixel_values[b : b + 1], targets[b].item()
        for metric, curve, score in (
            ("LIF", scores.lif_curve, scores.lif),
            ("MIF", scores.mif_curve, scores.mif),
        ):
            expected_curve, expected = algorithm_1(game, image, attributions[b], target, metric)
            torch.testing.assert_close(curve[b], expected_curve, rtol=0, atol=1e-6)
            assert score[b].item() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(scores.srg, scores.lif - scores.mif)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_rank_scores_of_a_classifier(tiny_classifier, images, num_labels):
    v = MaskedClassifier(tiny_classifier(num_labels=num_labels))
    attributions = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    scores = rank_scores(v, images(2), attributions, torch.tensor([0, 1]))
    for b in range(2):
        for metric, curve in (("LIF", scores.lif_curve), ("MIF", scores.mif_curve)):
            order = attributions[b].argsort(descending=metric == "LIF")
            for size in (1, 7, 16):
                subset = torch.zeros(1, 1, 16, dtype=torch.bool)
                subset[..., order[:size]] = True
                expected = v.probabilities(images(2)[b : b + 1], subset)[0, 0]
                expected = expected[b] if num_labels > 1 else (1 - expected[0] if b == 0 else expected[0])
                torch.testing.assert_close(curve[b, size - 1], expected, rtol=0, atol=1e-5)


def test_rank_scores_ask_for_2n_minus_1_distinct_subsets():
    pixel_values, _, targets = make(3, 8, 2)
    attributions = torch.tensor([[0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 0.0]]).repeat(3, 1)
    counted = Counted()
    rank_scores(counted, pixel_values, attributions, targets)
    assert counted.subsets.shape == (3, 15, 8)
    for subsets in counted.subsets:
        assert len(subsets.unique(dim=0)) == 15
        # MIF's order is LIF's reversed, ties included: every set but the full one comes with its complement
        asked = {tuple(subset) for subset in subsets.tolist()}
        assert {tuple(not patch for patch in subset) for subset in asked if not all(subset)} <= asked


def test_ties_are_broken_at_random_under_the_seed():
    pixel_values, _, targets = make(1, 6, 2)
    attributions = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
    seen = set()
    for seed in range(60):
        counted = Counted()
        rank_scores(counted, pixel_values, attributions, targets, seed=seed)
        sets = counted.subsets[0, :6]
        assert sets[2].tolist() == [True, True, False, True, False, False]  # ties never pass a higher value
        order = (~sets).sum(0)  # in how many of the growing sets a patch is missing
        seen.add(tuple(order.argsort().tolist()))
        again = Counted()
        rank_scores(again, pixel_values, attributions, targets, seed=seed)
        assert torch.equal(again.subsets, counted.subsets)
    assert len(seen) > 20  # of 3! * 3! orders


@pytest.mark.parametrize("constant", [0.0, -3.0])
def test_a_constant_map_scores_nothing(constant):
    """In the mean over random orders its SRG is 0; raster order would give it another score."""
    pixel_values = torch.linspace(-2, 2, 10).view(1, 1, 1, 10).repeat(2000, 2, 1, 1)
    pixel_values[:, 1] = 0
    attributions, targets = torch.full((2000, 10), constant), torch.zeros(2000, dtype=torch.int64)
    srg = rank_scores(game, pixel_values, attributions, targets, ids=torch.arange(2000)).srg
    mean, stderr = mean_and_stderr(srg)
    assert srg.isfinite().all()
    assert srg.std() > 0.05
    assert abs(mean) < 3 * stderr


# ---------------------------------------------------------------------------------------------------------------------
# Algorithm 2


def expected_curve(v, pixel_values, weights, target):
    """E[v(S)] of Algorithm 2 for every size 1..N, by recursion over all sequences of draws."""
    num_patches = len(weights)
    curve = [0.0] * num_patches

    def draw(members, probability):
        if members:
            curve[len(members) - 1] += probability * prediction(v, pixel_values, members, target)
        left = [i for i in range(num_patches) if i not in members]
        total = sum(weights[i] for i in left)
        for i in left:
            chance = weights[i] / total if total > 0 else 1 / len(left)
            if chance > 0:
                draw([*members, i], probability * chance)

    draw([], 1.0)
    return torch.tensor(curve)


def normalised(attributions):
    low, high = attributions.min().item(), attributions.max().item()
    return [(a.item() - low) / (high - low) if high > low else 0.0 for a in attributions]


@pytest.mark.parametrize(
    ("num_patches", "num_labels", "constant"), [(2, 2, False), (4, 1, False), (5, 3, False), (4, 2, True)]
)
def test_relative_scores_estimate_the_expectation_of_algorithm_2(num_patches, num_labels, constant):
    """They lie within their standard errors of the exact value, and these errors are themselves right."""
    repeats = 400
    image, attributions, _ = make(1, num_patches, num_labels, seed=3)
    if constant:
        attributions = torch.ones_like(attributions)
    target = 0
    scores = relative_scores(
        game,
        image.expand(repeats, -1, -1, -1),
        attributions.expand(repeats, -1),
        torch.full((repeats,), target),
        n_masks=32,
        ids=torch.arange(repeats),
    )
    weights = normalised(attributions[0])
    lif = expected_curve(game, image, weights, target)
    mif = expected_curve(game, image, [1 - w for w in weights], target)
    for estimate, curve, stderr, exact in (
        (scores.r_lif, scores.r_lif_curve, scores.r_lif_stderr, lif),
        (scores.r_mif, scores.r_mif_curve, scores.r_mif_stderr, mif),
        (scores.r_srg, scores.r_lif_curve - scores.r_mif_curve, scores.r_srg_stderr, lif - mif),
    ):
        torch.testing.assert_close(curve.mean(0), exact, rtol=0, atol=4 * 0.5 / (32 * repeats) ** 0.5)
        torch.testing.assert_close(curve.mean(1), estimate, rtol=0, atol=1e-6)
        z = (estimate - exact.mean()) / stderr
        if num_patches == 2 and estimate is not scores.r_srg:
            # The patches' weights are 0 and 1, so nothing is random, and the standard error must be 0.
            torch.testing.assert_close(estimate, exact.mean().expand(repeats), rtol=0, atol=1e-6)
            assert stderr.max() < 1e-6
        elif num_patches > 2:
            assert abs(z.mean()) < 4 / repeats**0.5
            assert 0.9 < z.std() < 1.15


@pytest.mark.parametrize("n_masks", [1, 3, 40, 300])
def test_relative_scores_are_the_means_over_the_drawn_subsets(n_masks):
    """Plain loops over the same draws: neither blocks of sizes nor the number of masks may change a number."""
    pixel_values, attributions, targets = make(2, 30, 3)
    scores = relative_scores(game, pixel_values, attributions, targets, n_masks=n_masks, seed=5)
    generator = KeyedGenerator("relative draws", 5, keys=image_keys(pixel_values))
    attributions = attributions.double()
    for weight, score, stderr, curve in (
        (sampling.min_max_weights(attributions), scores.r_lif, scores.r_lif_stderr, scores.r_lif_curve),
        (sampling.min_max_weights(-attributions), scores.r_mif, scores.r_mif_stderr, scores.r_mif_curve),
    ):
        orders = sampling.weighted_orders(weight, n_masks, generator=generator)
        predictions = torch.zeros(2, n_masks, 30)
        for size in range(1, 31):
            subsets = torch.zeros(2, n_masks, 30, dtype=torch.bool).scatter(2, orders[..., :size], True)
            probabilities = game(pixel_values, subsets)
            predictions[..., size - 1] = torch.stack([probabilities[b, :, targets[b]] for b in range(2)])
        torch.testing.assert_close(curve, predictions.mean(1), rtol=0, atol=1e-5)
        torch.testing.assert_close(score, predictions.mean((1, 2)), rtol=0, atol=1e-5)
        if n_masks > 1:
            expected = predictions.mean(2).std(1) / n_masks**0.5
            torch.testing.assert_close(stderr, expected, rtol=1e-3, atol=1e-6)
        else:
            assert stderr.isnan().all()


@pytest.mark.parametrize(("n_masks", "num_patches"), [(1, 4), (8, 5), (300, 4), (5, 1)])
def test_relative_scores_cost(n_masks, num_patches):
    pixel_values, attributions, targets = make(2, num_patches, 2)
    counted = Counted()
    relative_scores(counted, pixel_values, attributions, targets, n_masks=n_masks)
    assert counted.subsets.shape == (2, 2 * n_masks * (num_patches - 1) + 1, num_patches)
    sizes = counted.subsets.sum(-1)
    for size in range(1, num_patches):
        assert ((sizes == size).sum(1) == 2 * n_masks).all()
    assert max(subsets.shape[1] for subsets in counted.asked) <= max(512, 2 * n_masks)


def test_mif_draws_are_not_the_complements_of_lif_draws():
    pixel_values, attributions, targets = make(1, 6, 2)
    counted = Counted()
    relative_scores(counted, pixel_values, attributions, targets, n_masks=40)
    half = counted.subsets[0][counted.subsets[0].sum(-1) == 3]  # [80, 6], R-LIF's draws first
    matches = (half[:40] == ~half[40:]).all(-1).sum()
    assert matches < 40


def test_a_perfect_map_beats_its_opposite():
    pixel_values, _, targets = make(4, 6, 2, seed=1)
    additive = pixel_values[:, 0, 0] - pixel_values[:, 1, 0]
    attributions = torch.where(targets[:, None] == 0, additive, -additive)

    def v(x, subsets):
        return (subsets.float() @ x[:, :, 0].transpose(1, 2)).softmax(-1)

    assert (rank_scores(v, pixel_values, attributions, targets).srg > 0).all()
    assert (relative_scores(v, pixel_values, attributions, targets).r_srg > 0).all()
    best = rank_scores(v, pixel_values, attributions, targets)
    worst = rank_scores(v, pixel_values, -attributions, targets)
    torch.testing.assert_close(best.lif, worst.mif)


# ---------------------------------------------------------------------------------------------------------------------
# Algorithm 2 under a budget


def literal_budget(v, image, attributions, key, target, seed, budget):
    """One image, one round, in loops: (lif, mif, srg) and their standard errors."""
    num_patches, strata = len(attributions), (budget - 1) // 4
    directions = [("lif", attributions.double()), ("mif", -attributions.double())]
    sizes = KeyedGenerator("relative sizes within a budget", seed, 0, keys=key).uniform(2, strata)[0].double()
    full = prediction(v, image, range(num_patches), target)
    values = {}
    for start in range(0, strata, 16):
        block = range(start, min(start + 16, strata))
        for name, direction in directions:
            weights = sampling.min_max_weights(direction)
            generator = KeyedGenerator("relative draws within a budget", seed, 0, start, keys=key)  # equal for both
            orders = sampling.weighted_orders(weights[None], 2 * len(block), generator=generator)[0]
            for draw in range(2):
                for j, stratum in enumerate(block):
                    size = int((stratum + sizes[draw, stratum]) * (num_patches - 1) / strata) + 1
                    members = orders[draw * len(block) + j, :size].tolist()
                    values[name, draw, stratum] = prediction(v, image, members, target)
    for key in list(values):
        if key[0] == "lif":
            values[("srg", *key[1:])] = values[key] - values[("mif", *key[1:])]
    found = {}
    share = (num_patches - 1) / num_patches
    for name in ("lif", "mif", "srg"):
        pairs = [(values[name, 0, h], values[name, 1, h]) for h in range(strata)]
        mean = sum(a + b for a, b in pairs) / (2 * strata)
        variance = sum(torch.tensor(pair).var().item() / 2 for pair in pairs) / strata**2
        found[name] = share * mean + (0 if name == "srg" else full / num_patches), share * variance**0.5
    return found


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("budget", [5, 8, 41, 700])
@pytest.mark.parametrize("num_patches", [2, 6, 30])
def test_budgeted_scores_equal_their_literal_twin(num_patches, budget, num_labels):
    pixel_values, attributions, targets = make(3, num_patches, num_labels)
    scores = relative_scores(game, pixel_values, attributions, targets, seed=5, budget=budget)
    keys = image_keys(pixel_values)
    for b in range(3):
        image = pixel_values[b : b + 1]
        found = literal_budget(game, image, attributions[b], keys[b : b + 1], targets[b].item(), 5, budget)
        for name, (mean, stderr) in found.items():
            assert getattr(scores, f"r_{name}")[b].item() == pytest.approx(mean, abs=1e-5)
            assert getattr(scores, f"r_{name}_stderr")[b].item() == pytest.approx(stderr, abs=1e-5)


@pytest.mark.parametrize("budget", [5, 21, 65])
@pytest.mark.parametrize(("num_patches", "num_labels"), [(3, 1), (6, 3)])
def test_budgeted_scores_are_unbiased_and_their_errors_honest(num_patches, num_labels, budget):
    repeats = 3000
    image, attributions, _ = make(1, num_patches, num_labels, seed=3)
    many = image.expand(repeats, -1, -1, -1), attributions.expand(repeats, -1), torch.zeros(repeats, dtype=torch.int64)
    scores = relative_scores(game, *many, ids=torch.arange(repeats), budget=budget)
    weights = normalised(attributions[0])
    lif = expected_curve(game, image, weights, 0).mean()
    mif = expected_curve(game, image, [1 - w for w in weights], 0).mean()
    for name, exact in (("r_lif", lif), ("r_mif", mif), ("r_srg", lif - mif)):
        estimate, stderr = getattr(scores, name), getattr(scores, f"{name}_stderr")
        assert abs(estimate.mean() - exact) < 4 * estimate.std() / repeats**0.5
        assert stderr.square().mean().sqrt() == pytest.approx(estimate.std().item(), rel=0.1)


def test_a_budget_of_the_protocols_size_agrees_with_it():
    pixel_values, attributions, targets = make(6, 20, 3)
    protocol = relative_scores(game, pixel_values, attributions, targets, n_masks=128)
    budgeted = relative_scores(game, pixel_values, attributions, targets, budget=200)
    error = (budgeted.r_srg_stderr**2 + protocol.r_srg_stderr**2).sqrt()
    assert ((budgeted.r_srg - protocol.r_srg).abs() < 4 * error).all()
    assert (budgeted.num_forwards == 197).all()
    assert (protocol.num_forwards == 2 * 128 * 19 + 1).all()
    torch.testing.assert_close(budgeted.r_lif_curve.mean(0), protocol.r_lif_curve.mean(0), rtol=0, atol=0.15)


@pytest.mark.parametrize("budget", [5, 60, 700])
def test_a_budget_is_kept(budget):
    pixel_values, attributions, targets = make(2, 7, 2)
    counted = Counted()
    scores = relative_scores(counted, pixel_values, attributions, targets, budget=budget)
    assert budget - 4 < counted.subsets.shape[1] <= budget
    assert (scores.num_forwards == counted.subsets.shape[1]).all()
    sizes = counted.subsets.sum(-1)[:, 1:]
    assert (sizes >= 1).all()
    assert (sizes < 7).all()


def test_each_image_stops_when_its_own_error_is_small():
    pixel_values, attributions, targets = make(6, 8, 3)
    attributions[0] = 0  # even this one is uncertain
    options = {"budget": 41, "target_stderr": 0.01}
    scores = relative_scores(game, pixel_values, attributions, targets, **options)
    assert (scores.r_srg_stderr <= 0.01).all()
    assert len(scores.num_forwards.unique()) > 1
    counted = Counted()
    alone = relative_scores(counted, pixel_values[2:3], attributions[2:3], targets[2:3], **options)
    assert counted.subsets.shape[1] == alone.num_forwards.item() == scores.num_forwards[2].item()
    for name, value in vars(alone).items():
        torch.testing.assert_close(value, getattr(scores, name)[2:3], rtol=0, atol=1e-6)


def test_no_image_stops_after_a_few_draws():
    def mostly_constant(pixel_values, subsets):  # two draws differ by chance only
        last = (subsets.sum(dim=-1) == 1) & subsets[..., 0]
        shown = torch.where(last, 1.0, 0.5)
        return torch.stack([shown, 1 - shown], dim=-1)

    pixel_values, attributions, _ = make(6, 8, 3)
    targets = torch.zeros(6, dtype=torch.int64)
    scores = relative_scores(mostly_constant, pixel_values, attributions, targets, budget=5, target_stderr=0.1)
    assert scores.num_forwards.min() == 1 + 4 * 16


def test_a_target_out_of_reach_ends_at_the_protocols_cost():
    pixel_values, attributions, targets = make(1, 4, 2)
    scores = relative_scores(game, pixel_values, attributions, targets, budget=101, target_stderr=1e-9)
    assert 600 < scores.num_forwards.item() <= 2 * 128 * 3 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 4}, "budget must be a whole number of at least 5, got 4"),
        ({"target_stderr": 0.1}, "target_stderr must be a positive number and needs a budget, got 0.1 and budget=None"),
        ({"budget": 9, "target_stderr": 0.0}, "needs a budget, got 0.0 and budget=9"),
        ({"budget": 9, "target_stderr": float("nan")}, "needs a budget, got nan and budget=9"),
        ({"budget": 9, "target_stderr": float("inf")}, "needs a budget, got inf and budget=9"),
    ],
)
def test_wrong_budgets(options, message):
    with pytest.raises(ValueError, match=message):
        relative_scores(game, *make(2, 4, 2), **options)


# ---------------------------------------------------------------------------------------------------------------------
# Both algorithms


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("score", [rank_scores, relative_scores])
@pytest.mark.parametrize("budget", [None, 33])
def test_neither_batch_size_nor_order_changes_a_score(score, with_ids, budget):
    pixel_values, attributions, targets = make(7, 6, 3)
    attributions = attributions.round()  # ties
    ids = torch.tensor([4, 0, 9, 2, 7, 1, 5]) if with_ids else None
    kwargs = {"n_masks": 4, "budget": budget} if score is relative_scores else {}
    whole = score(game, pixel_values, attributions, targets, ids=ids, **kwargs)
    for part in torch.tensor([6, 2, 0, 1, 5, 3, 4]).split(3):
        some = score(
            game, pixel_values[part], attributions[part], targets[part], ids=ids[part] if with_ids else None, **kwargs
        )
        for name, value in vars(some).items():
            torch.testing.assert_close(value, getattr(whole, name)[part], rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("score", [rank_scores, relative_scores])
def test_draws_are_keyed_by_id_or_by_pixels(score):
    pixel_values, _, targets = make(1, 6, 2)
    pixel_values, targets = pixel_values.repeat(2, 1, 1, 1), targets.repeat(2)
    attributions = torch.zeros(2, 6)

    def asked(ids, seed=0):
        counted = Counted()
        score(counted, pixel_values, attributions, targets, ids=ids, seed=seed)
        return counted.subsets

    same_pixels = asked(None)
    assert torch.equal(same_pixels[0], same_pixels[1])
    assert torch.equal(asked(torch.tensor([3, 3]))[0], asked(torch.tensor([3, 3]))[1])
    other_ids = asked(torch.tensor([3, 4]))
    assert not torch.equal(other_ids[0], other_ids[1])
    assert not torch.equal(asked(torch.tensor([3, 4]), seed=1), other_ids)


@pytest.mark.parametrize("score", [rank_scores, relative_scores])
def test_scores_need_no_gradient_and_change_no_argument(tiny_classifier, images, score):
    classifier = tiny_classifier()
    attributions = torch.randn(2, 16, requires_grad=True)
    before = attributions.detach().clone()
    kwargs = {"n_masks": 2} if score is relative_scores else {}
    scores = score(classifier, images(2), attributions, torch.tensor([0, 2]), **kwargs)
    assert not any(value.requires_grad for value in vars(scores).values())
    assert torch.equal(attributions, before)


@pytest.mark.parametrize("score", [rank_scores, relative_scores])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributions": torch.tensor([[0.0] * 16, [torch.nan] + [0.0] * 15])}, r"NaN or infinite .* \[1\]"),
        ({"attributions": torch.tensor([[torch.inf] + [0.0] * 15, [0.0] * 16])}, r"NaN or infinite .* \[0\]"),
        ({"attributions": torch.zeros(2, 15)}, "15 patches per image, the classifier sees 4 x 4 = 16"),
        ({"attributions": torch.zeros(3, 16)}, "B = 2"),
        ({"attributions": torch.zeros(2, 4, 4)}, r"real numbers \[B, N\] with B = 2, got float32 \[2, 4, 4\]"),
        ({"targets": torch.tensor([0, 3])}, "targets contain 3; the classifier's labels are 0..2"),
        ({"targets": torch.tensor([-1, 0])}, "targets contain -1"),
        ({"targets": torch.tensor([0])}, r"targets must be whole numbers \[B\] with B = 2, got int64 \[1\]"),
        ({"ids": torch.tensor([0, 1, 2])}, r"ids must be whole numbers \[B\] with B = 2, got int64 \[3\]"),
        ({"pixel_values": torch.zeros(0, 3, 16, 16), "attributions": torch.zeros(0, 16)}, "not empty"),
    ],
)
def test_wrong_arguments(tiny_classifier, images, score, change, message):
    arguments = {"pixel_values": images(2), "attributions": torch.zeros(2, 16), "targets": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        score(tiny_classifier(), **{**arguments, **change})


@pytest.mark.parametrize("score", [rank_scores, relative_scores])
def test_a_value_function_is_checked_too(score):
    pixel_values, attributions, targets = make(2, 4, 3)
    with pytest.raises(ValueError, match="targets contain 3"):
        score(game, pixel_values, attributions, torch.tensor([0, 3]))
    pixel_values[1, 0, 0, 2] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite numbers for the images at \[1\]"):
        score(game, pixel_values, attributions, targets)


@pytest.mark.parametrize("score", [rank_scores, relative_scores])
def test_half_precision_attributions(score):
    pixel_values, attributions, targets = make(3, 6, 2)
    half = attributions.half()
    scores, expected = (score(game, pixel_values, a, targets) for a in (half, half.float()))
    for name, value in vars(scores).items():
        assert torch.equal(value, getattr(expected, name)), name


def test_n_masks_must_be_positive():
    with pytest.raises(ValueError, match="n_masks must be a whole number of at least 1, got 0"):
        relative_scores(game, *make(1, 3, 2), n_masks=0)


@pytest.mark.parametrize("targets", [[2, 0], [-1, 0]])
def test_one_label_targets_are_0_or_1(tiny_classifier, images, targets):
    with pytest.raises(ValueError, match=r"the classifier's labels are 0\.\.1"):
        rank_scores(tiny_classifier(num_labels=1), images(2), torch.zeros(2, 16), torch.tensor(targets))


@pytest.mark.parametrize(
    ("scores", "mean", "stderr"), [([1.0, 2.0, 6.0], 3.0, 7**0.5 / 3**0.5), ([5.0], 5.0, None), ([], None, None)]
)
def test_mean_and_stderr_leave_nan_out(scores, mean, stderr):
    result = mean_and_stderr(torch.tensor([*scores, torch.nan, torch.nan]))
    expected = [pytest.approx(float("nan") if value is None else value, nan_ok=True) for value in (mean, stderr)]
    assert list(result) == expected


def test_the_literal_expectation_is_a_mean():
    """A check of the oracle itself: with v = 1 for all subsets, every size has the expectation 1."""
    for weights in itertools.product([0.0, 0.5, 1.0], repeat=3):
        curve = expected_curve(lambda x, s: torch.ones(1, 1, 1), torch.zeros(1, 1, 1, 3), weights, 1)
        torch.testing.assert_close(curve, torch.ones(3))
