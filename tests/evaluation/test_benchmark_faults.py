"""Kills, full disks and two writers: a benchmark loses nothing, and no file of it is ever half-written."""

import functools
import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from faults import states_of_kills, watched
from forked import Forked, fill_disk
from PIL import Image
from safetensors.torch import load_file

from salvage_hf import MaskedClassifier
from salvage_hf.evaluation import loading, plots, scoring
from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.benchmark import run_benchmark
from salvage_hf.evaluation.reading import read_benchmark
from salvage_hf.evaluation.report_sections import benchmark_sections
from salvage_hf.modeling import SalvageModel

LONG = bool(os.environ.get("SALVAGE_LONG_TESTS"))


@pytest.fixture
def run(tiny_classifier, save_processor, tmp_path, monkeypatch):
    """A function: a benchmark of 5 images in two batches into a folder. Models and images are loaded once per test."""
    for owner, name in (
        (MaskedClassifier, "from_pretrained"),
        (loading, "load_model"),
        (loading, "load_images"),
    ):
        monkeypatch.setattr(owner, name, functools.cache(getattr(owner, name)))
    for name in ("picture_grid", "curves", "matrices"):  # drawing takes seconds
        monkeypatch.setattr(plots, name, lambda *args, **options: object())
    classifier = tiny_classifier("dinov2_with_registers", num_hidden_layers=1, image_size=8)  # four patches
    classifier.save_pretrained(tmp_path / "classifier")
    save_processor(tmp_path / "classifier", image_size=8)
    for name, seed in (("explainer", 0), ("retrained", 1)):
        torch.manual_seed(seed)
        explainer = SalvageModel.from_classifier(classifier)
        torch.nn.init.normal_(explainer.head.class_projection.weight)
        explainer.save_pretrained(tmp_path / name)
    rng = np.random.default_rng(0)
    for label in range(3):
        (tmp_path / "images" / f"LABEL_{label}").mkdir(parents=True)
        for number in range(2):
            picture = Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
            picture.save(tmp_path / "images" / f"LABEL_{label}" / f"{number}.png")

    def call(folder, methods=("salvage", "random"), explainer="explainer"):
        return run_benchmark(
            BenchmarkArguments(
                model_name_or_path=str(tmp_path / "classifier"),
                explainers=[f"salvage={tmp_path / explainer}"] if "salvage" in methods else [],
                methods=list(methods),
                validation_dir=str(tmp_path / "images"),
                max_eval_samples=5,
                budget=5,
                per_device_eval_batch_size=3,
                output_dir=str(folder),
            )
        )

    return call


def content_of(folder):
    """What the files of a benchmark hold, apart from times, what belongs to the lock, and the name of the folder."""
    content = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            content[name] = {key: values.tolist() for key, values in load_file(path).items() if key != "seconds"}
        elif path.suffix == ".json":
            content[name] = json.loads(path.read_text())
        else:
            content[name] = path.read_bytes().replace(os.fsencode(folder), b"FOLDER")
    for entry in content.get("results.json", {}).get("methods", {}).values():
        del entry["seconds"]
    return content


def whole_run(run, tmp_path):
    """What the files of an undisturbed run hold, and the changes that it makes to its folder."""
    changes = []
    with watched(tmp_path / "whole", lambda event, file: changes.append(event)):
        run(tmp_path / "whole")
    return content_of(tmp_path / "whole"), changes


def different(copies):
    """The copies of a folder that hold different files."""
    seen = {}
    for folder in copies:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        seen[tuple((str(path.relative_to(folder)), path.read_bytes()) for path in files)] = folder
    return list(seen.values())


def assert_shows_right_numbers(folder, *wholes):
    """Whatever a kill left: the report shows the numbers of whole runs, or says what is missing."""
    for name, entry in content_of(folder).get("results.json", {}).get("methods", {}).items():
        assert entry in [whole["results.json"]["methods"][name] for whole in wholes]
    try:
        benchmark_sections({"Tiny": read_benchmark(folder)})
    except ValueError as error:
        assert str(folder) in str(error)  # noqa: PT017  # a report is right too


def test_a_kill_at_any_moment_loses_nothing(run, tmp_path):
    copies = states_of_kills(lambda: run(tmp_path / "whole"), tmp_path / "whole", tmp_path / "states")
    assert len(copies) > 40
    whole = content_of(tmp_path / "whole")
    states = different(copy for copy in copies if copy.exists())
    assert len(states) > 25
    for folder in states:
        assert_shows_right_numbers(folder, whole)
        run(folder)
        assert content_of(folder) == whole


def test_a_kill_while_a_retrained_explainer_is_scored_leaves_no_mixture(run, tmp_path):
    run(tmp_path / "out")
    before = content_of(tmp_path / "out")
    again = functools.partial(run, explainer="retrained")
    copies = states_of_kills(lambda: again(tmp_path / "out"), tmp_path / "out", tmp_path / "states")
    after = content_of(tmp_path / "out")
    assert after["results.json"]["methods"]["salvage"] != before["results.json"]["methods"]["salvage"]
    states = different(copies)
    for folder in states if LONG else states[::3]:
        assert_shows_right_numbers(folder, before, after)
        again(folder)
        assert content_of(folder) == after


def at_change(number, action):
    """For `watched`: calls a function before change `number`, which is the first one for 0."""
    seen = []

    def before_change(event, file):
        seen.append(event)
        if len(seen) == number + 1:
            action()

    return before_change


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def run_watched(run, folder, before_change):
    with watched(folder, before_change):
        run(folder)


def test_a_full_disk_is_an_error_that_names_the_file_and_loses_nothing(run, tmp_path):
    whole, changes = whole_run(run, tmp_path)
    for number in range(0, len(changes), 1 if LONG else 9):
        folder = tmp_path / f"full_{number}"
        status, error = Forked(functools.partial(run_watched, run, folder, at_change(number, fill_disk))).result()
        if status != 0:
            assert f"{folder.name}/" in error
            assert "could not be written: " in error
        assert not list(folder.rglob("*.partial"))
        assert_shows_right_numbers(folder, whole)
        assert status == 1 or content_of(folder) == whole
        run(folder)
        assert content_of(folder) == whole


def test_a_folder_that_is_removed_meanwhile_is_an_error(run, tmp_path):
    whole, changes = whole_run(run, tmp_path)
    last = max(number for number, event in enumerate(changes) if event == "os.rename")  # then all is finished
    for number in range(7, last + 1, 1 if LONG else 9):
        folder = tmp_path / f"removed_{number}"
        try:
            run_watched(run, folder, at_change(number, functools.partial(shutil.rmtree, folder)))
        except (OSError, ValueError) as error:
            assert folder.name in str(error)  # noqa: PT017  # or the folder was made anew in time
        else:
            assert content_of(folder) == whole


def test_two_benchmarks_do_not_write_to_one_folder(run, tmp_path, monkeypatch):
    """The second says who writes there; nothing of the first is lost, and afterwards the second can join it."""
    folder, score_batch = tmp_path / "out", scoring.score_batch

    def waiting(*args):
        (tmp_path / "started").touch()
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return score_batch(*args)

    monkeypatch.setattr(scoring, "score_batch", waiting)
    first = Forked(lambda: run(folder, methods=["random"]) and None)
    while not (tmp_path / "started").exists():
        assert first.process.is_alive()
        time.sleep(0.01)
    who = rf"out' is being written by process {first.process.pid} on .* since .* \(salvage benchmark\)"
    with pytest.raises(ValueError, match=who):
        run(folder)
    (tmp_path / "go").touch()
    assert first.result()[0] == 0
    run(folder)
    run(tmp_path / "alone")
    entries = [content_of(path)["results.json"]["methods"] for path in (folder, tmp_path / "alone")]
    assert entries[0] == entries[1]


@pytest.mark.skipif(not LONG, reason="the long form of the test of kills; SALVAGE_LONG_TESTS=1 runs it")
def test_processes_that_are_killed_lose_nothing(run, tmp_path):
    """Real kills: before every change in turn, and at random moments until the benchmark is finished."""
    whole, changes = whole_run(run, tmp_path)
    for number in range(len(changes)):
        folder = tmp_path / f"killed_{number}"
        killed = Forked(lambda folder=folder, number=number: run_watched(run, folder, at_change(number, kill_myself)))
        assert killed.result()[0] == -signal.SIGKILL
        run(folder)
        assert content_of(folder) == whole
    kills, moments = 0, random.Random(0)
    for number in range(20):
        folder = tmp_path / f"random_{number}"
        for _ in range(8):
            killed = Forked(lambda folder=folder: run(folder) and None)
            if killed.result(timeout=moments.uniform(0, 0.5))[0] is None:
                killed.kill()
                kills += 1
        run(folder)
        assert content_of(folder) == whole
    print(f"{len(changes)} kills before a change, {kills} at random moments")
