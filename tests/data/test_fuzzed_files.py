"""Damaged, mislabelled and hostile image files: each is read, or refused with a sentence that names it.

SALVAGE_LONG_TESTS=1 tries 10,000 files in place of 300.
"""

import functools
import io
import os
import subprocess
import time
from collections import Counter

import numpy as np
import pytest
from image_files import EPS, black_png, picture, rgb_of_16_bits
from memory import peak_memory
from PIL import Image

from salvage_hf.data.loading import load_images
from salvage_hf.data.pictures import MAX_PIXELS, open_image
from salvage_hf.explain import ExplainArguments, explain_files

LONG = os.environ.get("SALVAGE_LONG_TESTS") == "1"
FILES = 10_000 if LONG else 300
#: Every how many-th file is explained: that takes a hundred times as long as reading it.
EXPLAINED = 10 if LONG else 30

#: Formats of the original files
SAVED_AS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "PCX", "SGI")
SUFFIXES = (".png", ".jpg", ".JPEG", ".webp", ".tif", ".bmp", ".gif", ".eps", ".dat", ".heic", ".jfif", "")
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"


black = functools.cache(black_png)


def original(rng):
    """The bytes of a whole image of any kind."""
    size = tuple(int(side) for side in rng.integers(1, 41, 2))
    image = picture(int(rng.integers(9)), size)
    kind = rng.choice(["format", "mode", "exif", "animation", "16 bits", "float", "bomb", "narrow", "program"])
    options, target = {}, io.BytesIO()
    if kind == "bomb":
        return black(*[(1, 1), (3_000, 3_000), (20_000, 1_000), (20_000, 20_000)][rng.integers(4)])
    if kind == "narrow":
        return black(*[(20_000, 10), (1, 20_000), (1, 50), (51, 1)][rng.integers(4)])
    if kind == "program":
        return [EPS, PDF, b"%!PS\nshowpage\n", b"", b"\xd7\xcd\xc6\x9a" + bytes(40)][rng.integers(5)]
    if kind == "16 bits":
        values = rng.integers(0, rng.choice([2, 256, 4096, 65536]), (*size, 3)).astype(np.uint16)
        if rng.random() < 0.5:
            return rgb_of_16_bits(values)
        Image.fromarray(values[..., 0]).save(target, rng.choice(["PNG", "TIFF", "PPM"]))
        return target.getvalue()
    if kind == "float":
        Image.fromarray(rng.normal(size=size).astype(np.float32)).save(target, "TIFF")
        return target.getvalue()
    if kind == "mode":
        mode = rng.choice(["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB"])
        image, name = image.convert(mode) if mode != "PA" else image.convert("P"), "PNG"
        name = "PNG" if image.mode in ("1", "L", "LA", "P", "RGBA") else "TIFF"
        options = {"transparency": int(rng.integers(256))} if image.mode == "P" else {}
    elif kind == "exif":
        exif = Image.Exif()
        exif[274] = int(rng.integers(0, 12))
        options, name = {"exif": exif}, rng.choice(["PNG", "JPEG", "WEBP", "TIFF"])
    elif kind == "animation":
        frames = [picture(value, size) for value in range(3)]
        options, name = {"save_all": True, "append_images": frames}, rng.choice(["GIF", "WEBP", "PNG", "TIFF"])
    else:
        name = rng.choice(SAVED_AS)
    image.save(target, name, **options)
    return target.getvalue()


def mutated(content, rng):
    """The content as it is, cut, or with some bits, bytes or parts changed; most often near its start."""
    damaged = bytearray(content)
    how = rng.choice(["nothing", "cut", "bits", "bytes", "part removed", "part repeated", "tail"])
    places = (len(damaged) * rng.random(int(rng.integers(1, 9))) ** 3).astype(int) if damaged else []
    for place in places:
        if how == "cut":
            return bytes(damaged[:place])
        if how == "bits":
            damaged[place] ^= 1 << int(rng.integers(8))
        elif how == "bytes":
            damaged[place] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
        elif how == "part removed":
            return bytes(damaged[:place] + damaged[place + int(rng.integers(1, 20)) :])
        elif how == "part repeated":
            return bytes(damaged[:place] + damaged[place // 2 : place] + damaged[place:])
        elif how == "tail":
            return bytes(damaged) + rng.bytes(100)
    return bytes(damaged)


@pytest.fixture
def no_program(monkeypatch):
    """Fails the test where a program is started."""
    for module, name in ((subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "fork")):
        monkeypatch.setattr(module, name, lambda *args, **options: pytest.fail("a program was started"))


@pytest.fixture
def explainer(salvage_model, save_processor, tmp_path):
    salvage_model(num_labels=2).save_pretrained(tmp_path / "model")
    save_processor(tmp_path / "model", 16)
    return str(tmp_path / "model")


@pytest.mark.filterwarnings("ignore")
def test_every_file_is_read_or_refused_by_name(tmp_path, explainer, no_program, capsys):
    folder = tmp_path / "files"
    folder.mkdir()
    rng = np.random.default_rng(0)
    counts, slowest = Counter(), 0.0
    with peak_memory() as peak:
        for number in range(FILES):
            path = folder / f"{number:05d}{rng.choice(SUFFIXES)}"
            path.write_bytes(mutated(original(rng), rng))
            start = time.perf_counter()
            try:
                opened = open_image(path)
            except ValueError as error:
                assert str(error).startswith(f"image '{path}' cannot be read: "), error  # noqa: PT017
                counts["refused"] += 1
            else:
                assert opened.mode == "RGB"
                assert opened.width * opened.height <= MAX_PIXELS
                counts["read"] += 1
            slowest = max(slowest, time.perf_counter() - start)
        dataset = load_images(folder=str(folder), on_bad_image="skip")
        chosen = [str(path) for path in sorted(folder.iterdir())[::EXPLAINED]]
        written, failed = explain_files(chosen, ExplainArguments(model=explainer, output=str(tmp_path / "explained")))
    assert len(dataset) == counts["read"]
    assert len(written) + len(failed) == len(chosen)
    readable = {image["path"] for image in dataset["image"]}
    assert len(written) == len(readable.intersection(chosen))
    for message in failed:
        assert str(folder) in message
        assert "cannot be read: " in message
    assert counts["read"] > FILES / 5
    assert counts["refused"] > FILES / 5
    assert peak.megabytes < 2500
    with capsys.disabled():
        if LONG:
            print(f"\n{counts}, {len(written)} explained, {peak.megabytes:.0f} MB, slowest {slowest:.2f} s")
