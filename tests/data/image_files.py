"""Images, files and data sets that the tests of this folder make."""

import io

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
