"""scripts/train.py as users start it: in two processes, with a tracker, and with an upload to the Hub."""

import json
import os
import subprocess
import sys

import pytest
from local_hub import TOKEN, run_on
from tiny_runs import SCRIPT, command_line, files_of, make_arguments

from salvage_hf.training.explainer import train_explainer
from salvage_hf.training.setup import TRACKER_LOGS


def launch_two(words, tmp_path):
    """Runs the script in two processes on the CPU, by `accelerate launch`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", str(SCRIPT), *words]  # 0: any free port
    more = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["everything", "frozen and cached"])
def test_two_processes_give_the_numbers_of_one(data, tmp_path, run_two, kind):
    """Two processes with half the batch each: started as users do, and for the other kind by forks, which is faster."""
    changes = {"max_train_steps": 4, "validation_steps": 2, "checkpointing_steps": 4}
    if kind == "frozen and cached":
        changes |= {"freeze_backbone": True, "cache_images": True}
    one = train_explainer(make_arguments(data, tmp_path / "one", **changes))
    halves = command_line(make_arguments(data, tmp_path / "two", per_device_train_batch_size=2, **changes))
    if kind == "everything":
        launch_two(halves, tmp_path)
    else:
        run_two("train", *halves)
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert two["num_processes"] == 2
    assert [row["step"] for row in two["history"]] == [2, 4]
    for mine, other in zip(two["history"], one["history"], strict=True):
        assert mine == pytest.approx(other, abs=1e-5)


def test_the_script_pushes_the_best_model_alone_and_logs_to_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboard")
    args = make_arguments(
        data,
        tmp_path / "run",
        max_train_steps=3,
        checkpointing_steps="epoch",
        freeze_backbone=True,
        with_tracking=True,
        report_to="tensorboard",
        push_to_hub=True,
        hub_model_id="org/tiny",
        hub_token=TOKEN,
    )
    code = f"""
    import runpy, sys
    sys.argv = {[str(SCRIPT), *command_line(args)]}
    runpy.run_path(sys.argv[0], run_name="__main__")
    """
    run_on(tmp_path, code, HF_DATASETS_CACHE=str(tmp_path / "cache"))
    pushed = files_of(tmp_path / "hub" / "models" / "org" / "tiny") - {".gitattributes"}
    code = {f"{name}_salvage.py" for name in ("configuration", "geometry", "modeling", "pipeline")}
    model = {"config.json", "model.safetensors", *code}
    assert pushed == model | {"preprocessor_config.json", "README.md", "all_results.json"}
    assert (tmp_path / "run" / "step_3").is_dir()
    written = files_of(tmp_path / "run")
    assert [name for name in written if "tfevents" in name and name.startswith(TRACKER_LOGS)]
    leaks = [name for name in written if TOKEN.encode() in (tmp_path / "run" / name).read_bytes()]
    assert leaks == []
