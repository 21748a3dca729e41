"""Result files are written whole or not at all, and by one process at a time."""

import json
import logging
import os
import signal

import filelock
import pytest
import torch
from forked import Forked, fill_disk
from safetensors.torch import load_file

from salvage_hf.files import LOCK, LOCK_HOLDER, locked, remove_leftovers, write_bytes, write_json, write_tensors


def lock(folder):
    with locked(folder, "benchmark"):
        pass


def test_the_second_process_is_told_who_writes(tmp_path):
    folder = tmp_path / "new" / "folder"
    with locked(folder, "training"):
        status, error = Forked(lambda: lock(folder)).result()
        assert status == 1
        told = f"ValueError: output_dir {str(folder.resolve())!r} is being written by process {os.getpid()} on "
        assert error.startswith(told)
        assert error.endswith(" (training); wait for it or give another output_dir")
    assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_killed_process_leaves_no_lock_and_no_leftovers(tmp_path):
    def die_in_writing():
        with locked(tmp_path, "training"):
            (tmp_path / "a.json.01234567.partial").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert Forked(die_in_writing).result() == (-signal.SIGKILL, None)
    (tmp_path / "download.partial").touch()  # somebody else's
    with locked(tmp_path, "training"):
        assert json.loads((tmp_path / LOCK_HOLDER).read_text())["process"] == os.getpid()
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, LOCK_HOLDER, "download.partial"]


def test_a_process_may_lock_again(tmp_path):
    with locked(tmp_path, "ablation"), locked(tmp_path / "sub", "training"):
        with locked(tmp_path, "training"):
            pass
        assert (tmp_path / LOCK_HOLDER).is_file()  # still locked
    assert not (tmp_path / LOCK_HOLDER).exists()


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(95, "Operation not supported")])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog, error):
    def acquire(self, timeout):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with caplog.at_level(logging.WARNING), locked(tmp_path, "training"):
        assert f"output_dir {str(tmp_path.resolve())!r} cannot be locked ({error})" in caplog.text


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"output_dir '.*file' is not writable"), locked(tmp_path / "file", "training"):
        pass


def test_files_are_written(tmp_path):
    write_bytes(tmp_path / "bytes", b"content")
    write_json(tmp_path / "a.json", {"a": [1]})
    write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(6).reshape(2, 3).T}, {"key": "value"})
    assert (tmp_path / "bytes").read_bytes() == b"content"
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1]}
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.arange(6).reshape(2, 3).T)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_full_disk_leaves_the_earlier_file_and_no_half_one(tmp_path):
    write_json(tmp_path / "a.json", {})

    def fail():
        fill_disk()
        write_json(tmp_path / "a.json", dict.fromkeys(map(str, range(100))))

    status, error = Forked(fail).result()
    assert status == 1
    assert error.startswith(f"OSError: {str(tmp_path / 'a.json')!r} could not be written: ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {}


def test_leftovers_are_ours(tmp_path):
    """Only unfinished files of this library are removed, and no folders."""
    (tmp_path / "folder.01234567.partial").mkdir()
    for name in ("a.json.0123abcd.partial", "a.partial", "b.0123ABCD.partial", "c.0123abcd.partial.json"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.partial", "b.0123ABCD.partial", "c.0123abcd.partial.json", "folder.01234567.partial"]
