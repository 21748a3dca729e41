"""`salvage explain`: what it reads and writes, what it refuses, and the geometry of its pictures."""

import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from data.memory import peak_memory
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from salvage_hf import explain
from salvage_hf.cli import main
from salvage_hf.explain import MOST_CLASSES, explain_files, explanation
from salvage_hf.masking import MaskedClassifier, provenance
from salvage_hf.modeling import picture_geometry
from salvage_hf.refinement import refine


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


@pytest.fixture
def quick(monkeypatch):
    """Leaves out the model and the drawing, for tests of files."""
    monkeypatch.setattr(explain, "_load", lambda name: (None, None))
    figure = explain.picture_grid([[("image", Image.new("RGB", (8, 8)))]])
    monkeypatch.setattr(explain, "explanation", lambda picture, **options: figure)


def test_a_folder_with_a_broken_file(model_folder, picture_folder, tmp_path, capsys):
    status = main(["explain", str(picture_folder), "--model", str(model_folder), "--output", str(tmp_path / "out")])
    assert status == 1  # something was skipped
    printed = capsys.readouterr()
    assert "broken.jpg" in printed.err
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["grey.png", "wide.png", "wide_2.png"]
    for path in (tmp_path / "out").glob("*.png"):
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
        ([""], "out", "an input is an empty text"),
        (["pipe"], "out", "'pipe' is neither a file nor a folder"),
        (["."], "out.png", "is one picture, but there are 4 images"),
        (["empty"], "out", "no images in empty"),
        (["wide.png"], "./wide.png", "is the image itself"),
        (["wide.png"], "linked.png", "is the image itself"),
        (["wide.png"], "", "output is an empty text"),
        (["wide.png"], "out.bmp", "ends in '.bmp'; a picture ends in one of png, jpg, jpeg, webp, pdf, svg"),
        (["wide.png"], "grey.png/out", "grey.png/out' is not writable"),
    ],
)
def test_what_does_not_fit_is_refused(model_folder, picture_folder, inputs, output, message, monkeypatch, capsys):
    monkeypatch.chdir(picture_folder)
    before = (picture_folder / "wide.png").read_bytes()
    (picture_folder / "empty").mkdir()
    os.mkfifo("pipe")
    if output == "linked.png":
        (picture_folder / output).hardlink_to("wide.png")
    with pytest.raises(SystemExit) as end:
        main(["explain", *inputs, "--model", str(model_folder), "--output", output])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert (picture_folder / "wide.png").read_bytes() == before


@pytest.mark.parametrize("top", [0, -1, MOST_CLASSES + 1, 1.5, None])
def test_the_number_of_classes_is_bounded(top):
    with pytest.raises(ValueError, match=f"top must be a whole number from 1 to {MOST_CLASSES}, got {top}"):
        explain_files(["wide.png"], "model", "out.png", top=top)


# What is read


def test_a_second_call_does_not_explain_the_pictures_of_the_first(quick, picture_folder):
    def files():
        return sorted(str(path.relative_to(picture_folder)) for path in picture_folder.rglob("[!.]*.*"))

    first, _ = explain_files([str(picture_folder)], "model", str(picture_folder / "maps"))
    one, _ = explain_files([str(picture_folder / "grey.png")], "model", str(picture_folder / "one.jpg"))
    there = files()
    again, failed = explain_files([str(picture_folder)], "model", str(picture_folder / "maps"))
    assert again == first
    assert len(failed) == 1  # broken.jpg
    assert files() == there
    with pytest.raises(ValueError, match="no images in"):
        explain_files([str(one[0])], "model", str(picture_folder / "maps"))


def test_only_images_of_a_folder_are_read_and_each_once(quick, picture_folder, tmp_path, caplog):
    (picture_folder / "notes.txt").write_text("no image")
    (picture_folder / ".hidden.png").write_text("no image")
    (picture_folder / "no_suffix").write_bytes((picture_folder / "wide.png").read_bytes())
    (picture_folder / "more" / "round").symlink_to(picture_folder)
    (picture_folder / "more" / "itself.png").symlink_to("itself.png")
    os.mkfifo(picture_folder / "pipe.png")
    inputs = [str(picture_folder), str(picture_folder / "wide.png")]
    written, failed = explain_files(inputs, "model", str(tmp_path / "out"))
    assert sorted(path.name for path in written) == ["grey.png", "no_suffix.png", "wide.png", "wide_2.png"]
    assert len(failed) == 1
    for name in ("notes.txt (no image by its name)", "round (a link", "itself.png (a link", "pipe.png (neither"):
        assert name in caplog.text


# What is written


@pytest.mark.parametrize("suffix", explain.FORMATS)
def test_the_suffix_says_the_format(quick, picture_folder, tmp_path, suffix):
    target = tmp_path / "new" / f"map.{suffix.upper()}"
    explain_files([str(picture_folder / "wide.png")], "model", str(target))
    start = {"png": b"\x89PNG", "webp": b"RIFF", "pdf": b"%PDF", "svg": b"<?xml"}.get(suffix, b"\xff\xd8\xff")
    assert target.read_bytes().startswith(start)


def test_free_names_are_found_at_once(tmp_path):
    """The time for 4,000 images of one name used to grow with the square of their number."""
    (tmp_path / "photo_3.png").write_text("of other origin")
    (tmp_path / "Other.PNG").write_text("of other origin")
    files = [tmp_path / str(number) / "photo.jpg" for number in range(4000)]
    targets = explain._targets([*files, tmp_path / "other.jpg"], tmp_path)
    assert [path.name for path in targets.values()][:3] == ["photo.png", "photo_2.png", "photo_4.png"]
    assert targets[files[-1]].name == "photo_4001.png"
    assert targets[tmp_path / "other.jpg"].name == "other_2.png"
    assert len(set(targets.values())) == 4001


@pytest.mark.parametrize("name", [b"\xff\xfe.png", ("\u72ac" * 83).encode() + b".png", b"$a$ b%s\n.png"])
def test_any_name_of_a_file(quick, picture_folder, tmp_path, name, capsys):
    file = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 - a Path holds no bytes
    shutil.copy(picture_folder / "wide.png", file)
    assert main(["explain", os.fsdecode(file), "--model", "model", "--output", str(tmp_path / "out")]) == 0
    written = [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    assert len(written) == 1
    assert str(written[0]) in capsys.readouterr().out


@pytest.mark.parametrize("problem", ["full disk", "folder is removed", "removed at the end"])
def test_a_picture_that_cannot_be_written_ends_the_run(quick, picture_folder, tmp_path, problem, monkeypatch, capsys):
    out, write = tmp_path / "out", explain.write_bytes

    def fail(path, content):
        if problem == "full disk":
            raise OSError(28, "No space left on device")
        if problem == "folder is removed":
            shutil.rmtree(out)
        write(path, content)
        if problem == "removed at the end":
            path.unlink()

    monkeypatch.setattr(explain, "write_bytes", fail)
    with pytest.raises(SystemExit) as end:
        main(["explain", str(picture_folder), "--model", "model", "--output", str(out)])
    assert end.value.code == 2
    message = {
        "full disk": "No space left on device",
        "folder is removed": "grey.png' could not be written: [Errno 2] No such file or directory",
        "removed at the end": "3 of 3 pictures are gone since they were written",
    }[problem]
    assert message in capsys.readouterr().err
    assert list(out.glob("*.png*")) == []


def test_one_process_at_a_time_writes_to_a_folder(quick, picture_folder, tmp_path):
    (tmp_path / "grey.png.0123abcd.partial").write_text("left by a process that was killed")
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="is being written by another process"):
            explain_files([str(picture_folder)], "model", str(tmp_path))
        other.communicate(b"\n")
    explain_files([str(picture_folder)], "model", str(tmp_path))
    assert list(tmp_path.glob("*.partial")) == []


def test_originals_are_not_overwritten(model_folder, picture_folder):
    before = {path: path.read_bytes() for path in picture_folder.rglob("*") if path.is_file()}
    written, _ = explain_files([str(picture_folder)], str(model_folder), str(picture_folder))
    assert len(written) == 3
    assert not set(written) & set(before)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_image_that_cannot_be_explained_does_not_stop_the_others(
    model_folder, picture_folder, tmp_path, monkeypatch
):
    def wrong_for_grey(picture, **options):
        if picture.size == (20, 30):
            raise struct.error("unpack requires a buffer of 2 bytes")
        return explanation(picture, **options)

    monkeypatch.setattr(explain, "explanation", wrong_for_grey)
    written, failed = explain_files([str(picture_folder)], str(model_folder), str(tmp_path / "out"))
    assert sorted(path.name for path in written) == ["wide.png", "wide_2.png"]
    assert [message.replace(str(picture_folder), "") for message in sorted(failed)] == [
        "image '/broken.jpg' cannot be read: OSError: Truncated File Read",
        "image '/grey.png' cannot be explained: error: unpack requires a buffer of 2 bytes",
    ]


@pytest.mark.parametrize("bias", [-40.0, 40.0])
def test_one_label_is_explained_by_what_is_predicted(salvage_model, save_processor, tmp_path, monkeypatch, bias):
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
    left, top, right, bottom = picture_geometry(processor, width, height).box
    columns, rows = seen[0].mean(dim=0) * width, seen[1].mean(dim=1) * height  # original coordinates of pixel centres
    step_x, step_y = (right - left) / len(columns), (bottom - top) / len(rows)
    # Apart from the border, where resampling mirrors the picture, and to one pixel of the picture or of its crop.
    for index in (4, len(columns) // 2, len(columns) - 5):
        assert abs(columns[index] - (left + (index + 0.5) * step_x)) <= max(1.0, step_x)
        assert abs(rows[index] - (top + (index + 0.5) * step_y)) <= max(1.0, step_y)


def test_a_model_of_one_channel_sees_grey_pictures(salvage_model, save_processor, picture_folder, tmp_path):
    model = salvage_model()
    config = model.config
    config.backbone_config.num_channels = 1
    type(model)(config).save_pretrained(tmp_path / "model")
    save_processor(tmp_path / "model", image_mean=[0.5], image_std=[0.25])
    written, failed = explain_files(
        [str(picture_folder / "wide.png")], str(tmp_path / "model"), str(tmp_path / "a.png")
    )
    assert (len(written), failed) == (1, [])


def test_memory_and_time_are_bounded_by_what_is_drawn(model_folder, tmp_path):
    for name, size in (("small", (40, 30)), ("large", (4000, 3000))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    explain_files([str(tmp_path / "small.png")], str(model_folder), str(tmp_path / "out.png"))
    with peak_memory() as peak:
        written, _ = explain_files([str(tmp_path / "large.png")], str(model_folder), str(tmp_path / "out.png"))
    assert Image.open(written[0]).size < (1500, 500)
    assert peak.megabytes < 16 * 12 + 60  # bytes per pixel of the original; it used to be 100


def test_what_is_drawn_has_the_place_of_what_the_model_sees(model_folder, monkeypatch):
    """A large picture is drawn smaller, and the map's place in it with it."""
    model, processor = AutoModel.from_pretrained(model_folder), AutoImageProcessor.from_pretrained(model_folder)
    drawn = []
    monkeypatch.setattr(
        explain, "overlay", lambda picture, values, geometry, _: drawn.append((picture, geometry)) or picture
    )
    explanation(Image.new("RGB", (3 * explain.DRAWN_PIXELS, explain.DRAWN_PIXELS)), model, processor)
    picture, geometry = drawn[0]
    assert picture.size == (explain.DRAWN_PIXELS, explain.DRAWN_PIXELS // 3)
    wanted = np.array(picture_geometry(processor, 3 * explain.DRAWN_PIXELS, explain.DRAWN_PIXELS)) / 3
    np.testing.assert_allclose(geometry, wanted)


# Models that are refused


def break_weights(model, folder):
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] = float("nan")
    model.save_pretrained(folder)


def leave_out_head(model, folder):
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    model.save_pretrained(folder, state_dict=weights)


BROKEN = {
    "NaN weights": (break_weights, {}, "has weights that are NaN or infinite"),
    "no head": (leave_out_head, {}, "weights of a SalvageModel"),
    "no config": (lambda model, folder: (folder / "config.json").unlink(), {}, "the config of "),
    "no weights": (lambda model, folder: (folder / "model.safetensors").unlink(), {}, "the model of "),
    "damaged weights": (
        lambda model, folder: (folder / "model.safetensors").write_bytes(b"\x00" * 100),
        {},
        "the model of ",
    ),
    "no processor": (
        lambda model, folder: (folder / "preprocessor_config.json").unlink(),
        {},
        "the image processor of ",
    ),
    "std 0": (None, {"image_std": [0.0, 1.0, 1.0]}, "pixel values that are NaN or infinite: check its image_std"),
    "rescale inf": (None, {"rescale_factor": 1e39}, "pixel values that are NaN or infinite: check its image_std"),
    "mean of two": (None, {"image_mean": [0.5, 0.5]}, "the image processor BitImageProcessor"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_refused_before_the_first_picture(
    salvage_model, save_processor, model_folder, picture_folder, tmp_path, case, capsys
):
    damage, processor, message = BROKEN[case]
    save_processor(model_folder, **processor)
    if damage:
        damage(salvage_model(), model_folder)
    out = tmp_path / "out.png"
    with pytest.raises(SystemExit) as end:
        main(["explain", str(picture_folder / "wide.png"), "--model", str(model_folder), "--output", str(out)])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not out.exists()


@pytest.mark.parametrize("name", ["nobody/nothing", "a b/c/d"])
def test_a_model_that_does_not_exist_is_named(picture_folder, tmp_path, name):
    with pytest.raises(ValueError, match=f"the config of '{name}' cannot be loaded: OSError: "):
        explain_files([str(picture_folder / "wide.png")], name, str(tmp_path / "out.png"))


def test_a_plain_classifier_is_no_explainer(tiny_classifier, save_processor, picture_folder, tmp_path):
    tiny_classifier().save_pretrained(tmp_path / "classifier")
    save_processor(tmp_path / "classifier")
    with pytest.raises(ValueError, match="is of the type 'dinov2'; needed is a Salvage explainer"):
        explain_files([str(picture_folder / "wide.png")], str(tmp_path / "classifier"), str(tmp_path / "out.png"))


@pytest.mark.parametrize("part", ["logits", "attributions"])
def test_answers_that_are_not_finite_are_not_drawn(model_folder, picture_folder, tmp_path, part, monkeypatch):
    model_class = type(AutoModel.from_pretrained(model_folder))
    forward = model_class.forward

    def infinite(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output[part][0, 0] = float("inf")
        return output

    monkeypatch.setattr(model_class, "forward", infinite)
    out = tmp_path / "out.png"
    written, failed = explain_files([str(picture_folder / "wide.png")], str(model_folder), str(out))
    assert written == []
    assert "cannot be explained: the model answers with values that are NaN or infinite" in failed[0]
    assert not out.exists()


def test_titles_hold_the_explainers_own_probabilities(model_folder, picture_folder):
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


def test_images_of_more_than_8_bits_need_their_range(model_folder, tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (40, 30))
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    out = tmp_path / "out.png"
    written, failed = explain_files([str(tmp_path / "deep.png")], str(model_folder), str(out))
    assert written == []
    assert "pixel_range (LOW HIGH)" in failed[0]
    arguments = ["--model", str(model_folder), "--output", str(out), "--pixel_range", "0", "4095"]
    assert main(["explain", str(tmp_path / "deep.png"), *arguments]) == 0
    Image.fromarray((values * 255 / 4095).round().astype(np.uint8)).save(tmp_path / "plain.png")
    explain_files([str(tmp_path / "plain.png")], str(model_folder), str(tmp_path / "plain_out.png"))
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(tmp_path / "plain_out.png")))
    with pytest.raises(ValueError, match="pixel_range must be two numbers, the smaller one first"):
        explain_files([str(tmp_path / "deep.png")], str(model_folder), str(out), pixel_range=(5, 1))


# With a budget


@pytest.fixture
def refined(salvage_model, tiny_classifier, save_processor, tmp_path, monkeypatch):
    """The folders of an explainer and of its classifier, and the maps that are drawn."""
    classifier = tmp_path / "classifier"
    tiny_classifier().save_pretrained(classifier)
    save_processor(classifier, 16)
    folder = tmp_path / "explainer"
    salvage_model().save_pretrained(folder)
    save_processor(folder, 16)
    drawn: list[np.ndarray] = []
    overlay = explain.overlay

    def kept(picture, values, *rest):
        drawn.append(values)
        return overlay(picture, values, *rest)

    monkeypatch.setattr(explain, "overlay", kept)
    return str(folder), str(classifier), drawn


def test_a_budget_draws_the_refined_maps(refined, picture_folder, tmp_path):
    folder, classifier, drawn = refined
    picture, out = picture_folder / "wide.png", tmp_path / "refined.png"
    words = ["explain", str(picture), "--model", folder, "--output", str(out), "--top", "2"]
    assert main([*words, "--classifier", classifier, "--budget", "32"]) == 0
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    pixel_values = processor(Image.open(picture).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model.eval()(pixel_values)
    v = MaskedClassifier.from_pretrained(classifier)
    for place, target in enumerate(output.logits[0].topk(2).indices):
        expected = refine(v, output.attributions[..., target], pixel_values, target[None], 32).attributions[0]
        np.testing.assert_allclose(drawn[place].flatten(), expected.numpy(), rtol=1e-4, atol=1e-6)


def test_patches_are_hidden_as_when_the_explainer_was_trained(refined, picture_folder, tmp_path):
    folder, classifier, drawn = refined
    explainer = AutoModel.from_pretrained(folder)
    v = MaskedClassifier.from_pretrained(classifier, masking="zero")
    explainer.config.explained_classifier = provenance(v)
    explainer.save_pretrained(folder)
    picture = picture_folder / "wide.png"
    explain_files([str(picture)], folder, str(tmp_path / "a.png"), 1, classifier_name=classifier, budget=32)
    pixel_values = v.processor(Image.open(picture).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = explainer.eval()(pixel_values)
    target = output.logits.argmax(-1)
    expected = refine(v, output.attributions[..., target.item()], pixel_values, target, 32).attributions[0]
    np.testing.assert_allclose(drawn[0].flatten(), expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--budget 32", "are given together, got budget=32 and classifier=None"),
        ("--classifier {classifier}", "are given together, got budget=0"),
        ("--budget 8 --classifier {classifier}", "budget must be 0 or at least 16, got 8"),
        ("--budget 32 --classifier nowhere", "nowhere"),
    ],
)
def test_budgets_that_cannot_be_spent_are_refused(refined, picture_folder, words, message, capsys):
    folder, classifier, _ = refined
    words = words.format(classifier=classifier).split()
    with pytest.raises(SystemExit) as end:
        main(["explain", str(picture_folder / "wide.png"), "--model", folder, *words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
