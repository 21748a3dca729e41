"""What users give, as tensors."""

import numpy as np
import pytest
import torch

from salvage_hf.tensors import (
    booleans,
    described,
    one_of,
    positive_number,
    processed_images,
    reals,
    two_sides,
    whole_number,
    whole_numbers,
)

MAP = torch.tensor([[1.0, -2.5], [0.0, 4.0]])


@pytest.mark.parametrize(
    "given",
    [
        MAP,
        MAP.half(),
        MAP.bfloat16(),
        MAP.double().requires_grad_(),
        MAP.numpy(),
        MAP.numpy().astype(">f8"),
        MAP.numpy()[::-1][::-1],
        MAP.tolist(),
        tuple(MAP),
        [MAP[0].numpy(), [0.0, 4.0]],
    ],
)
def test_every_form_of_the_same_numbers(given):
    found = reals("maps", given, "B N", B=2)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert torch.equal(found, MAP.double())


def test_no_number_is_rounded():
    values = [[2.0**-1074, 1e300], [1 + 2.0**-52, -(2.0**1023)]]
    assert reals("maps", values, "B N").tolist() == values
    assert reals("maps", np.array([[2**53, -(2**53)]]), "B N").tolist() == [[2**53, -(2**53)]]
    for beyond in (2**53 + 1, -(2**53) - 1, -(2**63)):
        with pytest.raises(ValueError, match=r"maps hold whole numbers beyond 2\^53"):
            reals("maps", [[beyond]], "B N")
    assert whole_numbers("ids", np.array([2**63 - 1], dtype=np.uint64), "B").tolist() == [2**63 - 1]
    with pytest.raises(ValueError, match="ids must be whole numbers"):
        whole_numbers("ids", np.array([2**63], dtype=np.uint64), "B")


def test_arrays_that_cannot_be_written_are_copied(recwarn):
    array = np.arange(4.0)
    array.flags.writeable = False
    assert reals("scores", array, "B").tolist() == [0, 1, 2, 3]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (MAP[0], r"maps must be real numbers \[B, N\] or \[B, H, W\] with B = 2, got float32 \[2\]"),
        (MAP[:1], r"with B = 2, got float32 \[1, 2\]"),
        (MAP[:, :0], r"with B = 2, not empty, got float32 \[2, 0\]"),
        (MAP > 0, r"got bool \[2, 2\]"),
        (MAP.to_sparse(), r"got sparse_coo float32 \[2, 2\]"),
        (MAP.to("meta"), r"got meta float32 \[2, 2\]"),
        (MAP + 0j, r"got complex64 \[2, 2\]"),
        (np.ma.masked_array(MAP.numpy(), MAP.numpy() > 0), r"got MaskedArray of float32 \[2, 2\]"),
        ([[1.0], [1.0, 2.0]], r"got \[\[1.0\], \[1.0, 2.0\]\]"),
        ([MAP[0], None], r"got \[float32 \[2\], None\]"),
        (None, "got None"),
        ("a" * 1000, r"got 'aaaa.{0,60}'$"),
        (torch.tensor([[0.0], [torch.nan]]), r"maps are NaN or infinite for the images at \[1\]"),
    ],
)
def test_the_rest_is_refused_by_a_sentence(given, message):
    with pytest.raises(ValueError, match=message):
        reals("maps", given, "B N | B H W", B=2)


def test_kinds_are_not_converted_into_each_other():
    for convert, given in (
        (whole_numbers, [0.0, 1.0]),
        (whole_numbers, [True, False]),
        (booleans, [0, 1]),
        (booleans, [0.0, 1.0]),
    ):
        with pytest.raises(ValueError, match=r"values must be (whole numbers|boolean) \[B\], got"):
            convert("values", given, "B")
    with pytest.raises(ValueError, match=r"floating-point \[B, C, H, W\], got uint8 \[1, 3, 2, 2\]"):
        processed_images("pixel_values", np.zeros((1, 3, 2, 2), dtype=np.uint8))
    assert processed_images("pixel_values", [torch.zeros(3, 2, 2).half()] * 4).dtype == torch.float16


def test_single_numbers():
    assert whole_number("seed", np.int32(-4)) == -4
    for given in (True, 1.0, "1", None, torch.tensor(1), float("nan")):
        with pytest.raises(ValueError, match="seed must be a whole number, got"):
            whole_number("seed", given)
    with pytest.raises(ValueError, match="budget must be a whole number of at least 5, got 4"):
        whole_number("budget", 4, at_least=5)
    for given, number in ((2, 2.0), (0.5, 0.5), (np.float32(0.25), 0.25), (5e-324, 5e-324)):
        found = positive_number("exponent", given)
        assert found == number
        assert type(found) is float
    for given in (0, -1.0, True, "1", None, float("inf"), np.float32("nan"), 10**400, torch.tensor(1.0)):
        with pytest.raises(ValueError, match="exponent must be a finite positive number, got"):
            positive_number("exponent", given)
    assert two_sides("grid_size", torch.Size([2, 3])) == two_sides("grid_size", np.array([2, 3])) == (2, 3)
    with pytest.raises(ValueError, match=r"grid_size must be two positive whole numbers, got \(2, 0\)"):
        two_sides("grid_size", (2, 0))
    with pytest.raises(ValueError, match="mode must be one of a, b, got 'c'"):
        one_of("mode", "c", ("a", "b"))
    with pytest.raises(ValueError, match=r"must be one of gradcam, rise, got 'gradcm'; did you mean gradcam\?"):
        one_of("method", "gradcm", ("gradcam", "rise"))


def test_descriptions_are_short():
    for value in ([[0.5] * 1000, [0.5]], "a\nb" * 500, {"a": [[1] * 50] * 50}, torch.zeros(300, 300), [None] * 500):
        text = described(value)
        assert len(text) < 90
        assert "\n" not in text
