"""scripts/performance/ on tiny models: every script runs, and its figures are what it says they are."""

import json
import math
import multiprocessing
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from browser import chromium
from PIL import Image
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from salvage_hf.modeling import SalvageModel
from salvage_hf.training.explainer import ExplainerTask

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "performance"


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
    monkeypatch.syspath_prepend(SCRIPTS)  # Python adds a script's folder when it runs the script
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()

    def run(name, *words, result="results.json"):
        monkeypatch.setattr(sys, "argv", [name, "--output_dir", str(tmp_path / "out"), *run.classifier, *words])
        if run.globals:
            main = runpy.run_path(str(SCRIPTS / name))["main"]
            main.__globals__.update(run.globals)
            main()
        else:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return json.loads((tmp_path / "out" / result).read_text())

    run.globals = {}  # takes the place of a script's own
    run.classifier = ["--model_name_or_path", str(tmp_path / "classifier")]
    run.explainer = ["--explainer", str(tmp_path / "explainer")]
    run.images = ["--validation_dir", str(tmp_path / "images")]
    run.training_images = ["--train_dir", str(tmp_path / "images"), *run.images]
    return run


def test_sampling(run_script):
    sizes = ["--num_images", "3", "--num_subsets", "4", "--draws", "5"]
    variance = run_script("benchmark_sampling.py", *run_script.explainer, *run_script.images, *sizes)["variance"]
    assert set(variance) > {"independent", "shared", "stratified", "guided_stratified", "complement"}
    assert all(0 < value < math.inf for value in variance.values())
    with pytest.raises(ValueError, match=r"num_subsets must be even, .* got 3"):
        run_script("benchmark_sampling.py", *run_script.explainer, *run_script.images, "--num_subsets", "3")


def test_app(run_script, tmp_path, monkeypatch):
    with chromium():
        pass  # skips where there is none
    pytest.importorskip("gradio")
    classifier, picture = str(tmp_path / "classifier"), str(tmp_path / "images" / "LABEL_0" / "0.png")
    words = ["--model", str(tmp_path / "explainer"), "--classifier", classifier, "--picture", picture]
    run_script.classifier = []
    times = run_script("benchmark_app.py", *words, "--rounds", "1")
    assert all(time > 0 for (time,) in times.values())
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {"wide.png", "narrow.png"}


def test_total_variance(monkeypatch):
    """For vectors with known entries it is the sum of the entries' variances."""
    monkeypatch.syspath_prepend(SCRIPTS)
    total_variance = runpy.run_path(str(SCRIPTS / "benchmark_sampling.py"))["total_variance"]
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert total_variance(lambda number: vectors[number], 6, "") == pytest.approx(vectors.var(dim=0).sum().item())


def test_metrics(run_script):
    sizes = ["--num_images", "6", "--num_single_images", "4", "--repeats", "20", "--budget", "61", "--batch_size", "4"]
    results = run_script("benchmark_metrics.py", *run_script.explainer, *run_script.images, *sizes)
    many, single = results["many_images"], results["single_images"]
    assert many["forwards"] == 61
    assert many["control_variate_ratio"] > 0
    assert many["protocol_forwards"] == 2 * 128 * 15 + 1
    assert 0 < many["protocol_stderr"] < 1.2 * many["stderr"]
    assert 0 < single["budgeted_error"] < single["independent_error"]


TRAINING = ["--max_train_steps", "5", "--per_device_train_batch_size", "4", "--new_subsets", "2"]


@pytest.mark.parametrize("words", [["--freeze_backbone"], ["--dataloader_num_workers", "1", "--target", "predicted"]])
def test_training(run_script, monkeypatch, words):
    """Each part gets the time spent in it, and the parts add up to the steps."""
    seconds = {"explain": 0.03, "draw_subsets": 0.04, "ask_classifier": 0.05}

    def slow(name):
        function = getattr(ExplainerTask, name)

        def later(*args):
            time.sleep(seconds[name])
            return function(*args)

        monkeypatch.setattr(ExplainerTask, name, later)

    for name in seconds:
        slow(name)
    words = [*run_script.training_images, *TRAINING, *words]
    results = run_script("benchmark_training.py", *words, result="benchmark_training.json")
    parts = results["parts"]
    assert len(parts) == 7
    assert parts["explainer forward"] > 3 * 0.03
    assert parts["sampling"] > 3 * 0.04
    assert parts["classifier forwards v(S)"] > 3 * 0.05
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(3 * results["seconds_per_step"])
    assert results["seconds_per_step"] > 0.12
    in_models = sum(parts[name] for name in ("explainer forward", "explainer backward", "classifier forwards v(S)"))
    assert results["share_in_models"] == pytest.approx(in_models / (3 * results["seconds_per_step"]))
    assert not _global_optimizer_pre_hooks
    assert not _global_optimizer_post_hooks


@pytest.mark.parametrize("cached", [[], ["--cache_images"]], ids=["files", "cache"])
def test_training_waits_for_the_gpu_in_no_worker(run_script, monkeypatch, cached):
    """The clock waits for the GPU, which a worker of a DataLoader cannot do, because it is a fork."""
    import measuring

    waits = []

    def synchronize():
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")
        waits.append(None)

    monkeypatch.setattr(measuring, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    words = [*run_script.training_images, *TRAINING, "--dataloader_num_workers", "1", *cached]
    assert run_script("benchmark_training.py", *words, result="benchmark_training.json")["seconds_per_step"] > 0
    assert len(waits) > 5  # steps


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_train_steps", "3"], "--max_train_steps must be at least 4, got 3"),
        (["--max_train_steps", "5", "--gradient_accumulation_steps", "2"], "must be 1, got 2"),
        (["--max_train_steps", "5", "--auto_find_batch_size"], "--auto_find_batch_size, .* must not be given"),
        (["--max_train_steps", "5", "--resume_from_checkpoint", "latest"], "'latest' must not be given"),
    ],
)
def test_training_refuses_what_it_cannot_time(run_script, words, said):
    with pytest.raises(SystemExit, match=said):
        run_script("benchmark_training.py", *run_script.training_images, *words)


def test_time_to_srg(run_script):
    """Finished runs are not repeated; the probe says how many steps fit into a time."""
    words = [*run_script.training_images, "--max_eval_samples", "3", "--seeds", "0", "--learning_rates", "1e-4", "1e-3"]
    paper = {"per_device_train_batch_size": 4, "new_subsets": 2}
    run_script.globals = {"PAPER": paper, "CHEAPER": {**paper, "freeze_backbone": True}, "PROBE_STEPS": 4}
    results = run_script("benchmark_time_to_srg.py", *words, "--seconds", "3")
    assert set(results) > {"probe_paper", "probe_cheaper", "cheaper_0", "paper_0.0001_short", "paper_0.001_short"}
    probe = results["probe_paper"]
    steps = results["paper_0.0001_short"][-1]["step"]
    assert steps == max(1, int((0.5 - probe["preparation"]) / probe["step"]))
    assert run_script("benchmark_time_to_srg.py", *words, "--seconds", "3") == results
    with pytest.raises(SystemExit, match="holds runs with other arguments"):
        run_script("benchmark_time_to_srg.py", *words, "--seconds", "7")


def test_explaining(run_script):
    seconds = run_script(
        "benchmark_explaining.py", *run_script.explainer, *run_script.images, "--budget", "40", "--rounds", "2"
    )
    assert len(seconds) == 9
    assert all(len(measured) == 2 and min(measured) > 0 for measured in seconds.values())


def test_pixel_flipping(run_script):
    pytest.importorskip("quantus", reason="Quantus is not among the project's extras")
    seconds = run_script("benchmark_pixel_flipping.py", *run_script.images, "--num_images", "2", "--rounds", "2")
    assert all(len(measured) == 2 and min(measured) > 0 for measured in seconds.values())


def test_masking(run_script):
    (result,) = run_script("benchmark_masking.py", "--grids", "4", "--rows_per_size", "2", "--rounds", "2")["grids"]
    assert set(result["ratio"]) == {"unpacked", "dense"}
    assert max(result["largest_difference"].values()) < 1e-4
    assert all(math.isfinite(ratio) for ratio in result["ratio"].values())
    with pytest.raises(ValueError, match=r"rows_per_size=\[2\] must hold a number for each of grids=\[4, 8\]"):
        run_script("benchmark_masking.py", "--grids", "4", "8", "--rows_per_size", "2")


def test_memory(run_script, monkeypatch):
    # In forks of this process, because the script's start by loading the libraries; a single number of subsets.
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind, get=multiprocessing.get_context: get("fork"))
    words = ["--grid", "4", "--num_images", "2", "--num_subsets", "8", "--chunk_size", "64"]
    results = run_script("benchmark_memory.py", *words)
    assert set(results) == {"v(S)", "R-SRG, budget", "R-SRG, n_masks x 32", "SRG"}
    assert all(set(sizes) == {"8"} for sizes in results.values())


@pytest.mark.parametrize("argument", ["model_name_or_path", "validation_dir"])
def test_arguments_that_are_needed(run_script, argument):
    with pytest.raises(ValueError, match=f"{argument} is needed"):
        run_script("benchmark_sampling.py", *run_script.images, f"--{argument}", "")
