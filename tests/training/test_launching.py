"""scripts/train.py as users start it: in two processes, with a tracker, and with an upload to the Hub."""

import json
import subprocess
import sys

import pytest
from local_hub import TOKEN, local_hub
from tiny_runs import SCRIPT, command_line, environment, files_of, make_arguments

from salvage_hf.training.explainer import train_explainer
from salvage_hf.training.setup import TRACKER_LOGS


@pytest.mark.parametrize(
    "kind", [{}, {"freeze_backbone": True, "cache_images": True}], ids=["everything", "frozen and cached"]
)
def test_two_processes_give_the_numbers_of_one(data, tmp_path, launch_two, kind):
    """`accelerate launch` starts two processes with half the batch each."""
    changes = {"max_train_steps": 4, "validation_steps": 2, "checkpointing_steps": 4, **kind}
    one = train_explainer(make_arguments(data, tmp_path / "one", **changes))
    halves = make_arguments(data, tmp_path / "two", per_device_train_batch_size=2, **changes)
    launch_two("train.py", *command_line(halves))
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
    with local_hub(tmp_path) as hub:
        env = environment(**hub, HF_DATASETS_CACHE=str(tmp_path / "cache"))
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *command_line(args)], env=env, capture_output=True, text=True, timeout=900
        )
    assert done.returncode == 0, done.stderr
    pushed = files_of(tmp_path / "hub" / "models" / "org" / "tiny") - {".gitattributes"}
    code = {f"{name}_salvage.py" for name in ("configuration", "geometry", "modeling", "pipeline")}
    model = {"config.json", "model.safetensors", *code}
    assert pushed == model | {"preprocessor_config.json", "README.md", "all_results.json"}
    assert (tmp_path / "run" / "step_3").is_dir()
    written = files_of(tmp_path / "run")
    assert [name for name in written if "tfevents" in name and name.startswith(TRACKER_LOGS)]
    leaks = [name for name in written if TOKEN.encode() in (tmp_path / "run" / name).read_bytes()]
    assert leaks == []
