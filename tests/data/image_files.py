"""Images, files and data sets that the tests of this folder make."""

import io
import struct
import zlib

import datasets
import numpy as np
from PIL import Image
from transformers import PretrainedConfig


def config_with(*names, num_labels=None):
    return PretrainedConfig(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


def picture(value=0, size=(20, 20), mode="RGB"):
    """Noise around a grey value, which makes the file long enough for half of it to be a broken image."""
    noise = np.random.default_rng(value).integers(-9, 9, (*size[::-1], 3)) + 100 + 10 * value
    return Image.fromarray(noise.astype(np.uint8)).convert(mode)


def corrupt(path, how):
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>404</html>", "truncated": whole[: len(whole) // 2]}[how])


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def parquet(tmp_path, images, labels=None, feature=None):
    """A data set as the Hub holds it: one parquet file with the bytes of the images."""
    columns, features = {"image": images}, {"image": datasets.Image()}
    if labels is not None:
        columns["label"], features["label"] = labels, feature or datasets.Value("int64")
    folder = tmp_path / "dataset"
    folder.mkdir()
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    dataset.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


#: With this, Pillow starts Ghostscript.
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def black_png(width, height):
    """The bytes of a PNG of black pixels in black and white, which takes hardly any bytes."""
    compressor, line = zlib.compressobj(9), b"\0" * (1 + (width + 7) // 8)
    data = b"".join(compressor.compress(line * min(1000, height - row)) for row in range(0, height, 1000))
    return _png(width, height, 1, 0, data + compressor.flush())


def rgb_of_16_bits(values):
    """The bytes of a PNG of 16 bits per channel, which Pillow cannot write: values are [H, W, 3]."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return _png(values.shape[1], values.shape[0], 16, 2, zlib.compress(rows))


def _png(width, height, depth, kind, data):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
