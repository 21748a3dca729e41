"""`salvage explain`: what it reads and writes, what it refuses, and the geometry of its pictures."""

import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from browser import assert_fits, chromium, open_file
from data.memory import peak_memory
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from salvage_hf import explain
from salvage_hf.cli import main
from salvage_hf.data.marks import MARK
from salvage_hf.evaluation import plots
from salvage_hf.explain import ExplainArguments, explain_files
from salvage_hf.explanation import FORMATS
from salvage_hf.modeling import picture_geometry


def explained(inputs, model, output, **options):
    """What `salvage explain` does with these arguments."""
    return explain_files(inputs, ExplainArguments(model=model, output=output, **options))


@pytest.fixture
def model_folder(salvage_model, save_processor, tmp_path):
    folder = tmp_path / "model"
    salvage_model().save_pretrained(folder)
    save_processor(folder, 16)
    return folder


@pytest.fixture
def classifier_folder(tiny_classifier, save_processor, tmp_path):
    folder = tmp_path / "classifier"
    tiny_classifier().save_pretrained(folder)
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


class Quick:
    """Stands for an explainer and for what it makes of an image, for tests of files."""

    def __init__(self, *args, **options):
        self.figure = plots.picture_grid([[("image", Image.new("RGB", (8, 8)))]])

    def targets(self, classes):
        return None

    def prepare(self, picture):
        return picture

    def explain(self, batch, targets, top):
        return [self] * len(batch)

    def content(self, kind):
        return MARK.encode() if kind in ("json", "npz") else plots.file_content(self.figure, kind)


@pytest.fixture
def quick(monkeypatch):
    """Leaves out the model."""
    monkeypatch.setattr(explain, "Explainer", Quick)


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
    written, failed = explained([str(picture_folder / "wide.png")], str(model_folder), str(target), top=2)
    assert written == [target]
    assert failed == []


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["nowhere.png"], "out", "'nowhere.png' does not exist"),
        ([""], "out", "an input is an empty text"),
        (["pipe"], "out", "'pipe' is neither a file nor a folder"),
        (["."], "out.png", "is one file, but there are 4 images"),
        (["empty"], "out", "no images in empty"),
        (["wide.png"], "./wide.png", "is the image itself"),
        (["wide.png"], "linked.png", "is the image itself"),
        (["wide.png"], "", "output must not be empty"),
        (["wide.png"], "out.bmp", "ends in '.bmp'; a file ends in one of png, jpg, jpeg, webp, pdf, svg, npz, json"),
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


# What is read


def test_a_second_call_does_not_explain_the_pictures_of_the_first(quick, picture_folder):
    def files():
        return sorted(str(path.relative_to(picture_folder)) for path in picture_folder.rglob("[!.]*.*"))

    first, _ = explained([str(picture_folder)], "model", str(picture_folder / "maps"))
    one, _ = explained([str(picture_folder / "grey.png")], "model", str(picture_folder / "one.jpg"))
    there = files()
    again, failed = explained([str(picture_folder)], "model", str(picture_folder / "maps"))
    assert again == first
    assert len(failed) == 1  # broken.jpg
    assert files() == there
    with pytest.raises(ValueError, match="no images in"):
        explained([str(one[0])], "model", str(picture_folder / "maps"))


def test_only_images_of_a_folder_are_read_and_each_once(quick, picture_folder, tmp_path, caplog):
    (picture_folder / "notes.txt").write_text("no image")
    (picture_folder / ".hidden.png").write_text("no image")
    (picture_folder / "no_suffix").write_bytes((picture_folder / "wide.png").read_bytes())
    (picture_folder / "more" / "round").symlink_to(picture_folder)
    (picture_folder / "more" / "itself.png").symlink_to("itself.png")
    os.mkfifo(picture_folder / "pipe.png")
    inputs = [str(picture_folder), str(picture_folder / "wide.png")]
    written, failed = explained(inputs, "model", str(tmp_path / "out"))
    assert sorted(path.name for path in written) == ["grey.png", "no_suffix.png", "wide.png", "wide_2.png"]
    assert len(failed) == 1
    for name in ("notes.txt (no image by its name)", "round (a link", "itself.png (a link", "pipe.png (neither"):
        assert name in caplog.text


# What is written


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_suffix_says_the_format(quick, picture_folder, tmp_path, suffix):
    target = tmp_path / "new" / f"map.{suffix.upper()}"
    explained([str(picture_folder / "wide.png")], "model", str(target))
    start = {"png": b"\x89PNG", "webp": b"RIFF", "pdf": b"%PDF", "svg": b"<?xml", "npz": MARK.encode()}
    start["json"] = start["npz"]
    assert target.read_bytes().startswith(start.get(suffix, b"\xff\xd8\xff"))


def test_free_names_are_found_at_once(tmp_path):
    """The time for 4,000 images of one name used to grow with the square of their number."""
    (tmp_path / "photo_3.png").write_text("of other origin")
    (tmp_path / "Other.PNG").write_text("of other origin")
    files = [tmp_path / str(number) / "photo.jpg" for number in range(4000)]
    targets = explain._targets([*files, tmp_path / "other.jpg"], tmp_path, "png")
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
        "removed at the end": "3 of 3 files are gone since they were written",
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
            explained([str(picture_folder)], "model", str(tmp_path))
        other.communicate(b"\n")
    explained([str(picture_folder)], "model", str(tmp_path))
    assert list(tmp_path.glob("*.partial")) == []


def test_originals_are_not_overwritten(model_folder, picture_folder):
    before = {path: path.read_bytes() for path in picture_folder.rglob("*") if path.is_file()}
    written, _ = explained([str(picture_folder)], str(model_folder), str(picture_folder))
    assert len(written) == 3
    assert not set(written) & set(before)
    assert all(path.read_bytes() == content for path, content in before.items())


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
    written, failed = explained([str(picture_folder / "wide.png")], str(tmp_path / "model"), str(tmp_path / "a.png"))
    assert (len(written), failed) == (1, [])


def test_memory_and_time_are_bounded_by_what_is_drawn(model_folder, tmp_path):
    for name, size in (("small", (40, 30)), ("large", (4000, 3000))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    explained([str(tmp_path / "small.png")], str(model_folder), str(tmp_path / "out.png"))
    with peak_memory() as peak:
        written, _ = explained([str(tmp_path / "large.png")], str(model_folder), str(tmp_path / "out.png"))
    assert Image.open(written[0]).size < (1500, 500)
    assert peak.megabytes < 16 * 12 + 60  # bytes per pixel of the original; it used to be 100


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


@pytest.mark.parametrize(("name", "reason"), [("nobody/nothing", "OSError: "), ("a b/c/d", "there is no such folder")])
def test_a_model_that_does_not_exist_is_named(picture_folder, tmp_path, name, reason):
    with pytest.raises(ValueError, match=f"the config of '{name}' cannot be loaded: {reason}"):
        explained([str(picture_folder / "wide.png")], name, str(tmp_path / "out.png"))


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
    written, failed = explained([str(picture_folder / "wide.png")], str(model_folder), str(out))
    assert written == []
    assert "that are NaN or infinite" in failed[0]
    assert not out.exists()


def test_images_of_more_than_8_bits_need_their_range(model_folder, tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (40, 30))
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    out = tmp_path / "out.png"
    written, failed = explained([str(tmp_path / "deep.png")], str(model_folder), str(out))
    assert written == []
    assert "pixel_range (LOW HIGH)" in failed[0]
    arguments = ["--model", str(model_folder), "--output", str(out), "--pixel_range", "0", "4095"]
    assert main(["explain", str(tmp_path / "deep.png"), *arguments]) == 0
    Image.fromarray((values * 255 / 4095).round().astype(np.uint8)).save(tmp_path / "plain.png")
    explained([str(tmp_path / "plain.png")], str(model_folder), str(tmp_path / "plain_out.png"))
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(tmp_path / "plain_out.png")))
    with pytest.raises(ValueError, match="pixel_range must be two numbers, the smaller one first"):
        explained([str(tmp_path / "deep.png")], str(model_folder), str(out), pixel_range=[5, 1])


# With a budget


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--budget 32", "method='salvage' with budget=32 asks the classifier: classifier is needed"),
        ("--budget 8 --classifier {classifier}", "budget must be 0 or at least 16, got 8"),
        ("--budget 32 --classifier nowhere", "nowhere"),
    ],
)
def test_budgets_that_cannot_be_spent_are_refused(
    model_folder, classifier_folder, picture_folder, words, message, capsys
):
    words = words.format(classifier=classifier_folder).split()
    with pytest.raises(SystemExit) as end:
        main(["explain", str(picture_folder / "wide.png"), "--model", str(model_folder), *words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


# Batches, formats, the page


@pytest.mark.parametrize("failing", ["processor", "model"])
def test_an_image_that_fails_within_a_batch_does_not_stop_the_others(
    model_folder, picture_folder, tmp_path, failing, monkeypatch
):
    """The grey picture fails; what is made of the others is what is made without it."""
    (picture_folder / "broken.jpg").unlink()
    alone, _ = explained([str(picture_folder / "wide.png")], str(model_folder), str(tmp_path / "alone.json"))
    prepare, explain_batch = explain.Explainer.prepare, explain.Explainer.explain

    def prepared(self, image, *rest):
        if failing == "processor" and getattr(image, "size", None) == (20, 30):
            raise struct.error("unpack requires a buffer of 2 bytes")
        return prepare(self, image, *rest)

    def made(self, batch, *rest):
        if failing == "model" and any(image.image_size == (20, 30) for image in batch):
            raise struct.error("unpack requires a buffer of 2 bytes")
        return explain_batch(self, batch, *rest)

    monkeypatch.setattr(explain.Explainer, "prepare", prepared)
    monkeypatch.setattr(explain.Explainer, "explain", made)
    written, failed = explained([str(picture_folder)], str(model_folder), str(tmp_path / "out"), format="json")
    assert sorted(path.name for path in written) == ["wide.json", "wide_2.json"]
    grey = picture_folder / "grey.png"
    assert failed == [f"image '{grey}' cannot be explained: error: unpack requires a buffer of 2 bytes"]
    there = {tuple(json.loads(path.read_text())["image_size"]): json.loads(path.read_text()) for path in written}
    expected = json.loads(alone[0].read_text())
    np.testing.assert_allclose(there[40, 20]["attributions"], expected["attributions"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_batch_size_changes_no_number(model_folder, classifier_folder, picture_folder, tmp_path, batch_size):
    words = ["explain", str(picture_folder), "--model", str(model_folder), "--classifier", str(classifier_folder)]
    words += ["--format", "json", "--budget", "32"]
    for folder, size in (("all", 8), ("few", batch_size)):
        assert main([*words, "--output", str(tmp_path / folder), "--batch_size", str(size)]) == 1  # broken.jpg
    for path in sorted((tmp_path / "all").glob("*.json")):
        one, other = (json.loads((tmp_path / folder / path.name).read_text()) for folder in ("all", "few"))
        for name in ("attributions", "classifier_probabilities", "explainer_probabilities", "effects"):
            np.testing.assert_allclose(one.pop(name), other.pop(name), rtol=1e-4, atol=1e-6)
        one.pop("stderr"), other.pop("stderr")
        assert one == other


def test_classes_and_method_of_the_command_line(classifier_folder, picture_folder, tmp_path):
    words = ["explain", str(picture_folder / "wide.png"), "--model", str(classifier_folder)]
    words += ["--classes", "LABEL_2", "0", "--method", "rise", "--budget", "20"]
    assert main([*words, "--output", str(tmp_path / "a.json")]) == 0
    stated = json.loads((tmp_path / "a.json").read_text())
    assert (stated["classes"], stated["method"], stated["budget"]) == ([2, 0], "rise", 20)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_of_any_format_is_known_again(classifier_folder, picture_folder, tmp_path, kind):
    for name in ("broken.jpg", "wide.png"):
        (picture_folder / name).unlink()
    out = str(picture_folder / "out")
    first, failed = explained([str(picture_folder)], str(classifier_folder), out, format=kind, top=1)
    assert failed == []
    again, failed = explained([str(picture_folder)], str(classifier_folder), out, format=kind, top=1)
    assert (again, failed) == (first, [])


def test_the_page_holds_all_pictures_and_what_the_models_say(model_folder, classifier_folder, picture_folder, tmp_path):
    words = ["explain", str(picture_folder), "--model", str(model_folder), "--classifier", str(classifier_folder)]
    report = tmp_path / "new" / "page.html"
    assert main([*words, "--output", str(tmp_path / "out"), "--format", "json", "--report", str(report)]) == 1
    page = report.read_text()
    for path in (tmp_path / "out").glob("*.json"):
        stated = json.loads(path.read_text())
        for model in ("classifier", "explainer"):
            share = max(stated[f"{model}_probabilities"])
            best = stated["label_names"][stated[f"{model}_probabilities"].index(share)]
            assert f"{model.capitalize()}: {best} {100 * share:.1f}%" in page
    assert page.count("<section>") == 4  # three pictures, and what was not explained
    assert "broken.jpg" in page
    assert "width=device-width" in page
    assert "http" not in page.replace("https://www.w3.org", "")  # nothing is fetched
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(pictures) >= 6
    for data in pictures:
        Image.open(BytesIO(base64.b64decode(data))).load()


def test_the_page_fits_into_windows(model_folder, picture_folder, tmp_path):
    with chromium() as browser:
        words = ["explain", str(picture_folder), "--model", str(model_folder), "--output", str(tmp_path / "out")]
        main([*words, "--report", str(tmp_path / "page.html")])
        for width in (390, 1280):
            assert_fits(open_file(browser, tmp_path / "page.html", width))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--report page.pdf", "report must be a file whose name ends in .html, got 'page.pdf'"),
        ("--classes cat", "classes: 'cat' is no label; there are 3, from 0 on: LABEL_0, LABEL_1, LABEL_2"),
        ("--method vit_shapley", "method='vit_shapley' needs an explainer of the objective 'vit_shapley'"),
        ("--device warp", "device must be one of this machine, got 'warp'"),
        ("--pixel_range 5", "pixel_range must be two numbers, the smaller one first, got [5.0]"),
        ("--batch_size 0", "batch_size must be at least 1, got 0"),
        ("--format gif", "invalid choice: 'gif'"),
        ("--classifier classifier", "classifier is what an explainer explains"),
    ],
)
def test_what_does_not_suit_a_classifier_is_one_line(classifier_folder, picture_folder, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["explain", str(picture_folder / "wide.png"), "--model", str(classifier_folder), *words.split()])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
