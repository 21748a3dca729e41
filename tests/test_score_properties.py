"""Scores over many maps: what scaling, shifting, negating, permuting, splitting and other types must not change."""

from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from salvage_hf import subsets as sampling
from salvage_hf.faithfulness import rank_scores, relative_scores
from salvage_hf.keyed_random import KeyedGenerator
from salvage_hf.localization import relevance_mass_accuracy, relevance_rank_accuracy, upsample
from salvage_hf.masking import MaskedClassifier

B, N = 3, 6
SCORES = {
    "rank": rank_scores,
    "relative": lambda *args, **options: relative_scores(*args, n_masks=3, **options),
    "budget": lambda *args, **options: relative_scores(*args, budget=41, **options),
}
every_score = pytest.mark.parametrize("score", SCORES)

#: Images [B, 2, 1, N]: the value of patch i for class k is pixel [k, 0, i].
PIXELS = torch.randn(B, 2, 1, N, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 0])

finite = st.floats(allow_nan=False, allow_infinity=False)


def maps_of(numbers: st.SearchStrategy, **options) -> st.SearchStrategy[torch.Tensor]:
    """Maps float64 [B, N]."""
    rows = st.lists(st.lists(numbers, min_size=N, max_size=N, **options), min_size=B, max_size=B)
    return rows.map(lambda rows: torch.tensor(rows, dtype=torch.float64))


whole_maps = maps_of(st.integers(-(2**20), 2**20))
any_maps = maps_of(finite | st.sampled_from([0.0, 5e-324, 1e-300, 1e300, -1e300, 1.7e308, -1.7e308]))


def game(pixel_values, subsets):
    """A v with interactions of neighbours [B, M, 2]."""
    visible = subsets.float()
    pairs = visible[..., :-1] * visible[..., 1:]
    return (visible @ pixel_values[:, :, 0].mT + pairs @ pixel_values[:, :, 0, 1:].mT).softmax(-1)


def scores_of(score, maps, targets=TARGETS, pixels=PIXELS, **options):
    return vars(SCORES[score](game, pixels, maps, targets, **options))


def assert_equal(found, expected):
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


@every_score
@given(maps=whole_maps, exponent=st.integers(-900, 900), shift=st.integers(-(2**50), 2**50))
def test_scaling_and_shifting_change_nothing(score, maps, exponent, shift):
    """Powers of two and whole numbers, with which floating-point arithmetic is exact."""
    expected = scores_of(score, maps)
    assert_equal(scores_of(score, maps * 2.0**exponent), expected)
    assert_equal(scores_of(score, maps + shift), expected)


@given(maps=any_maps)
def test_rank_scores_depend_on_the_ranks_alone(maps):
    """Whatever the range of a map is: its ranks are small whole numbers, and score as the map does."""
    ranks = torch.stack([row.unique(return_inverse=True)[1] for row in maps])
    assert_equal(scores_of("rank", maps), scores_of("rank", ranks))


@given(maps=any_maps)
def test_relative_scores_depend_on_the_ratios_of_differences(maps):
    """Computed with fractions, which neither overflow nor round."""
    exact = [[Fraction(value) for value in row] for row in maps.tolist()]
    for row, weights, others in zip(
        exact, sampling.min_max_weights(maps), sampling.min_max_weights(-maps), strict=True
    ):
        span = max(row) - min(row)
        for value, weight, other in zip(row, weights.tolist(), others.tolist(), strict=True):
            assert weight == pytest.approx(float((value - min(row)) / span) if span else 0, rel=1e-14, abs=1e-300)
            assert other == pytest.approx(float((max(row) - value) / span) if span else 0, rel=1e-14, abs=1e-300)
            assert (weight > 0) == (value > min(row))
            assert (other > 0) == (value < max(row))


@given(maps=maps_of(finite, unique=True))
def test_negation_swaps_lif_and_mif(maps):
    plus, minus = scores_of("rank", maps), scores_of("rank", -maps)
    for one, other in (("lif", "mif"), ("lif_curve", "mif_curve")):
        assert torch.equal(plus[one], minus[other])
        assert torch.equal(plus[other], minus[one])


@given(maps=any_maps)
def test_negation_swaps_r_lif_and_r_mif(maps):
    """Within a budget both draw with the same random numbers."""
    plus, minus = scores_of("budget", maps), scores_of("budget", -maps)
    for one, other in (("r_lif", "r_mif"), ("r_lif_curve", "r_mif_curve"), ("r_lif_stderr", "r_mif_stderr")):
        assert torch.equal(plus[one], minus[other])
        assert torch.equal(plus[other], minus[one])
    assert torch.equal(plus["r_srg_stderr"], minus["r_srg_stderr"])


@given(maps=any_maps)
def test_guided_sampling_draws_its_halves_from_the_map_and_from_its_negative(maps):
    sizes = torch.tensor([1, 2, 3, 4, 5, 1, 2, 3])
    generator = KeyedGenerator("test", 0, keys=torch.arange(B))
    drawn = sampling.attribution_guided(maps, 8, generator=generator, sizes=sizes)
    generator = KeyedGenerator("test", 0, keys=torch.arange(B))
    for scores, half, of_half in ((maps, drawn[:, :4], sizes[:4]), (-maps, drawn[:, 4:], sizes[4:])):
        orders = sampling.weighted_orders(sampling.min_max_weights(scores), 4, generator=generator)
        assert torch.equal(half, sampling.positions(orders) < of_half[:, None])


@every_score
@given(maps=whole_maps, order=st.permutations(range(B)), with_ids=st.booleans())
def test_permuting_and_splitting_images_permutes_and_splits_scores(score, maps, order, with_ids):
    ids = torch.tensor([5, 0, 7]) if with_ids else None
    whole = scores_of(score, maps, ids=ids)
    for part in (order, order[:1], order[1:]):
        some = scores_of(score, maps[part], TARGETS[part], PIXELS[part], ids=None if ids is None else ids[part])
        for name, values in whole.items():
            torch.testing.assert_close(some[name], values[part], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("score", SCORES)
def test_chunks_of_a_classifier_change_nothing(tiny_classifier, images, score):
    maps = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    found = [
        vars(SCORES[score](MaskedClassifier(tiny_classifier(), chunk_size=size), images(2), maps, torch.tensor([0, 2])))
        for size in (1, 100, 16384)
    ]
    for other in found[1:]:
        for name, values in found[0].items():
            torch.testing.assert_close(other[name], values, rtol=0, atol=1e-5, msg=name)


@every_score
@given(maps=maps_of(st.integers(-100, 100)), dtype=st.sampled_from(["float16", "bfloat16", "float32", "int8", "int64"]))
def test_types_of_the_same_values_score_alike(score, maps, dtype):
    other = maps.to(getattr(torch, dtype))
    expected = scores_of(score, maps)
    assert_equal(scores_of(score, other), expected)
    assert_equal(scores_of(score, other.tolist()), expected)


# Regions

masks_of = st.lists(st.booleans(), min_size=48, max_size=48).map(lambda flags: torch.tensor(flags).view(1, 6, 8))


@given(maps=st.lists(finite, min_size=48, max_size=48), masks=masks_of)
def test_rank_accuracy_depends_on_the_ranks_alone(maps, masks):
    maps = torch.tensor(maps, dtype=torch.float64)
    ranks = maps.unique(return_inverse=True)[1]
    found, expected = (relevance_rank_accuracy(values.view(1, 6, 8), masks) for values in (maps, ranks))
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))


@given(maps=st.lists(st.integers(-9, 9), min_size=48, max_size=48), exponent=st.integers(-1000, 1020), masks=masks_of)
def test_mass_accuracy_does_not_depend_on_the_scale(maps, exponent, masks):
    """The sum of very large attributions would be infinite, and their products with small ones zero."""
    maps = torch.tensor(maps, dtype=torch.float64).view(1, 6, 8)
    found, expected = (relevance_mass_accuracy(values, masks) for values in (maps * 2.0**exponent, maps))
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))


@given(value=finite, rows=st.integers(1, 7), columns=st.integers(1, 7), masks=masks_of)
def test_a_constant_patch_map_scores_the_share_of_the_region(value, rows, columns, masks):
    """Interpolation must not split its ties: it did so for a third of all constants."""
    constant = torch.full((1, rows * columns), value, dtype=torch.float64)
    pixels = upsample(constant, (rows, columns), (6, 8))
    assert (pixels == value).all()
    if masks.any():
        torch.testing.assert_close(relevance_rank_accuracy(pixels, masks), masks.float().mean().view(1))


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6), height=st.integers(1, 9), width=st.integers(1, 9))
def test_upsampling_is_torchs_apart_from_rounding(values, height, width):
    maps = torch.tensor([values], dtype=torch.float64)
    expected = torch.nn.functional.interpolate(maps.view(1, 1, 2, 3), size=(height, width), mode="bilinear")[:, 0]
    torch.testing.assert_close(upsample(maps, (2, 3), (height, width)), expected, rtol=1e-9, atol=1e-6)
