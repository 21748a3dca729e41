import math

import pytest
import torch

from salvage_hf.localization import relevance_mass_accuracy, relevance_rank_accuracy, upsample


def make(batch_size=6, height=5, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch_size, height, width, generator=generator)
    masks = torch.rand(batch_size, height, width, generator=generator) < torch.rand(
        batch_size, 1, 1, generator=generator
    )
    masks[:, -1, -1] = True  # no mask is empty
    return maps, masks


def literal_rank_accuracy(values, mask):
    """Pixel by pixel, without ties: how many of the k highest lie inside, k being the number of pixels inside."""
    pixels = [(values[y, x].item(), mask[y, x].item()) for y in range(len(values)) for x in range(len(values[0]))]
    k = sum(inside for _, inside in pixels)
    return sum(inside for _, inside in sorted(pixels, reverse=True)[:k]) / k


def literal_mass_accuracy(values, mask):
    inside = total = 0.0
    for y in range(len(values)):
        for x in range(len(values[0])):
            if values[y, x] > 0:
                total += values[y, x].item()
                inside += values[y, x].item() if mask[y, x] else 0.0
    return inside / total


@pytest.mark.parametrize(("height", "width"), [(2, 2), (5, 7), (1, 9)])
def test_equal_literal_loops(height, width):
    maps, masks = make(40, height, width)
    defined = (maps > 0).any(dim=(1, 2))
    maps, masks = maps[defined], masks[defined]
    rank, mass = relevance_rank_accuracy(maps, masks), relevance_mass_accuracy(maps, masks)
    assert len(maps) > 20
    for b in range(len(maps)):
        assert rank[b].item() == pytest.approx(literal_rank_accuracy(maps[b], masks[b]), abs=1e-6)
        assert mass[b].item() == pytest.approx(literal_mass_accuracy(maps[b], masks[b]), abs=1e-5)


def test_perfect_and_opposite_maps():
    _, masks = make()
    for accuracy in (relevance_rank_accuracy, relevance_mass_accuracy):
        assert torch.equal(accuracy(masks.float(), masks), torch.ones(len(masks)))
    small = torch.zeros(1, 4, 4, dtype=torch.bool)  # smaller than its complement
    small[0, :2, :2] = True
    assert relevance_rank_accuracy((~small).float(), small).item() == 0
    assert relevance_mass_accuracy((~small).float(), small).item() == 0


def test_ties_score_what_a_random_order_would():
    """Compared with the literal version's mean over many random orders of the ties."""
    maps, masks = make(4, 3, 3, seed=2)
    maps = maps.round()
    rank = relevance_rank_accuracy(maps, masks)
    generator = torch.Generator().manual_seed(0)
    for b in range(4):
        broken = [maps[b] + 1e-3 * torch.rand(3, 3, generator=generator) for _ in range(2000)]
        scores = torch.tensor([literal_rank_accuracy(values, masks[b]) for values in broken])
        assert abs(rank[b] - scores.mean()) < 4 * scores.std() / 2000**0.5 + 1e-6


def test_a_constant_map_scores_the_share_of_the_region():
    _, masks = make()
    share = masks.float().mean(dim=(1, 2))
    torch.testing.assert_close(relevance_rank_accuracy(torch.full(masks.shape, -2.0), masks), share)
    torch.testing.assert_close(relevance_mass_accuracy(torch.full(masks.shape, 2.0), masks), share)


def test_negative_attributions_have_no_mass():
    maps = torch.tensor([[[2.0, -100.0], [-100.0, 6.0]]])
    masks = torch.tensor([[[True, True], [False, False]]])
    assert relevance_mass_accuracy(maps, masks).item() == 0.25


def test_undefined_scores_are_nan():
    maps, masks = make(3)
    masks[0] = False
    maps[1] = -maps[1].abs()
    masks[1, 0, 0] = masks[2, 0, 0] = True
    assert relevance_rank_accuracy(maps, masks).isnan().tolist() == [True, False, False]
    assert relevance_mass_accuracy(maps, masks).isnan().tolist() == [True, True, False]


def test_a_full_mask_scores_one():
    maps, masks = make()
    masks[:] = True
    for accuracy in (relevance_rank_accuracy, relevance_mass_accuracy):
        torch.testing.assert_close(accuracy(maps, masks), torch.ones(len(maps)))


@pytest.mark.parametrize("accuracy", [relevance_rank_accuracy, relevance_mass_accuracy])
def test_scores_ignore_scale_and_neighbours(accuracy):
    maps, masks = make()
    expected = accuracy(maps, masks)
    torch.testing.assert_close(accuracy(maps * 1e-6, masks), expected)
    torch.testing.assert_close(accuracy(maps * 1e6, masks), expected)
    for b in range(len(maps)):
        torch.testing.assert_close(accuracy(maps[b : b + 1], masks[b : b + 1])[0], expected[b])


def literal_bilinear(grid, height, width):
    """Pixel centres, not corners, are aligned; values are constant beyond the outermost patch centres."""
    rows, columns = grid.shape
    out = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            at_y = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            at_x = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            for i in range(rows):
                for j in range(columns):
                    out[y, x] += grid[i, j] * max(0, 1 - abs(at_y - i)) * max(0, 1 - abs(at_x - j))
    return out


@pytest.mark.parametrize(
    ("grid_size", "size"), [((2, 3), (8, 9)), ((3, 2), (7, 10)), ((4, 4), (4, 4)), ((1, 2), (3, 5))]
)
def test_upsample_equals_literal_loops(grid_size, size):
    rows, columns = grid_size
    attributions = torch.randn(2, rows * columns, generator=torch.Generator().manual_seed(0)).double()
    bilinear = upsample(attributions, grid_size, size)
    nearest = upsample(attributions, grid_size, size, mode="nearest")
    assert bilinear.shape == nearest.shape == (2, *size)
    for b in range(2):
        grid = attributions[b].view(rows, columns)  # patches are numbered row by row
        torch.testing.assert_close(bilinear[b], literal_bilinear(grid, *size), rtol=0, atol=1e-5)
        for y in range(size[0]):
            for x in range(size[1]):
                assert nearest[b, y, x] == grid[math.floor(y * rows / size[0]), math.floor(x * columns / size[1])]


@pytest.mark.parametrize("accuracy", [relevance_rank_accuracy, relevance_mass_accuracy])
def test_wrong_arguments(accuracy):
    maps, masks = make(2)
    with pytest.raises(ValueError, match=r"masks must be .* H = 5, W = 7, got bool \[2, 5, 6\]"):
        accuracy(maps, masks[..., :-1])
    with pytest.raises(ValueError, match=r"maps must be real numbers \[B, H, W\], got float32 \[5, 7\]"):
        accuracy(maps[0], masks[0])
    with pytest.raises(ValueError, match=r"masks must be boolean .*, got float32"):
        accuracy(maps, masks.float())
    maps[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite for the images at \[1\]"):
        accuracy(maps, masks)


def test_upsample_refuses_another_grid():
    with pytest.raises(ValueError, match="12 patches, grid_size 3 x 5 has 15"):
        upsample(torch.zeros(1, 12), (3, 5), (6, 10))
