"""The files of a benchmark and an ablation: what they hold, and which are refused."""

import json

import pytest
import torch

from salvage_hf.attribution_methods import REGISTRY
from salvage_hf.evaluation.results import (
    earlier_ablation,
    earlier_results,
    method_entry,
    method_titles,
    read_ablation,
    read_benchmark,
)


def test_missing_and_broken_files_are_reported_with_the_script_that_writes_them(tmp_path):
    for name, read in (("results.json", read_benchmark), ("ablation.json", read_ablation)):
        script = "scripts/benchmark.py" if name == "results.json" else "scripts/ablation.py"
        with pytest.raises(ValueError, match=rf"no {name} in '.*': it is written by {script}"):
            read(tmp_path)
        (tmp_path / name).write_text('{"settings": ')
        with pytest.raises(ValueError, match=rf"{name}' is not what {script} writes: "):
            read(tmp_path)


def test_an_entry_leaves_out_what_was_not_asked_for():
    nan = float("nan")
    rows = {
        "attributions": torch.rand(2, 2),
        "srg": torch.tensor([0.25, nan]),
        "lif": torch.tensor([0.5, nan]),
        "mif": torch.tensor([0.25, nan]),
        "lif_curve": torch.tensor([[0.25, 0.75], [nan, nan]]),
        "mif_curve": torch.tensor([[0.0, 0.5], [nan, nan]]),
        "forwards": torch.tensor([3.0, 3.0]),
        "seconds": torch.tensor([1.0, 2.0]),
    }
    assert method_entry(rows, {"budget": 8}) == {
        "srg": [0.25, None],
        "lif": [0.5, None],
        "mif": [0.25, None],
        "curves": {"lif": [0.25, 0.75], "mif": [0.0, 0.5]},
        "forwards": 3.0,
        "seconds": 1.5,
        "made_with": {"budget": 8},
    }


def test_titles_come_in_the_order_of_the_registry():
    assert list(method_titles(reversed(REGISTRY))) == list(REGISTRY)
    assert method_titles(["random", "salvage"]) == {"salvage": "Salvage", "random": "Random"}


def test_other_settings_are_refused(tmp_path):
    measured = {"settings": {"seed": 0}, "ids": ["a"], "targets": [1]}
    assert earlier_results(tmp_path, measured) is None
    (tmp_path / "results.json").write_text(json.dumps({**measured, "methods": {}}))
    assert earlier_results(tmp_path, measured) == {**measured, "methods": {}}
    with pytest.raises(ValueError, match=r"other settings: there {'seed': 0} on 1 images, here {'seed': 1} on 1; give"):
        earlier_results(tmp_path, {**measured, "settings": {"seed": 1}})
    assert earlier_ablation(tmp_path, {"max_train_steps": 4}) is None
    (tmp_path / "ablation.json").write_text(json.dumps({"settings": {"max_train_steps": 4}, "arms": {}}))
    assert earlier_ablation(tmp_path, {"max_train_steps": 4}) == {"settings": {"max_train_steps": 4}, "arms": {}}
    with pytest.raises(ValueError, match=r"other arguments \(before, now\): {'max_train_steps': \(4, 8\)}; give"):
        earlier_ablation(tmp_path, {"max_train_steps": 8})
