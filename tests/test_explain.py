"""`salvage explain` and the geometry of its pictures."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from salvage_hf.cli import main
from salvage_hf.data.processors import processed_box
from salvage_hf.evaluation.plots import bars, curves, overlay, picture_grid, png
from salvage_hf.explain import explain_files


@pytest.fixture
def model_folder(salvage_model, save_processor, tmp_path):
    folder = tmp_path / "model"
    salvage_model().save_pretrained(folder)
    save_processor(folder, 16)
    return folder


@pytest.fixture
def picture_folder(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape in {"wide.png": (20, 40, 3), "grey.png": (30, 20), "more/wide.jpg": (16, 16, 3)}.items():
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "more" / "wide.jpg").read_bytes()[:200])
    return folder


def test_a_folder_with_a_broken_file(model_folder, picture_folder, tmp_path, capsys):
    status = main(["explain", str(picture_folder), "--model", str(model_folder), "--output", str(tmp_path / "out")])
    assert status == 1  # something was skipped
    printed = capsys.readouterr()
    assert "broken.jpg" in printed.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["grey.png", "wide.png", "wide_2.png"]
    for path in (tmp_path / "out").iterdir():
        Image.open(path).load()
        assert str(path) in printed.out


def test_one_picture(model_folder, picture_folder, tmp_path):
    target = tmp_path / "new" / "explained.png"
    written, failed = explain_files([str(picture_folder / "wide.png")], str(model_folder), str(target), top=2)
    assert written == [target]
    assert failed == []


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["nowhere.png"], "out", "'nowhere.png' does not exist"),
        (["."], "out.png", "is one picture"),
        (["empty"], "out", "no files in empty"),
        (["wide.png"], "./wide.png", "is the image itself"),
    ],
)
def test_error_messages(model_folder, picture_folder, inputs, output, message, monkeypatch, capsys):
    monkeypatch.chdir(picture_folder)
    (picture_folder / "empty").mkdir()
    assert main(["explain", *inputs, "--model", str(model_folder), "--output", output]) == 2
    assert message in capsys.readouterr().err


def test_at_least_one_class_is_shown(model_folder, picture_folder, tmp_path):
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        explain_files([str(picture_folder / "wide.png")], str(model_folder), str(tmp_path / "out.png"), top=0)


def test_originals_are_not_overwritten(model_folder, picture_folder):
    before = {path: path.read_bytes() for path in picture_folder.rglob("*") if path.is_file()}
    written, _ = explain_files([str(picture_folder)], str(model_folder), str(picture_folder))
    assert len(written) == 3
    assert not set(written) & set(before)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_image_that_cannot_be_explained_does_not_stop_the_others(
    model_folder, picture_folder, tmp_path, monkeypatch
):
    from salvage_hf import explain

    def wrong_for_grey(picture, *args):
        if picture.size == (20, 30):
            raise struct.error("unpack requires a buffer of 2 bytes")
        return explanation(picture, *args)

    explanation = explain.explanation
    monkeypatch.setattr(explain, "explanation", wrong_for_grey)
    written, failed = explain_files([str(picture_folder)], str(model_folder), str(tmp_path / "out"))
    assert sorted(path.name for path in written) == ["wide.png", "wide_2.png"]
    assert sorted(message.split(":")[0].split("/")[-1] for message in failed) == ["broken.jpg", "grey.png"]


@pytest.mark.parametrize("bias", [-40.0, 40.0])
def test_one_label_is_explained_by_what_is_predicted(salvage_model, save_processor, tmp_path, monkeypatch, bias):
    from salvage_hf import explain

    model = salvage_model(num_labels=1)
    model.config.id2label = {0: "abnormal"}
    save_processor(tmp_path, 16)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    forward = type(model).forward

    def shifted(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + bias
        return output

    monkeypatch.setattr(type(model), "forward", shifted)
    drawn = []
    monkeypatch.setattr(explain, "overlay", lambda picture, values, *rest: drawn.append(values) or picture)
    picture = Image.new("RGB", (16, 16), (200, 10, 60))
    figure = explain.explanation(picture, model, processor)
    assert [axis.get_title() for axis in figure.axes] == [
        "image",
        "abnormal: 100.0%" if bias > 0 else "not abnormal: 100.0%",
    ]
    attributions = model(processor(picture, return_tensors="pt")["pixel_values"]).attributions[0, :, 0].detach()
    np.testing.assert_allclose(drawn[0].flatten(), attributions * (1 if bias > 0 else -1), rtol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(160, 160), (300, 200), (77, 191), (16, 16)])
@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}},
        {"size": {"height": 24, "width": 24}, "do_center_crop": False},
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    ],
)
def test_the_box_is_what_the_processor_shows(save_processor, tmp_path, width, height, options):
    """A picture whose colours are its coordinates comes out of the processor with the corners of the box."""
    save_processor(tmp_path, **options, do_normalize=False)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    picture = Image.fromarray((255 * np.stack([x, y, 0 * x], axis=-1)).round().astype(np.uint8))
    seen = processor(picture, return_tensors="pt")["pixel_values"][0]
    left, top, right, bottom = processed_box(processor, width, height)
    columns, rows = seen[0].mean(dim=0) * width, seen[1].mean(dim=1) * height  # original coordinates of pixel centres
    step_x, step_y = (right - left) / len(columns), (bottom - top) / len(rows)
    # Apart from the border, where resampling mirrors the picture, and to one pixel of the picture or of its crop.
    for index in (4, len(columns) // 2, len(columns) - 5):
        assert abs(columns[index] - (left + (index + 0.5) * step_x)) <= max(1.0, step_x)
        assert abs(rows[index] - (top + (index + 0.5) * step_y)) <= max(1.0, step_y)


def test_overlay_keeps_the_picture_and_its_geometry():
    picture = Image.fromarray(np.full((40, 60, 3), 120, dtype=np.uint8))
    values = np.zeros((2, 2))
    values[0, 1], values[1, 0] = 1, -1
    drawn = np.asarray(overlay(picture, values, box=(10, 0, 50, 40)), dtype=int)
    assert drawn.shape == (40, 60, 3)
    red_minus_blue = drawn[..., 0] - drawn[..., 2]
    assert red_minus_blue[5, 45] > 40  # the upper right speaks for the class
    assert red_minus_blue[35, 15] < -40  # the lower left speaks against it
    assert (red_minus_blue[:, :10] == 0).all()  # there is no colour outside the box
    assert (red_minus_blue[:, 50:] == 0).all()
    assert (np.asarray(overlay(picture, np.zeros((2, 2)))) >= 0).all()  # a map of zeros is drawn too


def test_a_box_beyond_the_picture():
    picture = Image.new("RGB", (10, 10))
    assert overlay(picture, np.ones((2, 2)), box=(-5, -5, 15, 15)).size == (10, 10)


def test_figures_are_pictures():
    grid = picture_grid([[("a", Image.new("RGB", (4, 8)))], [("b", Image.new("RGB", (8, 4)))] * 2])
    lines = curves({"LIF": {"one": [0.1, 0.5], "two": [0.3, 0.4]}})
    for figure in (grid, lines):
        assert png(figure).startswith(b"\x89PNG")
    drawn = {line.get_label(): list(line.get_ydata()) for line in lines.axes[0].get_lines()}
    assert drawn == {"one": [0.1, 0.5], "two": [0.3, 0.4]}
    assert list(lines.axes[0].get_lines()[0].get_xdata()) == [0.5, 1.0]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_legends_stay_inside_their_figure(count):
    figure = bars({"one panel": {f"a rather long name, {number}": [0.1] for number in range(count)}}, "SRG (%)")
    png(figure)  # lays it out
    (legend,) = figure.legends
    drawn = legend.get_window_extent()
    assert drawn.x0 >= 0
    assert drawn.x1 <= figure.bbox.x1
    assert len(legend.get_texts()) == count


def test_titles_hold_the_explainers_own_probabilities(model_folder, picture_folder):
    from transformers import AutoModel

    from salvage_hf.explain import explanation

    model, processor = AutoModel.from_pretrained(model_folder), AutoImageProcessor.from_pretrained(model_folder)
    picture = Image.open(picture_folder / "wide.png")
    figure = explanation(picture, model, processor, top=2)
    logits = model(processor(picture, return_tensors="pt")["pixel_values"]).logits[0].detach()
    best = logits.softmax(-1).topk(2)
    titles = [axis.get_title() for axis in figure.axes]
    expected = [
        f"{model.config.id2label[i.item()]}: {100 * p:.1f}%" for p, i in zip(best.values, best.indices, strict=True)
    ]
    assert titles == ["image", *expected]
    assert isinstance(best.values, torch.Tensor)
