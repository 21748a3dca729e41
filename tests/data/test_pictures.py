"""Opening image files: formats, sizes, and ranges of values."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import EPS, black_png, picture, rgb_of_16_bits
from memory import peak_memory
from PIL import Image

from salvage_hf.data.pictures import FORMATS, MAX_PIXELS, open_image, why_unreadable


def refused(path, pixel_range=None):
    """The message with which an image is refused; it names the file."""
    with pytest.raises(ValueError, match="cannot be read: ") as error:
        open_image(path, pixel_range)
    assert str(error.value).startswith(f"image '{path}'")
    assert why_unreadable(path, pixel_range) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "eps"])
def test_no_file_makes_pillow_start_a_program(tmp_path, monkeypatch, suffix):
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("a program was started"))
    path = tmp_path / f"photo.{suffix}"
    path.write_bytes(EPS)
    assert "damaged or of another format than PNG, JPEG" in refused(path)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("content", [b"%PDF-1.4\n", b"", b"\0" * 500, b"8BPS\0\1", b"II*\0"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, content):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert "another format" in refused(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_is_read_by_its_content(tmp_path, kind):
    path = tmp_path / "no_suffix"
    try:
        picture().save(path, kind)
    except KeyError:
        pytest.skip(f"this Pillow cannot write {kind}")
    assert open_image(path).size == (20, 20)


def test_what_is_no_file_is_refused_without_reading_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it: reading would wait for ever
    assert "it is not a file" in refused(tmp_path / "pipe.png")
    assert "the file does not exist" in refused(tmp_path / "nothing.png")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    assert "the file does not exist" in refused(tmp_path / "itself.png")


def test_a_name_that_is_not_utf_8_is_shown(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"/\\xff\.png' cannot be read"):
        open_image(path)
    picture().save(tmp_path / "good.png")
    (tmp_path / "good.png").rename(path)
    assert open_image(path).size == (20, 20)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((30_000, 30_000), f"more than {MAX_PIXELS:,}"),
        ((12_000, 8_000), f"it has 12000 x 8000 pixels, more than {MAX_PIXELS:,}"),
        ((1, 20_000), "it has 1 x 20000 pixels: one side is more than 50 times the other"),
        ((20_000, 10), "it has 20000 x 10 pixels: one side is more than 50 times the other"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_extreme_sizes_are_refused_before_they_are_decoded(tmp_path, size, message):
    path = tmp_path / "bomb.png"
    path.write_bytes(black_png(*size))
    refused(path)  # what Pillow keeps for itself is counted with the baseline
    with peak_memory() as peak:
        assert message in refused(path)
    assert peak.megabytes < 20


def test_the_largest_image_takes_a_bounded_part_of_the_memory(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(black_png(9_400, 9_400))
    with peak_memory() as peak:
        assert open_image(path).size == (9_400, 9_400)
    assert peak.megabytes < 600


@pytest.mark.parametrize("largest", [200, 255, 4095])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_values_that_do_not_use_16_bits_are_refused_until_their_range_is_given(tmp_path, suffix, largest):
    values = np.linspace(0, largest, 256).astype(np.uint16).reshape(16, 16)
    path = tmp_path / f"scan.{suffix}"
    Image.fromarray(values).save(path)
    assert f"its values end at {largest}, too early for 16 bits" in refused(path)
    assert "pixel_range (LOW HIGH)" in refused(path)
    opened = np.asarray(open_image(path, pixel_range=(0, largest)))
    assert np.array_equal(opened[..., 0], np.rint(255 * (values / largest)).astype(np.uint8))


def test_black_and_whole_range_16_bit_images_are_read(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "black.png")
    assert not np.asarray(open_image(tmp_path / "black.png")).any()
    Image.fromarray(np.full((4, 4), 4096, np.uint16)).save(tmp_path / "dark.png")
    assert np.asarray(open_image(tmp_path / "dark.png")).max() == 16


@pytest.mark.parametrize(("largest", "good"), [(255, False), (4095, False), (4096, True), (65535, True)])
def test_colours_of_16_bits_must_use_their_range_too(tmp_path, largest, good):
    values = np.zeros((3, 4, 3), np.uint16)
    values[1, 1, 2] = largest
    (tmp_path / "colours.png").write_bytes(rgb_of_16_bits(values))
    if good:
        assert np.asarray(open_image(tmp_path / "colours.png")).max() == largest // 256
    else:
        assert "too early for 16 bits" in refused(tmp_path / "colours.png")
    assert "pixel_range cannot apply" in refused(tmp_path / "colours.png", (0, largest))


@given(
    low=st.floats(-2000, 2000, width=32),
    length=st.floats(1, 5000, width=32),
    shares=st.lists(st.floats(-0.5, 1.5, width=32), min_size=4, max_size=4),
)
def test_a_range_maps_values_linearly_to_greys_and_clips_them(tmp_path_factory, low, length, shares):
    path = tmp_path_factory.mktemp("scans") / "scan.tiff"
    values = np.float32(low) + np.float32(length) * np.array(shares, np.float32).reshape(2, 2)
    Image.fromarray(values).save(path)
    greys = np.asarray(open_image(path, pixel_range=(low, low + length)))[..., 0]
    wanted = 255 * np.clip((values.astype(float) - low) / length, 0, 1)
    assert np.abs(greys - wanted).max() <= 0.6


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path, wrong):
    values = np.ones((4, 4), np.float32)
    values[1, 1] = wrong
    Image.fromarray(values).save(tmp_path / "scan.tiff")
    assert "NaN or infinite" in refused(tmp_path / "scan.tiff", (0, 1))


@pytest.mark.parametrize("wrong", [(0,), (0, 1, 2), (5, 5), (9, 1), (0, np.nan), (0, np.inf)])
def test_a_range_that_is_none_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"pixel_range must be two numbers, the smaller one first, got \("):
        open_image(tmp_path / "scan.tiff", pixel_range=wrong)


def test_images_of_8_bits_have_no_other_range(tmp_path):
    picture().save(tmp_path / "photo.png")
    without, within = open_image(tmp_path / "photo.png"), open_image(tmp_path / "photo.png", (0, 4095))
    assert np.array_equal(np.asarray(without), np.asarray(within))


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": None}])
def test_a_missing_image_is_refused(image):
    with pytest.raises(ValueError, match="the image cannot be read: the image is missing"):
        open_image(image)
    with pytest.raises(ValueError, match="image '7' cannot be read: the image is missing"):
        open_image(image, name="7")
