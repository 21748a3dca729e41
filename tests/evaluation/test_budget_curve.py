"""Scores over budgets: every point is a benchmark of its own."""

import json

import pytest
import torch
from PIL import Image

from salvage_hf.evaluation.benchmark import run_benchmark
from salvage_hf.evaluation.budget_curve import BudgetCurveArguments, budget_table, paired_table, run_budget_curve

METHODS = ["salvage", "salvage_refined", "rise", "kernelshap"]


def test_every_point_is_the_score_of_a_benchmark(benchmark_arguments, tmp_path):
    shared = benchmark_arguments(methods=METHODS)
    found = run_budget_curve(BudgetCurveArguments(budgets=[16, 40]), shared)
    assert found == json.loads((tmp_path / "out" / "budget_curve.json").read_text())
    assert found["images"] == 7
    # KernelSHAP needs 17 subsets for 16 patches, and Salvage asks for none.
    points = {name: sorted(entry, key=int) for name, entry in found["methods"].items()}
    assert points == {
        "salvage": ["0"],
        "salvage_refined": ["16", "40"],
        "rise": ["16", "40"],
        "kernelshap": ["40"],
    }
    alone = benchmark_arguments(methods=METHODS[1:], sampling_budget=40, output_dir=str(tmp_path / "alone"))
    results = run_benchmark(alone)["methods"]
    for name in METHODS[1:]:
        for score in ("srg", "r_srg"):
            assert found["methods"][name]["40"][score] == results[name][score]
    assert Image.open(tmp_path / "out" / "budget_curve.png").size[0] > 600


def test_a_curve_goes_on_where_it_stopped(benchmark_arguments, tmp_path, caplog):
    shared = benchmark_arguments(methods=METHODS[:3])
    first = run_budget_curve(BudgetCurveArguments(budgets=[16]), shared)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "budget-16" / "maps").iterdir()}
    second = run_budget_curve(BudgetCurveArguments(budgets=[20, 16]), shared)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # scored once
    assert second["methods"]["rise"]["16"] == first["methods"]["rise"]["16"]
    assert list(second["methods"]["rise"]) == ["16", "20"]


def test_tables_show_means_and_paired_differences():
    values = torch.tensor([[0.1, 0.3], [0.2, 0.6], [0.3, 0.5]]).tolist()
    found = {
        "images": 2,
        "methods": {
            "salvage": {"0": {"srg": values[0]}},
            "salvage_refined": {"16": {"srg": values[1]}},
            "svarm": {"16": {"srg": values[1]}, "64": {"srg": values[2]}},
        },
    }
    table = budget_table(found)
    assert "| SRG ↑, forwards per image | 0 | 16 | 64 |" in table
    assert "| Salvage | 20.0 ± 10.0 | - | - |" in table
    assert "| SVARM | - | 40.0 ± 20.0 | 40.0 ± 10.0 |" in table
    paired = paired_table(found)
    assert "| 16 forwards, against Salvage with 0 | 20.0 ± 10.0 | - |" in paired
    assert "| 16 forwards, against SVARM with 64 | 0.0 ± 10.0 | - |" in paired


@pytest.mark.parametrize("budgets", [[], [0], [16, 16], [-3]])
def test_wrong_budgets_are_refused(budgets):
    with pytest.raises(ValueError, match="budgets must be one positive number or more"):
        BudgetCurveArguments(budgets=budgets)


def test_budgets_that_are_too_small_for_all_methods_are_refused(benchmark_arguments):
    with pytest.raises(ValueError, match=r"budgets=\[8\] are too small for all of salvage, salvage_refined"):
        run_budget_curve(BudgetCurveArguments(budgets=[8]), benchmark_arguments(methods=["salvage", "salvage_refined"]))


def test_methods_without_a_budget_make_no_curve(benchmark_arguments):
    with pytest.raises(ValueError, match="none of random takes a budget"):
        run_budget_curve(BudgetCurveArguments(), benchmark_arguments(methods=["random"]))
