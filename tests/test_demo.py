"""The demo with few pictures and steps; the README has the results of the full one."""

import json
import time

import numpy as np
import pytest
from browser import assert_fits, chromium, open_file
from forked import Forked
from PIL import Image
from shared_fixtures import draw_nothing
from transformers import AutoModel

from salvage_hf import demo
from salvage_hf.files import locked


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)  # `make package` runs a demo whose figures are drawn
        patch.setattr(demo, "PATCH_SIZE", 16)
        patch.setattr(demo, "TRAIN_PICTURES", 24)
        patch.setattr(demo, "EVAL_PICTURES", 2)
        patch.setattr(demo, "CLASSIFIER_STEPS", 3)
        patch.setattr(demo, "EXPLAINER_STEPS", 3)
        page = demo.run_demo(str(folder))
    return folder, page


def test_the_page_needs_no_other_file_and_holds_every_part(run):
    folder, page = run
    text = page.read_text()
    assert text.count("data:image/webp;base64,") in (8, 10)  # light and dark; 10 if anything is misclassified
    assert "<strong>What this is.</strong> “salvage demo” drew 96 pictures of 64 x 64 pixels" in text
    assert "://" not in text
    for word in ("Salvage", "Attn. last", "Random", "SRG", "R-SRG", "RRA", "RMA", "Classifying by explaining", "±"):
        assert word in text
    results = json.loads((folder / "benchmark" / "results.json").read_text())
    assert set(results["methods"]) == {"salvage", "last_attention", "random"}
    assert len(results["ids"]) == 4 * 2
    assert all(value is not None for scores in results["methods"].values() for value in scores["rra"])


def test_the_page_fits_into_windows(run):
    with chromium() as browser:
        for width in (390, 1280):
            assert_fits(open_file(browser, run[1], width))


def test_the_explainer_of_the_demo_loads(run):
    folder, _ = run
    model = AutoModel.from_pretrained(folder / "explainer")
    assert list(model.config.id2label.values()) == sorted(demo.CLASSES)


@pytest.mark.usefixtures("undrawn")
def test_a_second_and_fast_demo_in_the_same_folder_starts_afresh(run, monkeypatch):
    folder, _ = run
    for name, value in {
        "PATCH_SIZE": 16,
        "TRAIN_PICTURES": 16,
        "EVAL_PICTURES": 10,
        "CLASSIFIER_STEPS": 10,
        "EXPLAINER_STEPS": 10,
    }.items():
        monkeypatch.setattr(demo, name, value)
    page = demo.run_demo(str(folder), seed=1, fast=True)
    assert "This was the fast demo, with too little training" in page.read_text()
    results = json.loads((folder / "benchmark" / "results.json").read_text())
    assert len(results["ids"]) == 4 * 1
    assert results["settings"]["seed"] == 1


def test_a_folder_that_the_demo_did_not_make_is_not_touched(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="data' is not of an earlier demo; give another output_dir"):
        demo.run_demo(str(tmp_path))
    assert (tmp_path / "data" / "mine.txt").read_text() == "mine"


def test_a_page_that_the_demo_did_not_make_is_not_overwritten(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ValueError, match=r"index\.html' is not of an earlier demo; give another output_dir"):
        demo.run_demo(str(tmp_path))
    assert (tmp_path / "index.html").read_text() == "mine"


def test_two_demos_do_not_write_to_one_folder(tmp_path):
    def hold():
        with locked(tmp_path, "salvage demo"):
            (tmp_path / "data").mkdir()
            time.sleep(60)

    first = Forked(hold)
    while not (tmp_path / "data").exists():
        time.sleep(0.01)
    with pytest.raises(ValueError, match=rf"is being written by process {first.process.pid} on .*\(salvage demo\)"):
        demo.run_demo(str(tmp_path))
    first.kill()


@pytest.mark.parametrize(
    ("output_dir", "seed", "message"),
    [
        ("", 0, "output_dir must not be empty"),
        (None, 0, "output_dir must be of type str, got None"),
        ("demo", -1, "seed must be at least 0, got -1"),
        ("demo", "0", "seed must be of type int, got '0'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(output_dir, seed, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        demo.run_demo(output_dir, seed)
    assert list(tmp_path.iterdir()) == []


def test_the_mask_is_where_the_pattern_is(tmp_path):
    """Two pictures that differ only in the pattern differ inside their masks and nowhere else."""
    demo.make_pictures(tmp_path / "val", 40, seed=3)
    for name in demo.CLASSES:
        for number in range(40):
            picture = np.asarray(Image.open(tmp_path / "val" / name / f"{number:04d}.png"), dtype=float)
            mask = np.asarray(Image.open(tmp_path / "val_masks" / name / f"{number:04d}.png"))
            assert 0.02 < mask.mean() < 0.12
            # A pattern is bright beside dark: only there do neighbours differ by more than the noise explains.
            jump = np.abs(np.diff(picture, axis=1)).min(axis=-1)[:, :]
            strong = jump > 70
            inside = mask[:, 1:] | mask[:, :-1]
            if name != "horizontal stripes":  # these alternate along the columns
                assert strong[inside].mean() > 5 * strong[~inside].mean()


def test_pictures_come_from_the_seed(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo.make_pictures(tmp_path / folder, 1, seed)
    first = [(tmp_path / folder / "checks" / "0000.png").read_bytes() for folder in "abc"]
    assert first[0] == first[1] != first[2]
