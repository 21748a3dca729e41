"""A checkpoint from somebody else must not run code: accelerate's files are pickles, which can name any function."""

import contextlib
import json
import os
import shutil

import torch

from salvage_hf.training.checkpoints import RECORD
from salvage_hf.training.explainer import train_explainer


class MakesFolder:
    """Calls `os.mkdir` when it is unpickled without limits."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_no_file_of_a_checkpoint_runs_code(arguments, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    checkpoint = tmp_path / "run" / "step_8"
    pickles = [file for file in checkpoint.iterdir() if file.suffix in (".bin", ".pkl")]
    assert {file.name for file in pickles} >= {"optimizer.bin", "scheduler.bin", "random_states_0.pkl"}
    record = json.loads((checkpoint / RECORD).read_text())
    for file in pickles:
        content = file.read_bytes()
        torch.save(MakesFolder(tmp_path / "code_ran"), file)
        sizes = {**record["files"], file.name: file.stat().st_size}
        (checkpoint / RECORD).write_text(json.dumps({**record, "files": sizes}))
        with contextlib.suppress(ValueError):  # accelerate goes on without states of random numbers
            train_explainer(arguments(resume_from_checkpoint=str(checkpoint)))
        assert not (tmp_path / "code_ran").exists(), file.name
        file.write_bytes(content)
