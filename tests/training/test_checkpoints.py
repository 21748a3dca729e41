"""Runs that were stopped, killed or out of disk space continue; unsuitable checkpoints are refused."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from tiny_runs import assert_same_run, forget_accelerators

from salvage_hf import SalvageModel
from salvage_hf.training.checkpoints import checkpoint_to_resume, checkpoints, clean_up, load_checkpoint
from salvage_hf.training.explainer import ExplainerTask, train_explainer

#: What a checkpoint of an explainer knows of what it was made with, in addition to the arguments.
MADE_WITH = ("classifier_content", "processor_content", "training_images", "validation_images")


class Killed(Exception):
    pass


def killed_at(batch, args):
    """Trains until batch number `batch`, and is killed there."""

    class KilledTask(ExplainerTask):
        def loss(self, model, inputs, step):
            if step == batch:
                raise Killed
            return super().loss(model, inputs, step)

    with pytest.raises(Killed):
        train_explainer(args, task=KilledTask)
    forget_accelerators()


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        # after step 4, in the middle of the second epoch; after step 6, between two epochs
        ({}, [4, 7]),
        # three batches and two steps per epoch, so that the second step of an epoch has a single batch
        (
            {"gradient_accumulation_steps": 2, "checkpointing_steps": 1, "max_train_steps": 5, "freeze_backbone": True},
            [5],
        ),
        ({"new_subsets": 1, "max_train_steps": 11, "num_views": 2, "freeze_backbone": True}, [5, 10]),
    ],
    ids=["epochs", "accumulation", "views"],
)
def test_a_stopped_run_continues_bit_for_bit(arguments, straight, tmp_path, changes, stops):
    whole = straight
    if changes:
        whole = tmp_path / "whole"
        train_explainer(arguments(output_dir=whole, **changes))
    resume = None
    for stop in stops:
        killed_at(stop, arguments(resume_from_checkpoint=resume, **changes))
        resume = "latest"
    train_explainer(arguments(resume_from_checkpoint="latest", **changes))
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_while_it_writes_continues_from_the_checkpoint_before(arguments, straight, tmp_path):
    """SIGKILL in the middle of writing step_6: no handler runs, and step_4 is the last complete checkpoint."""

    def run():
        save_state = Accelerator.save_state

        def save_half(self, folder):
            save_state(self, folder)
            if "step_6" in str(folder):
                weights = Path(folder) / "model.safetensors"
                weights.write_bytes(weights.read_bytes()[:100])
                os.kill(os.getpid(), signal.SIGKILL)

        Accelerator.save_state = save_half
        train_explainer(arguments())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(timeout=600)
    process.kill()
    assert process.exitcode == -signal.SIGKILL
    left = tmp_path / "run"
    assert (left / "step_6.partial" / "model.safetensors").stat().st_size == 100
    assert [folder.name for folder in checkpoints(left)] == ["step_2", "step_4"]
    train_explainer(arguments(resume_from_checkpoint="latest"))
    assert_same_run(left, straight)
    assert not list(left.glob("*.partial"))


def test_a_finished_run_resumes_to_its_results(arguments, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    (tmp_path / "run" / "all_results.json").unlink()
    train_explainer(arguments(resume_from_checkpoint="latest"))
    assert_same_run(tmp_path / "run", straight)


def test_a_full_disk_leaves_earlier_checkpoints_and_models_intact(arguments, monkeypatch, tmp_path):
    save_state, folder = Accelerator.save_state, tmp_path / "run"

    def full_disk(self, path):
        save_state(self, path)
        if "step_4" in str(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", full_disk)
    with pytest.raises(RuntimeError, match=r"step_4' could not be written \(.*No space left.*earlier ones are intact"):
        train_explainer(arguments(validation_steps=1))
    assert [path.name for path in checkpoints(folder)] == ["step_2"]
    assert not list(folder.glob("*.partial"))

    best = (folder / "model.safetensors").read_bytes()

    def no_room(self, path, **kwargs):
        Path(path).mkdir(exist_ok=True)
        (Path(path) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SalvageModel, "save_pretrained", no_room)
    forget_accelerators()
    with pytest.raises(RuntimeError, match=r"best model of step 1 could not be written \(.*No space left"):
        train_explainer(arguments(validation_steps=1))
    assert (folder / "model.safetensors").read_bytes() == best
    assert not list(folder.glob("*.partial"))


def test_checkpointing_steps_epoch_and_the_limit(arguments, tmp_path):
    args = arguments(checkpointing_steps="epoch", checkpoints_total_limit=3, max_train_steps=None, num_train_epochs=2)
    assert train_explainer(args)["history"][-1]["step"] == 6
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step_3", "step_6"]


def test_the_newest_checkpoint_is_the_last_written_not_the_highest(tmp_path):
    """In the folder of an earlier, longer run, a new run must neither lose its checkpoints nor resume the other's."""
    now = time.time()
    for name, written in (("step_100", now - 50), ("step_200", now - 40), ("step_9", now), ("step_10", now + 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(json.dumps({"time": written}))
    (tmp_path / "step_11.partial").mkdir()
    (tmp_path / "step_1").mkdir()  # without its record progress.json
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_1", "step_100", "step_200", "step_9", "step_10"]


class Loaded(BaseException):
    """No Exception, because those of `load_state` become a ValueError."""


def resume(args, num_processes=1, **others):
    """Raises Loaded where the checkpoint is taken, without loading it; others: with what else the run is made."""
    folder = checkpoint_to_resume(args)
    try:
        before = json.loads((folder / "progress.json").read_text())["arguments"]
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    made_with = {name: others.get(name, before.get(name)) for name in MADE_WITH}

    def load_state(folder):
        raise Loaded

    accelerator = SimpleNamespace(num_processes=num_processes, load_state=load_state)
    return load_checkpoint(folder, args, accelerator, made_with)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "progress.json").unlink(), "is not complete: it has no progress.json"),
        (lambda folder: cut(folder / "progress.json"), "is not complete: progress.json is cut short or damaged"),
        (lambda folder: (folder / "progress.json").write_text("[]"), "progress.json is cut short or damaged"),
        (lambda folder: (folder / "progress.json").write_bytes(b"\xff{"), "progress.json is cut short or damaged"),
        (lambda folder: (folder / "progress.json").write_text("{}"), "progress.json lacks arguments, best, files"),
        (lambda folder: cut(folder / "optimizer.bin"), "is not complete: optimizer.bin is missing or cut short"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing or cut short"),
    ],
    ids=["no record", "half a record", "no dict", "no text", "empty record", "half a file", "no file"],
)
def test_half_a_checkpoint_is_refused(arguments, straight, tmp_path, damage, message):
    shutil.copytree(straight / "step_8", tmp_path / "run" / "step_8")
    damage(tmp_path / "run" / "step_8")
    with pytest.raises(ValueError, match=message) as error:
        resume(arguments(resume_from_checkpoint="latest"))
    assert "step_8" in str(error.value)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 4}, "'seed': (3, 4)"),
        ({"per_device_train_batch_size": 2}, "'per_device_train_batch_size': (4, 2)"),
        ({"gradient_accumulation_steps": 2}, "'gradient_accumulation_steps': (1, 2)"),
        ({"new_subsets": 2}, "'new_subsets': (4, 2)"),
        ({"learning_rate": 0.1}, "'learning_rate': (0.01, 0.1)"),
        ({"freeze_backbone": True}, "'freeze_backbone': (False, True)"),
        ({"guidance_exponent": 1.0}, "'guidance_exponent': (4.0, 1.0)"),
        ({"train_dir": "elsewhere"}, "'train_dir': ("),
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else "",
)
def test_other_arguments_are_refused_by_name(arguments, straight, changes, told):
    with pytest.raises(ValueError, match=r"written with other arguments or contents \(before, now\)") as error:
        resume(arguments(resume_from_checkpoint=str(straight / "step_8"), **changes))
    assert told in str(error.value)


def test_what_a_resumed_run_may_change(arguments, straight):
    """How often to look changes nothing."""
    args = arguments(
        resume_from_checkpoint=str(straight / "step_8"),
        max_train_steps=20,
        validation_steps=7,
        checkpointing_steps=5,
        hub_token="secret",
    )
    with pytest.raises(Loaded):
        resume(args)
    with pytest.raises(ValueError, match=r"'num_processes': \(1, 2\)"):
        resume(args, num_processes=2)
    assert "hub_token" not in (straight / "step_8" / "progress.json").read_text()


@pytest.mark.parametrize("name", MADE_WITH)
def test_other_contents_are_refused_by_name(arguments, straight, name):
    with pytest.raises(ValueError, match=rf"other arguments or contents \(before, now\): .*'{name}': \(.*, 'other'\)"):
        resume(arguments(resume_from_checkpoint=str(straight / "step_8")), **{name: "other"})


def test_a_record_with_an_argument_of_another_version_is_refused(arguments, straight, tmp_path):
    shutil.copytree(straight / "step_8", tmp_path / "step_8")
    record = tmp_path / "step_8" / "progress.json"
    progress = json.loads(record.read_text())
    progress["arguments"]["num_subsets"] = 8
    record.write_text(json.dumps(progress))
    with pytest.raises(ValueError, match=r"'num_subsets': \(8, None\)"):
        resume(arguments(resume_from_checkpoint=str(tmp_path / "step_8")))


def test_a_run_resumed_elsewhere_writes_a_best_model_there(arguments, straight, tmp_path):
    there = {"output_dir": tmp_path / "there", "resume_from_checkpoint": str(straight / "step_6")}
    results = train_explainer(arguments(**there))
    assert results["step"] == 8
    assert (tmp_path / "there" / "model.safetensors").is_file()
    forget_accelerators()
    with pytest.raises(ValueError, match="the checkpoint is of step 6, after the last one, 4"):
        train_explainer(arguments(**there, max_train_steps=4))


def test_clean_up_finishes_what_is_complete_and_removes_the_rest(tmp_path):
    """A best model, and a checkpoint that has its record, were killed before the last renaming."""

    def write(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)

    write("best.partial/model.safetensors", "best.partial/.complete", "step_6.partial/progress.json")
    write("step_6/progress.json", "step_8.partial/model.safetensors")
    write("step_2.old.partial/progress.json", "last.partial/config.json", "last.old.partial/config.json")
    write("mine.partial", "step_old.partial.txt")
    clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("mine.partial", "model.safetensors", "step_6", "step_old.partial.txt")
    ]
    assert (tmp_path / "model.safetensors").read_text() == "best.partial/model.safetensors"
    assert (tmp_path / "step_6" / "progress.json").read_text() == "step_6.partial/progress.json"

    write("best.partial/model.safetensors")  # half a model
    clean_up(tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "best.partial/model.safetensors"
    assert not (tmp_path / "best.partial").exists()


def test_latest_begins_anew_where_there_is_no_checkpoint(arguments, straight, caplog, tmp_path):
    """So that a supervisor can start a run, and start it again after a kill, by one command."""
    train_explainer(arguments(resume_from_checkpoint="latest"))
    assert "has no checkpoint step_N yet, so the run begins anew" in caplog.text
    assert_same_run(tmp_path / "run", straight)
    with pytest.raises(ValueError, match=r"checkpoint '.*step_100' is not complete: it has no progress.json"):
        train_explainer(arguments(resume_from_checkpoint=str(tmp_path / "run" / "step_100")))
