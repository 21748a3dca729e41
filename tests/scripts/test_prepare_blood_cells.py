"""Preparing the blood cells: crops show what their folder says, and masks are where the boxes are."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salvage_hf.data.loading import load_images

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "data" / "prepare_blood_cells.py"


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Runs the script on 24 grey photographs, in half of which white boxes are the platelets and black ones are not."""
    rng, lines = np.random.default_rng(0), []
    for number in range(24):
        pixels = np.full((60, 80, 3), 128, dtype=np.uint8)
        objects = {"bbox": [], "category": []}
        for category, value, count in (("RBC", 0, 2), ("Platelets", 255, number % 2 * 2)):
            for _ in range(count):
                x, y, width, height = *rng.integers(0, 50, 2), *rng.integers(4, 10, 2)
                pixels[y : y + height, x : x + width] = value
                objects["bbox"].append([int(x), int(y), int(width), int(height)])
                objects["category"].append(category)
        # lossless, so that a pixel's value says what it is
        Image.fromarray(pixels).save(tmp_path / f"cells{number:02d}.png")
        lines.append(json.dumps({"file_name": f"cells{number:02d}.png", "objects": objects}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))

    def run(*words):
        arguments = ["--image_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--crop_size", "20", *words]
        monkeypatch.setattr(sys, "argv", ["prepare_blood_cells.py", *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return tmp_path / "out"

    return run


def test_crops_and_masks_show_the_platelets(prepare):
    out = prepare()
    for split in ("train", "val"):
        for answer in ("platelet", "no platelet"):
            files = list((out / split / answer).glob("*.png"))
            assert len(files) >= 4
            for file in files:
                white = (np.asarray(Image.open(file)) == 255).all(axis=-1)
                assert white.shape == (20, 20)
                assert white.any() == (answer == "platelet")
                if split == "val":
                    mask = np.asarray(Image.open(out / "val_masks" / answer / file.name))
                    np.testing.assert_array_equal(mask == 255, white)
    names = {split: {file.stem[:7] for file in (out / split).rglob("*.png")} for split in ("train", "val")}
    assert len(names["val"]) <= 6  # a quarter of the photographs
    assert not names["train"] & names["val"]
    assert load_images(folder=str(out / "val")).features["label"].names == ["no platelet", "platelet"]


def test_the_seed_makes_the_crops(prepare, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        prepare("--output_dir", str(folder))
    first, again = ({file.name: file.read_bytes() for file in (f / "train").rglob("*.png")} for f in folders)
    assert first == again


def test_crops_of_two_runs_do_not_mix(prepare, capsys):
    """One run's training photograph could be another run's validation photograph."""
    prepare()
    with pytest.raises(SystemExit):
        prepare("--seed", "1")
    assert "holds ['train', 'val', 'val_masks'] already" in capsys.readouterr().err


def test_an_unknown_category(prepare, capsys):
    with pytest.raises(SystemExit):
        prepare("--category", "Neurons")
    assert "--category 'Neurons' is in no image; there are ['Platelets', 'RBC']" in capsys.readouterr().err
