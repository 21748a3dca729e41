"""The benchmarks in scripts/, on tiny models: that they run and that their figures are figures. Speed is no test."""

import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from salvage_hf.modeling import SalvageModel

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def run_script(tmp_path, tiny_classifier, save_processor, monkeypatch):
    """A factory: runs a script on a tiny classifier, explainer and images; returns its JSON."""
    classifier = tiny_classifier("dinov2_with_registers")
    classifier.save_pretrained(tmp_path / "classifier")
    save_processor(tmp_path / "classifier")
    torch.manual_seed(0)
    explainer = SalvageModel.from_classifier(classifier)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(explainer.head.class_projection.weight, generator=generator)
    explainer.save_pretrained(tmp_path / "explainer")
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "images" / f"LABEL_{label}"
        folder.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()

    def run(name, *words, result="results.json"):
        common = ["--model_name_or_path", str(tmp_path / "classifier"), "--output_dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [name, *common, *words])
        if run.globals:
            main = runpy.run_path(str(SCRIPTS / name))["main"]
            main.__globals__.update(run.globals)
            main()
        else:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return json.loads((tmp_path / "out" / result).read_text())

    run.globals = {}  # takes the place of a script's own
    run.explainer = ["--explainer", str(tmp_path / "explainer")]
    run.images = ["--validation_dir", str(tmp_path / "images")]
    run.training_images = ["--train_dir", str(tmp_path / "images"), *run.images]
    return run


def test_sampling(run_script):
    sizes = ["--num_images", "3", "--num_subsets", "4", "--draws", "5"]
    variance = run_script("benchmark_sampling.py", *run_script.explainer, *run_script.images, *sizes)["variance"]
    assert set(variance) > {"independent", "shared", "stratified", "guided_stratified", "complement"}
    assert all(0 < value < math.inf for value in variance.values())
    with pytest.raises(SystemExit, match="even"):
        run_script("benchmark_sampling.py", *run_script.explainer, *run_script.images, "--num_subsets", "3")


def test_metrics(run_script):
    sizes = ["--num_images", "6", "--num_single_images", "4", "--repeats", "20", "--budget", "61", "--batch_size", "4"]
    results = run_script("benchmark_metrics.py", *run_script.explainer, *run_script.images, *sizes)
    many, single = results["many_images"], results["single_images"]
    assert many["forwards"] == 61
    assert many["control_variate_ratio"] > 0
    assert many["protocol_forwards"] == 2 * 128 * 15 + 1
    assert 0 < many["protocol_stderr"] < 1.2 * many["stderr"]
    assert 0 < single["budgeted_error"] < single["independent_error"]


def test_training(run_script):
    words = [*run_script.training_images, "--max_train_steps", "5", "--per_device_train_batch_size", "4"]
    words += ["--new_subsets", "2", "--replayed_subsets", "4", "--freeze_backbone"]
    results = run_script("benchmark_training.py", *words, result="benchmark_training.json")
    assert set(results["parts"]) > {"explainer forward", "explainer backward", "replay", "optimizer", "sampling"}
    assert 0 < results["share_in_models"] < 1
    assert sum(results["parts"].values()) == pytest.approx(3 * results["seconds_a_step"])
    assert results["parts"]["rest"] >= 0


def test_time_to_srg(run_script):
    """Runs that are done are not repeated; steps that fit into a time follow from the probe."""
    words = [*run_script.training_images, "--max_eval_samples", "3", "--seeds", "0", "--learning_rates", "1e-4", "1e-3"]
    paper = {"per_device_train_batch_size": 4, "new_subsets": 2}
    run_script.globals = {"PAPER": paper, "CHEAPER": {**paper, "freeze_backbone": True}, "PROBE_STEPS": 4}
    results = run_script("benchmark_time_to_srg.py", *words, "--seconds", "6")
    assert set(results) > {"probe_paper", "probe_cheaper", "cheaper_0", "paper_0.0001_short", "paper_0.001_short"}
    probe = results["probe_paper"]
    steps = results["paper_0.0001_short"][-1]["step"]
    assert steps == max(1, int((1 - probe["preparation"]) / probe["step"]))
    assert run_script("benchmark_time_to_srg.py", *words, "--seconds", "6") == results


def test_explaining(run_script):
    seconds = run_script(
        "benchmark_explaining.py", *run_script.explainer, *run_script.images, "--budget", "40", "--rounds", "2"
    )
    assert len(seconds) == 7
    assert all(len(measured) == 2 and min(measured) > 0 for measured in seconds.values())


def test_pixel_flipping(run_script):
    pytest.importorskip("quantus", reason="Quantus is not among the project's extras")
    seconds = run_script("benchmark_pixel_flipping.py", *run_script.images, "--num_images", "2", "--rounds", "2")
    assert all(len(measured) == 2 and min(measured) > 0 for measured in seconds.values())


def test_masking(run_script):
    results = run_script("benchmark_masking.py", "--grids", "4", "--rows_per_size", "2", "--rounds", "2")
    assert results[0]["largest_difference"] < 1e-4
    assert math.isfinite(results[0]["ratio"])


def test_memory(run_script):
    # one number of subsets: every figure starts a process
    words = ["--grid", "4", "--num_images", "2", "--num_subsets", "8", "--chunk_size", "64"]
    results = run_script("benchmark_memory.py", *words)
    assert set(results) == {"v(S)", "R-SRG, budget", "R-SRG, n_masks x 32", "SRG"}
    assert all(set(sizes) == {"8"} for sizes in results.values())
