"""Random numbers by stream, seed and image."""

import ast
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import salvage_hf
from salvage_hf.keyed_random import KeyedGenerator, image_keys


def test_keyed_numbers_do_not_depend_on_the_batch():
    keys = torch.tensor([7, 0, -3, 123456789012345678, 8])
    numbers = KeyedGenerator("test", 1, 2, keys=keys).uniform(4, 5)
    assert numbers.shape == (5, 4, 5)
    assert numbers.dtype == torch.float32
    reordered = torch.tensor([3, 1, 4])
    assert torch.equal(KeyedGenerator("test", 1, 2, keys=keys[reordered]).uniform(4, 5), numbers[reordered])
    for b in range(5):
        assert torch.equal(KeyedGenerator("test", 1, 2, keys=keys[b : b + 1]).uniform(4, 5)[0], numbers[b])


def test_successive_calls_continue_one_stream():
    whole = KeyedGenerator("test", 0, keys=torch.arange(3)).uniform(10)
    parts = KeyedGenerator("test", 0, keys=torch.arange(3))
    assert torch.equal(torch.cat([parts.uniform(4), parts.uniform(2, 3).flatten(1)], dim=1), whole)


STREAMS = [("a", 0), ("a", 1), ("a", -1), ("a", 0, 1), ("a", 1, 0), ("a", 0, 0), ("a", 2**40), ("b", 0), ("b", 0, 1)]


@pytest.mark.parametrize("stream", STREAMS)
def test_other_streams_numbers_and_keys_draw_other_numbers(stream):
    numbers = KeyedGenerator(*stream, keys=torch.arange(4)).uniform(100)
    assert len(numbers.flatten().unique()) > 395
    for other in {*STREAMS} - {stream}:
        assert (KeyedGenerator(*other, keys=torch.arange(4)).uniform(100) == numbers).sum() <= 2
    assert torch.equal(KeyedGenerator(*stream, keys=torch.arange(4)).uniform(100), numbers)


def test_no_two_places_of_the_library_draw_from_one_stream():
    """Streams that share a name, or seeds made by hand, could give validation the numbers of a training batch."""
    streams = Counter()
    for file in Path(salvage_hf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "KeyedGenerator":
                assert isinstance(node.args[0], ast.Constant), f"{file}:{node.lineno} hides the name of its stream"
                streams[node.args[0].value] += 1
    assert len(streams) >= 15
    assert [name for name, uses in streams.items() if uses > 1] == []


def kolmogorov_smirnov(numbers):
    numbers = numbers.flatten().double().sort().values
    n = len(numbers)
    steps = torch.arange(n + 1).double() / n
    return max((steps[1:] - numbers).max(), (numbers - steps[:-1]).max()).item() * n**0.5


@pytest.mark.parametrize("stream", [("test", 0), ("test", 1), ("another", 5, 1000)])
def test_keyed_numbers_are_uniform_and_uncorrelated(stream):
    """Also for neighbouring keys, such as the ids 0, 1, 2; the Kolmogorov-Smirnov bound is that of p = 0.001."""
    numbers = KeyedGenerator(*stream, keys=torch.arange(64)).uniform(4096)
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert kolmogorov_smirnov(numbers) < 1.95
    for axis in (numbers, numbers.T):  # draws of one image, and one draw of all images
        assert max(kolmogorov_smirnov(row) for row in axis[:64]) < 2.4  # the largest of 64: p = 0.001
    between_images = numbers.corrcoef() - torch.eye(64)
    assert between_images.abs().max() * 4096**0.5 < 5
    lagged = torch.stack([numbers[:, :-1].flatten(), numbers[:, 1:].flatten()]).corrcoef()[0, 1]
    assert abs(lagged) * numbers.numel() ** 0.5 < 4
    next_seed = KeyedGenerator(stream[0], stream[1] + 1, *stream[2:], keys=torch.arange(64)).uniform(4096)
    assert abs(torch.stack([numbers.flatten(), next_seed.flatten()]).corrcoef()[0, 1]) * numbers.numel() ** 0.5 < 4


def test_equal_images_have_equal_keys_in_any_batch(images):
    pixel_values = torch.cat([images(3), images(3)[1:2], images(2, seed=1)])
    keys = image_keys(pixel_values)
    assert keys.shape == (6,)
    assert keys.dtype == torch.int64
    assert keys[3] == keys[1]
    assert len(keys.unique()) == 5
    assert torch.equal(image_keys(pixel_values.flip(0)), keys.flip(0))
    assert torch.equal(image_keys(pixel_values.transpose(0, 1).contiguous().transpose(0, 1)), keys)
    assert torch.equal(image_keys(pixel_values[4:5]), keys[4:5])


def test_nearly_equal_images_have_other_keys(images):
    pixel_values = images(1).expand(770, -1, -1, -1).clone().flatten(1)
    for b in range(768):  # each of these differs from image 768 in one pixel, by the smallest step
        pixel_values[b, b] = torch.nextafter(pixel_values[b, b], torch.tensor(torch.inf))
    pixel_values[769] = pixel_values[769].flip(0)
    assert len(image_keys(pixel_values.view(-1, 3, 16, 16)).unique()) == 770


def test_seeds_are_whole_numbers_of_64_bits():
    keys = torch.arange(3)
    for seed in (-5, 2**63 - 1, -(2**63)):
        numbers = KeyedGenerator("test", np.int64(seed), keys=keys).uniform(4)
        assert torch.equal(KeyedGenerator("test", seed, keys=keys).uniform(4), numbers)
    for seed in (0.5, 1.0, float("nan"), True, "1", None, torch.tensor(0.5)):
        with pytest.raises(ValueError, match="seed must be a whole number, got"):
            KeyedGenerator("test", seed, keys=keys)
    for seed in (2**63, -(2**63) - 1, 2**64):  # the last one would draw what the seed 0 draws
        with pytest.raises(ValueError, match="seed must fit into 64 bits, got"):
            KeyedGenerator("test", seed, keys=keys)
    with pytest.raises(ValueError, match=r"keys must be whole numbers \[B\], got float32 \[3\]"):
        KeyedGenerator("test", 0, keys=keys.float())
