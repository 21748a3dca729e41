"""Kills, full disks, two writers and processes that stop: a run goes on bit for bit, or says what is wrong.

With SALVAGE_LONG_TESTS=1, disks are full at every file event, and runs are killed at random moments too.
"""

import itertools
import os
import random
import signal
import socket
import sys
import time
from datetime import timedelta

import pytest
import safetensors.torch
import torch
from faults import states_of_kills, watched
from forked import Forked, fill_disk
from tiny_runs import assert_same_run, files_of, forget_accelerators, make_arguments

from salvage_hf.files import LOCK, LOCK_HOLDER, digest, locked, remove_leftovers
from salvage_hf.training import setup
from salvage_hf.training.checkpoints import checkpoints, clean_up
from salvage_hf.training.explainer import ExplainerTask, train_explainer

LONG_TESTS = os.environ.get("SALVAGE_LONG_TESTS") == "1"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def short_arguments(data):
    """A factory: arguments of a run of 4 steps, with a checkpoint at each of which two are kept, and 2 validations."""
    return lambda folder, **changes: make_arguments(
        data,
        folder,
        **{
            "max_train_steps": 4,
            "checkpointing_steps": 1,
            "validation_steps": 2,
            "new_subsets": 2,
            "per_device_eval_batch_size": 8,
            "freeze_backbone": True,
            "resume_from_checkpoint": "latest",
            **changes,
        },
    )


@pytest.fixture(scope="module", autouse=True)
def native_writers_tell():
    """Both write their files outside Python, so that nobody who listens to Python's events would see them."""

    def telling(save):
        def saved(content, file, *args, **kwargs):
            sys.audit("open", file, "wb", os.O_WRONLY)
            return save(content, file, *args, **kwargs)

        return saved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", telling(torch.save))
        patch.setattr(safetensors.torch, "serialize_file", telling(safetensors.torch.serialize_file))
        yield


@pytest.fixture(scope="module")
def recorded(short_arguments, tmp_path_factory):
    """A finished run, and copies of its folder before every file event: what a kill there would leave."""
    root = tmp_path_factory.mktemp("recorded")
    copies = states_of_kills(lambda: train_explainer(short_arguments(root / "run")), root / "run", root / "copies")
    forget_accelerators()
    return root / "run", [copy for copy in copies if copy.exists()]


def start_ranks(run):
    """Starts a function in two processes that belong together, as `accelerate launch` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Forked(run, RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")]


def resume_and_compare(args, folder, whole):
    train_explainer(args)
    forget_accelerators()
    assert_same_run(folder, whole)
    assert (folder / "all_results.json").read_bytes() == (whole / "all_results.json").read_bytes()
    more = files_of(folder) - files_of(whole)
    assert all(name.startswith("step_") and ".partial" not in name for name in more)  # older checkpoints
    assert files_of(whole) <= files_of(folder)


def state_of(folder):
    """A digest of all that a resumed run finds in a folder."""
    names = sorted(files_of(folder) - {LOCK, LOCK_HOLDER})
    return digest(*(part for name in names for part in (name, (folder / name).read_bytes())))


def test_a_run_killed_before_any_file_event_continues_bit_for_bit(short_arguments, recorded):
    """Kills that leave the same, once the leftovers are removed, are resumed once."""
    whole, copies = recorded
    assert len(copies) > 90
    states = {}
    for copy in copies:
        remove_leftovers(copy)
        clean_up(copy)
        states.setdefault(state_of(copy), copy)
    assert 10 < len(states) < 60, len(states)
    for copy in states.values():
        resume_and_compare(short_arguments(copy), copy, whole)


@pytest.mark.parametrize("number", range(1, 119, 1 if LONG_TESTS else 16))
def test_a_full_disk_is_named_and_nothing_is_lost(short_arguments, recorded, tmp_path, number):
    """Where space is made, the run goes on bit for bit. After event 118 the run only removes files."""
    whole, folder = recorded[0], tmp_path / "run"
    events = itertools.count(1)
    before = set()

    def fill(event, file):
        if next(events) == number:
            before.update(checkpoints(folder))
            fill_disk()

    def run():
        try:
            with watched(folder, fill):
                train_explainer(short_arguments(folder))
        finally:
            after = checkpoints(folder)
            assert before <= set(after) or len(after) == 2

    status, error = Forked(run).result()
    assert status == 1
    assert "File too large" in error or "is the disk full?" in error
    assert "could not be written" in error or "is not writable" in error
    assert [path.name for path in folder.glob("*.partial")] == []
    resume_and_compare(short_arguments(folder), folder, whole)


@pytest.mark.skipif(not LONG_TESTS, reason="only with SALVAGE_LONG_TESTS=1")
def test_a_run_killed_at_random_moments_continues_bit_for_bit(short_arguments, recorded, tmp_path):
    """Every run is killed three times, at moments up to the time that a whole run takes, and then resumed."""
    begun = time.monotonic()
    assert Forked(lambda: train_explainer(short_arguments(tmp_path / "whole")) and None).result() == (0, None)
    duration = time.monotonic() - begun
    moments, kills = random.Random(0), 0
    for number in range(30):
        folder = tmp_path / str(number)
        for _ in range(3):
            run = Forked(lambda folder=folder: train_explainer(short_arguments(folder)) and None)
            status, _ = run.result(timeout=moments.uniform(0, duration))
            run.kill()
            kills += status is None
        resume_and_compare(short_arguments(folder), folder, recorded[0])
    assert kills >= 45


def test_the_second_run_in_a_folder_says_who_writes_there(short_arguments, recorded, tmp_path):
    """An orphan of a killed launcher is such a run too. It finishes as if nothing had happened."""
    go_on = tmp_path / "go_on"

    class WaitingTask(ExplainerTask):
        def loss(self, model, batch, step):
            while step == 2 and not go_on.exists():
                time.sleep(0.02)
            return super().loss(model, batch, step)

    folder = tmp_path / "run"
    first = Forked(lambda: train_explainer(short_arguments(folder), task=WaitingTask) and None)
    while not (folder / "step_2").exists():
        assert first.process.is_alive()
        time.sleep(0.02)
    with pytest.raises(ValueError, match=rf"is being written by process {first.process.pid} on .* \(training\); wait"):
        train_explainer(short_arguments(folder))
    go_on.touch()
    assert first.result() == (0, None)
    assert_same_run(folder, recorded[0])


def test_a_locked_folder_is_refused_in_all_processes(short_arguments, tmp_path):
    folder = tmp_path / "run"
    with locked(folder, "benchmark"):
        ranks = start_ranks(lambda: train_explainer(short_arguments(folder)))
        results = [rank.result(timeout=60) for rank in ranks]
    assert [status for status, _ in results] == [1, 1]
    message = f"ValueError: output_dir {str(folder.resolve())!r} is being written by process {os.getpid()} on"
    assert all(error.startswith(message) for _, error in results), results


def test_a_process_that_is_stopped_ends_the_run_with_a_message(short_arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "PROCESS_TIMEOUT", timedelta(seconds=5))

    class StoppedTask(ExplainerTask):
        def loss(self, model, batch, step):
            if step == 2 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGSTOP)
            return super().loss(model, batch, step)

    halves = short_arguments(tmp_path / "run", per_device_train_batch_size=2)
    first, second = start_ranks(lambda: train_explainer(halves, task=StoppedTask))
    status, error = first.result(timeout=120)
    second.kill()
    assert status == 1
    assert error.startswith("RuntimeError: another process of this run has not answered for 5 seconds: it was stopped")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step_1", "step_2"]
