"""The recipe beside the results of a comparison computes them again, bit for bit."""

import json
import shutil
import sys

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file

from salvage_hf.cli import parse_arguments
from salvage_hf.evaluation.ablation import AblationArguments, run_ablation
from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.benchmark import run_benchmark
from salvage_hf.evaluation.budget_curve import BudgetCurveArguments, run_budget_curve
from salvage_hf.evaluation.exact import ExactArguments, run_exact_values
from salvage_hf.evaluation.report import ReportArguments, write_report
from salvage_hf.recipes import RECIPE
from salvage_hf.training.explainer import ExplainerArguments


@pytest.fixture
def again(tmp_path, monkeypatch):
    """A function: the arguments that the recipe in out/ gives, with another output folder, again/."""

    def read(*kinds):
        words = ["--config", str(tmp_path / "out" / RECIPE), "--output_dir", str(tmp_path / "again")]
        monkeypatch.setattr(sys, "argv", ["script.py", *words])
        return parse_arguments(*kinds, description=None)

    return read


def scores(results):
    """Results without what is measured by the clock."""
    methods = {name: {**entry, "seconds": None} for name, entry in results["methods"].items()}
    return {**results, "methods": methods}


def test_a_benchmark_is_run_again_from_its_recipe(benchmark_arguments, again, tmp_path):
    args = benchmark_arguments(methods=["salvage", "rise", "random"], sampling_budget=20, seed=5)
    results = run_benchmark(args)
    assert scores(run_benchmark(*again(BenchmarkArguments))) == scores(results)
    for name in args.methods:
        one, other = (load_file(tmp_path / folder / "maps" / f"{name}.safetensors") for folder in ("out", "again"))
        assert (one["attributions"] == other["attributions"]).all()
    assert " -m salvage_hf benchmark --config recipe.yaml\n" in (tmp_path / "out" / RECIPE).read_text()


def test_a_benchmark_that_goes_on_writes_its_own_recipe(benchmark_arguments, tmp_path):
    """The recipe is that of the last run: of the methods that it named."""
    run_benchmark(benchmark_arguments(methods=["random"]))
    before = (tmp_path / "out" / RECIPE).read_bytes()
    with pytest.raises(ValueError, match="give another output_dir"):
        run_benchmark(benchmark_arguments(methods=["random"], seed=1))
    assert (tmp_path / "out" / RECIPE).read_bytes() == before
    run_benchmark(benchmark_arguments(methods=["last_attention"]))
    assert b"methods: [last_attention]\n" in (tmp_path / "out" / RECIPE).read_bytes()


def test_a_benchmark_that_is_killed_has_its_recipe(benchmark_arguments, again, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("salvage_hf.evaluation.benchmark.predictions", killed)
    args = benchmark_arguments()
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(args)
    shutil.rmtree(tmp_path / "out" / "maps")
    (held,) = again(BenchmarkArguments)
    held.output_dir = args.output_dir
    assert held == args


def test_a_budget_curve_is_drawn_again_from_its_recipe(benchmark_arguments, again, tmp_path):
    shared = benchmark_arguments(methods=["rise", "random"])
    found = run_budget_curve(BudgetCurveArguments(budgets=[20, 16]), shared)
    assert run_budget_curve(*again(BudgetCurveArguments, BenchmarkArguments)) == found
    assert "sampling_budget: 16" in (tmp_path / "out" / "budget-16" / RECIPE).read_text()


def test_exact_values_are_computed_again_from_their_recipe(benchmark_arguments, save_processor, again, tmp_path):
    shared = benchmark_arguments(methods=["random"])
    save_processor(tmp_path / "classifier", image_size=8)  # 4 patches, which have 16 subsets
    args = ExactArguments(
        model_name_or_path=shared.model_name_or_path,
        validation_dir=shared.validation_dir,
        methods=["random"],
        max_eval_samples=1,
        output_dir=shared.output_dir,
    )
    assert run_exact_values(args) == run_exact_values(*again(ExactArguments))


@pytest.mark.usefixtures("undrawn")
def test_a_report_is_written_again_from_its_recipe(make_benchmark, again, tmp_path):
    folder, _ = make_benchmark()
    page = write_report(ReportArguments([f"Pets={folder}"], output_dir=str(tmp_path / "out")))
    assert write_report(*again(ReportArguments)).read_bytes() == page.read_bytes()


def test_an_ablation_is_run_again_from_its_recipe(tiny_classifier, save_processor, again, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    tiny_classifier("dinov2_with_registers").save_pretrained(tmp_path / "classifier")
    save_processor(tmp_path / "classifier")
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "images" / f"LABEL_{label}"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    shared = ExplainerArguments(
        model_name_or_path=str(tmp_path / "classifier"),
        train_dir=str(tmp_path / "images"),
        validation_dir=str(tmp_path / "images"),
        output_dir=str(tmp_path / "out"),
        max_train_steps=2,
        per_device_train_batch_size=4,
        new_subsets=4,
        learning_rate=1e-3,
    )
    found = run_ablation(AblationArguments(seeds=[1], budget=9, exponents=[], max_scored_samples=4), shared)
    assert run_ablation(*again(AblationArguments, ExplainerArguments)) == found
    assert json.loads((tmp_path / "again" / "ablation.json").read_text()) == found
    arm = (tmp_path / "out" / "salvage-uniform-1" / RECIPE).read_text()
    assert "sampling: uniform\n" in arm
    assert "seed: 1\n" in arm
