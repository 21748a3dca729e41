import itertools
import math

import pytest
import torch

from salvage_hf import subsets as sampling
from salvage_hf.keyed_random import KeyedGenerator
from salvage_hf.subsets import LAWS, shapley_kernel, shapley_kernel_published, shapley_kernel_sizes

DRAWS = 20_000
P_VALUE = 1e-3  # the seeds are fixed, so a test that passes once always passes


def make_generator(kind, seed, batch_size):
    if kind == "keyed":
        return KeyedGenerator("test", seed, keys=torch.arange(batch_size))
    return torch.Generator().manual_seed(seed)


both_generators = pytest.mark.parametrize("kind", ["torch", "keyed"])


def chi_squared_p(counts, probabilities):
    """p-value of counts under probabilities; asserts that events of probability 0 have not happened."""
    counts, probabilities = torch.as_tensor(counts).double(), torch.as_tensor(probabilities).double()
    assert probabilities.sum().item() == pytest.approx(1)
    possible = probabilities > 0
    assert (counts[~possible] == 0).all()
    expected = probabilities[possible] * counts.sum()
    assert expected.min() > 5, "too few draws for a chi-squared test"
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic / 2).item()


def successive_draws(weights):
    """{order: probability}: patches are drawn in proportion to weight from those left; zeros come last, uniformly."""
    probabilities = {}
    for order in itertools.permutations(range(len(weights))):
        probability, left = 1.0, list(range(len(weights)))
        for patch in order:
            total = sum(weights[i] for i in left)
            probability *= weights[patch] / total if total > 0 else 1 / len(left)
            left.remove(patch)
        probabilities[order] = probability
    return probabilities


def codes(members, base=2):
    """Rows of small integers as one number each: [..., N] -> [...]."""
    return (members.long() * base ** torch.arange(members.shape[-1])).sum(-1)


def guided_law(weights):
    """P(size, set) of Algorithm 3: the size is uniform on 1..N, then that many successive draws; indexed by set."""
    num_patches = len(weights)
    law = torch.zeros(2**num_patches, dtype=torch.float64)
    for order, probability in successive_draws(weights).items():
        for size in range(1, num_patches + 1):
            law[sum(2**patch for patch in order[:size])] += probability / num_patches
    return law


# ---------------------------------------------------------------------------------------------------------------------
# Weighted draws without replacement


@both_generators
@pytest.mark.parametrize(
    "weights",
    [
        (1.0, 3.0),
        (0.0, 1.0, 3.0),
        (1.0, 2.0, 3.0, 4.0),
        (0.0, 0.0, 2.0, 1.0),
        (0.5, 0.5, 0.0, 1.0),
        (0.0,) * 4,
        (7.0,) * 4,
    ],
)
def test_weighted_orders_follow_successive_draws(kind, weights):
    num_patches = len(weights)
    law = successive_draws(weights)
    orders = sampling.weighted_orders(
        torch.tensor(weights).expand(DRAWS // 4, -1), 4, generator=make_generator(kind, 1, DRAWS // 4)
    )
    assert orders.shape == (DRAWS // 4, 4, num_patches)
    counts = codes(orders.flatten(0, 1), num_patches).bincount(minlength=num_patches**num_patches)
    which = codes(torch.tensor(list(law)), num_patches)
    assert counts[which].sum() == DRAWS  # every order is a permutation
    assert chi_squared_p(counts[which], list(law.values())) > P_VALUE


@both_generators
def test_the_papers_example(kind):
    """Section 4.2: weights 0, 1, 3 are drawn first with probability 0, 0.25, 0.75."""
    scores = torch.tensor([[0.0, 1.0, 3.0]])
    weights = sampling.min_max_weights(scores).expand(DRAWS, -1)
    first = sampling.weighted_orders(weights, 1, generator=make_generator(kind, 2, DRAWS))[:, 0, 0]
    assert chi_squared_p(first.bincount(minlength=3), [0, 0.25, 0.75]) > P_VALUE


@both_generators
def test_patches_of_weight_zero_come_last_in_random_order(kind):
    weights = torch.tensor([0.0, 1e-37, 0.0, 5.0, 0.0]).expand(DRAWS, -1)
    orders = sampling.weighted_orders(weights, 1, generator=make_generator(kind, 3, DRAWS))[:, 0]
    assert (weights.gather(1, orders)[:, :2] > 0).all()
    counts = codes(orders[:, 2:], 5).bincount(minlength=125)
    which = codes(torch.tensor(list(itertools.permutations([0, 2, 4]))), 5)
    assert chi_squared_p(counts[which], [1 / 6] * 6) > P_VALUE


def test_each_image_has_its_own_weights():
    weights = torch.eye(5).repeat(40, 1)
    orders = sampling.weighted_orders(weights, 3, generator=torch.Generator().manual_seed(0))
    assert (orders[..., 0] == weights.argmax(-1)[:, None]).all()


def test_the_orders_of_an_image_differ():
    orders = sampling.weighted_orders(torch.ones(2, 12), 50, generator=KeyedGenerator("test", 0, keys=torch.arange(2)))
    assert len({tuple(order) for order in orders.flatten(0, 1).tolist()}) == 100


def test_positions_invert_orders():
    orders = sampling.weighted_orders(torch.rand(3, 7), 4, generator=torch.Generator().manual_seed(0))
    places = sampling.positions(orders)
    for b, m, j in itertools.product(range(3), range(4), range(7)):
        assert places[b, m, orders[b, m, j]] == j


@both_generators
def test_the_smallest_weights_are_drawn_before_those_of_zero_and_in_proportion(kind):
    weights = torch.tensor([0.0, 1e-300, 3e-300, 1.0, 0.0], dtype=torch.float64).expand(DRAWS, -1)
    orders = sampling.weighted_orders(weights, 1, generator=make_generator(kind, 3, DRAWS))[:, 0]
    assert (orders[:, 0] == 3).all()
    assert chi_squared_p((orders[:, 1] - 1).bincount(minlength=2), [0.25, 0.75]) > P_VALUE
    assert ((orders[:, 3:] == 0) | (orders[:, 3:] == 4)).all()


def test_a_generator_has_a_key_for_every_image():
    """One key for all images would give them the same draws."""
    generator = KeyedGenerator("test", 0, keys=torch.arange(1))
    for draw in (
        lambda: sampling.weighted_orders(torch.ones(3, 4), 2, generator=generator),
        lambda: sampling.attribution_guided(torch.ones(3, 4), 2, generator=generator),
        lambda: sampling.uniform(3, 2, 4, generator=generator),
        lambda: sampling.stratified_sizes(3, 2, 4, generator=generator),
    ):
        with pytest.raises(ValueError, match="generator has 1 keys for 3 images"):
            draw()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_min_max_weights(scale):
    scores = torch.tensor([[2.0, 4.0, 3.0], [-1.0, 0.0, 3.0], [5.0, 5.0, 5.0]]) * scale
    expected = torch.tensor([[0, 1, 0.5], [0, 0.25, 1], [0, 0, 0]])
    torch.testing.assert_close(sampling.min_max_weights(scores), expected, rtol=1e-5, atol=1e-6)


@both_generators
@pytest.mark.parametrize(
    ("weights", "exponent"),
    [
        ((1.0, 2.0, 3.0, 4.0), 1),
        ((1.0, 2.0, 3.0, 4.0), 0.5),
        ((0.0, 1.0, 3.0), 2.0),
        ((1.0, 1.5, 2.0), 4.0),
        ((1.0, 1.2, 1.4, 1.6), 4.0),
        ((0.0, 0.8, 0.0, 1.0), 4.0),
        ((0.9, 0.95, 1.0), 16.0),
        ((0.0,) * 4, 4.0),
    ],
)
def test_an_exponent_draws_in_proportion_to_powers(kind, weights, exponent):
    """Successive draws, each in proportion to weight ** exponent: chi-squared over all orders."""
    num_patches, law = len(weights), successive_draws([weight**exponent for weight in weights])
    given = torch.tensor(weights).expand(DRAWS // 4, -1)
    orders = sampling.weighted_orders(given, 4, generator=make_generator(kind, 1, DRAWS // 4), exponent=exponent)
    counts = codes(orders.flatten(0, 1), num_patches).bincount(minlength=num_patches**num_patches)
    which = codes(torch.tensor(list(law)), num_patches)
    assert counts[which].sum() == DRAWS
    assert chi_squared_p(counts[which], list(law.values())) > P_VALUE


@both_generators
def test_powers_that_no_number_holds_are_drawn_in_proportion(kind):
    """Float32 scores of 1e-6 and 1.02e-6, whose 64th powers are 0 in float64, come between those of 0 and of 1."""
    scores = torch.tensor([0.0, 1e-6, 1.02e-6, 1.0])
    generator, sizes = make_generator(kind, 4, DRAWS), torch.tensor([2, 3, 1, 3])
    drawn = sampling.attribution_guided(scores.expand(DRAWS, -1), 4, generator=generator, sizes=sizes, exponent=64)
    two, three, one_of_the_others, others = drawn.unbind(1)
    assert (two[:, 3] & ~two[:, 0]).all()
    ratio = (scores[2].double() / scores[1].double()).item() ** 64
    assert chi_squared_p(two[:, 1:3].sum(0), [1 / (1 + ratio), ratio / (1 + ratio)]) > P_VALUE
    assert torch.equal(three, torch.tensor([False, True, True, True]).expand(DRAWS, -1))
    # One minus the scores has powers close to 1 for all patches but the last, which has weight 0.
    assert chi_squared_p(one_of_the_others.sum(0), [1 / 3] * 3 + [0]) > P_VALUE
    assert torch.equal(others, torch.tensor([True, True, True, False]).expand(DRAWS, -1))


@both_generators
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponent_1_changes_no_bit(kind, dtype):
    """The order is that of E / w in logarithms of float32; no product of the logarithm may round it."""
    weights = torch.rand(50, 64, generator=torch.Generator().manual_seed(0), dtype=dtype) ** 4
    generator = make_generator(kind, 2, 50)
    if kind == "keyed":
        noise = -generator.uniform(8, 64).log()
    else:
        noise = torch.empty(50, 8, 64).exponential_(generator=generator)
    expected = (noise.log() - weights.double().log().float()[:, None]).argsort(dim=-1)
    for options in ({}, {"exponent": 1}, {"exponent": 1.0}):
        orders = sampling.weighted_orders(weights, 8, generator=make_generator(kind, 2, 50), **options)
        assert torch.equal(orders, expected)


@pytest.mark.parametrize("exponent", [0, -1.0, float("inf"), float("nan"), True, None, "4", torch.tensor(2.0)])
def test_exponents_that_are_no_positive_numbers_are_refused(exponent):
    for draw in (sampling.weighted_orders, sampling.attribution_guided):
        with pytest.raises(ValueError, match="exponent must be a finite positive number, got ") as refused:
            draw(torch.ones(2, 3), 2, generator=make_generator("torch", 0, 2), exponent=exponent)
        assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------------------------------------------------------
# The subsets


@both_generators
def test_uniform_sampling_follows_its_law(kind):
    """The size is uniform on 1..N, then all its subsets are equally likely: chi-squared over subsets of 4 patches."""
    subsets = sampling.uniform(DRAWS // 4, 4, 4, generator=make_generator(kind, 4, DRAWS // 4))
    assert subsets.shape == (DRAWS // 4, 4, 4)
    assert subsets.dtype == torch.bool
    law = [0.0] + [0.25 / math.comb(4, bin(code).count("1")) for code in range(1, 16)]
    for m in range(4):
        assert chi_squared_p(codes(subsets[:, m]).bincount(minlength=16), law) > P_VALUE


@both_generators
@pytest.mark.parametrize("num_patches", [2, 7, 64])
def test_sizes_are_uniform_on_1_to_n(kind, num_patches):
    subsets = sampling.uniform(500, 40, num_patches, generator=make_generator(kind, 5, 500))
    sizes = subsets.sum(-1).flatten()
    assert sizes.min() >= 1
    counts = sizes.bincount(minlength=num_patches + 1)[1:]
    assert len(counts) == num_patches
    assert chi_squared_p(counts, [1 / num_patches] * num_patches) > P_VALUE


@both_generators
def test_an_image_of_one_patch(kind):
    assert sampling.uniform(3, 4, 1, generator=make_generator(kind, 0, 3)).all()
    assert sampling.attribution_guided(torch.zeros(3, 1), 4, generator=make_generator(kind, 0, 3)).all()


@both_generators
@pytest.mark.parametrize("exponent", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("scores", [(0.0, 1.0, 3.0, 2.0), (-2.0, 1.0, 1.0, 5.0), (4.0, 4.0, 4.0, 4.0)])
def test_guided_halves_are_drawn_from_phi_and_one_minus_phi(kind, scores, exponent):
    """Algorithm 3 with powers, written out: chi-squared over all subsets of 4 patches, sizes included."""
    low, high = min(scores), max(scores)
    weights = [(score - low) / (high - low) if high > low else 0.0 for score in scores]
    generator = make_generator(kind, 6, DRAWS)
    given = torch.tensor(scores).expand(DRAWS, -1)
    subsets = sampling.attribution_guided(given, 2, generator=generator, exponent=exponent)
    for half, of_half in enumerate([weights, [1 - weight for weight in weights]]):
        law = guided_law([weight**exponent for weight in of_half])
        assert chi_squared_p(codes(subsets[:, half]).bincount(minlength=16), law) > P_VALUE


@both_generators
@pytest.mark.parametrize(("num_subsets", "first_half"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_the_first_half_follows_phi(kind, num_subsets, first_half):
    scores = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(200, -1)
    sizes = torch.ones(num_subsets, dtype=torch.int64)
    generator = make_generator(kind, 7, 200)
    subsets = sampling.attribution_guided(scores, num_subsets, generator=generator, sizes=sizes)
    assert subsets[:, :first_half, 3].all()  # all weight lies on the last patch
    assert not subsets[:, first_half:, 3].any()


def test_the_sizes_of_both_halves_are_uniform():
    scores = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    subsets = sampling.attribution_guided(scores, 20, generator=torch.Generator().manual_seed(8))
    for half in subsets.split(10, dim=1):
        assert chi_squared_p(half.sum(-1).flatten().bincount(minlength=7), [0] + [1 / 6] * 6) > P_VALUE


@both_generators
@pytest.mark.parametrize("shared_by_images", [True, False])
@pytest.mark.parametrize("how", ["uniform", "guided"])
def test_given_sizes_are_kept(kind, shared_by_images, how):
    sizes = torch.tensor([1, 9, 4, 4, 2]) if shared_by_images else torch.arange(1, 16).view(3, 5).clamp_max(9)
    generator = make_generator(kind, 9, 3)
    if how == "uniform":
        subsets = sampling.uniform(3, 5, 9, generator=generator, sizes=sizes)
    else:
        subsets = sampling.attribution_guided(torch.rand(3, 9), 5, generator=generator, sizes=sizes)
    assert torch.equal(subsets.sum(-1), sizes.expand(3, 5))


def test_guided_sampling_takes_no_part_in_gradients():
    scores = torch.rand(2, 5, requires_grad=True)
    assert not sampling.attribution_guided(scores, 4, generator=torch.Generator().manual_seed(0)).requires_grad


@both_generators
def test_the_same_seed_gives_the_same_subsets(kind):
    def draw(seed):
        generator = make_generator(kind, seed, 3)
        return torch.cat(
            [
                sampling.uniform(3, 8, 10, generator=generator),
                sampling.attribution_guided(torch.arange(30.0).view(3, 10), 8, generator=generator),
            ]
        )

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("exponent", [1, 4])
def test_subsets_do_not_depend_on_the_batch(exponent):
    keys, scores = torch.arange(10, 16), torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    whole = KeyedGenerator("test", 3, keys=keys)
    expected = [
        sampling.uniform(6, 4, 9, generator=whole),
        sampling.attribution_guided(scores, 4, generator=whole, exponent=exponent),
    ]
    for part in torch.tensor([5, 2, 0, 1, 3, 4]).split(4):
        generator = KeyedGenerator("test", 3, keys=keys[part])
        assert torch.equal(sampling.uniform(len(part), 4, 9, generator=generator), expected[0][part])
        guided = sampling.attribution_guided(scores[part], 4, generator=generator, exponent=exponent)
        assert torch.equal(guided, expected[1][part])


@both_generators
@pytest.mark.parametrize(("num_subsets", "num_patches"), [(1, 7), (3, 10), (4, 6), (9, 4)])
def test_stratified_sizes_are_uniform_together_and_cover_all_parts(kind, num_subsets, num_patches):
    batch_size = DRAWS // num_subsets
    generator = make_generator(kind, 3, batch_size)
    sizes = sampling.stratified_sizes(batch_size, num_subsets, num_patches, generator=generator)
    assert sizes.shape == (batch_size, num_subsets)
    counts = torch.bincount(sizes.flatten(), minlength=num_patches + 1)
    assert counts[0] == 0
    assert len(counts) == num_patches + 1
    assert chi_squared_p(counts[1:], torch.full((num_patches,), 1 / num_patches)) > P_VALUE
    for slot in range(num_subsets):
        # The probability of a size is the overlap of its interval with the slot's part of 0..1.
        low, high = slot / num_subsets, (slot + 1) / num_subsets
        overlap = [max(0.0, min(high, (s + 1) / num_patches) - max(low, s / num_patches)) for s in range(num_patches)]
        of_slot = torch.bincount(sizes[:, slot], minlength=num_patches + 1)[1:]
        law = torch.tensor(overlap).double()
        law[law < 1e-9] = 0
        assert of_slot[law == 0].sum() == 0
        if (law > 0).sum() == 1:  # a single size is possible: nothing to test
            continue
        assert chi_squared_p(of_slot, law / law.sum()) > P_VALUE


# The Shapley kernel


def kernel(num_patches):
    weights = [1 / (size * (num_patches - size)) for size in range(1, num_patches)]
    return torch.tensor([weight / sum(weights) for weight in weights])


@pytest.mark.parametrize("keyed", [False, True])
def test_sizes_of_the_shapley_kernel(keyed):
    generator = KeyedGenerator("test", 0, keys=torch.arange(4)) if keyed else torch.Generator().manual_seed(0)
    sizes = shapley_kernel_sizes(4, 25_000, 9, generator=generator)
    assert sizes.shape == (4, 25_000)
    counts = torch.bincount(sizes.flatten(), minlength=10)
    assert counts[0] == counts[9] == 0
    expected = kernel(9) * sizes.numel()
    chi_squared = ((counts[1:9] - expected) ** 2 / expected).sum()
    assert chi_squared < 24.3  # 7 degrees of freedom, p = 0.001
    with pytest.raises(ValueError, match=r"num_patches must be at least 2 .*, got 1"):
        shapley_kernel_sizes(4, 1, 1, generator=generator)


@pytest.mark.parametrize("num_subsets", [1, 4, 5])
@pytest.mark.parametrize("draw", [shapley_kernel, shapley_kernel_published])
def test_subsets_of_the_shapley_kernel_come_in_pairs(draw, num_subsets):
    drawn = draw(3, num_subsets, 9, generator=KeyedGenerator("test", 0, keys=torch.arange(3)))
    assert drawn.shape == (3, num_subsets, 9)
    half = (num_subsets + 1) // 2
    assert torch.equal(drawn[:, half:], ~drawn[:, : num_subsets - half])
    assert torch.equal(drawn[[2]], draw(1, num_subsets, 9, generator=KeyedGenerator("test", 0, keys=torch.tensor([2]))))


def test_subsets_of_a_size_are_equally_likely_under_the_kernel():
    drawn = shapley_kernel(1, 60_000, 4, generator=torch.Generator().manual_seed(0))[0]
    counts = torch.bincount((drawn * torch.tensor([8, 4, 2, 1])).sum(dim=1), minlength=16).float()
    assert counts[0] == counts[15] == 0
    for size, weight in enumerate(kernel(4).tolist(), start=1):
        of_size = [index for index in range(16) if bin(index).count("1") == size]
        expected = 60_000 * weight / len(of_size)
        assert ((counts[of_size] - expected).abs() < 5 * expected**0.5).all()


def test_the_published_sampler_strays_as_it_is_known_to():
    """A known flaw of the published sampler: at N = 196, 12% of the subsets are empty or full."""
    drawn = shapley_kernel_published(1, 20_000, 196, generator=torch.Generator().manual_seed(0))
    sizes = drawn.sum(dim=-1)
    assert 0.10 < ((sizes == 0) | (sizes == 196)).float().mean() < 0.14


# The laws by name


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("num_subsets", [1, 4, 5])
def test_a_law_draws_what_its_function_draws(name, num_subsets):
    scores, keys = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    drawn = LAWS[name].draw(scores, num_subsets, KeyedGenerator("test", 0, keys=keys))
    generator = KeyedGenerator("test", 0, keys=keys)
    if LAWS[name].guided:
        expected = sampling.attribution_guided(scores, num_subsets, generator=generator)
        sharper = LAWS[name].draw(scores, num_subsets, KeyedGenerator("test", 0, keys=keys), exponent=4.0)
        generator = KeyedGenerator("test", 0, keys=keys)
        assert torch.equal(sharper, sampling.attribution_guided(scores, num_subsets, generator=generator, exponent=4.0))
        assert not torch.equal(sharper, drawn)
    else:
        expected = getattr(sampling, name)(3, num_subsets, 9, generator=generator)
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("num_subsets", [1, 4, 5])
def test_shared_sizes_are_those_of_every_image(name, num_subsets):
    law, scores = LAWS[name], torch.rand(3, 9, generator=torch.Generator().manual_seed(0))
    sizes = law.shared_sizes(num_subsets, 9, KeyedGenerator("test", 0, keys=torch.zeros(1, dtype=torch.int64)))
    drawn = law.draw(scores, num_subsets, KeyedGenerator("test", 1, keys=torch.arange(3)), sizes)
    assert drawn.shape == (3, num_subsets, 9)
    if name == "shapley_kernel_published":
        assert sizes is None  # its images draw their own
        return
    assert (drawn.sum(-1) == drawn.sum(-1)[0]).all()
    half = (num_subsets + 1) // 2
    assert torch.equal(drawn.sum(-1)[0, :half], sizes[:half])
