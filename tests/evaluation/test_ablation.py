"""The ablations: every arm is trained once, with equal steps and its own recipe, and its last model is scored."""

import json
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from forked import Forked
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from salvage_hf.evaluation import ablation
from salvage_hf.evaluation.ablation import AblationArguments, ablation_table, run_ablation
from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.benchmark import run_benchmark
from salvage_hf.evaluation.reading import read_ablation
from salvage_hf.evaluation.results import ARMS
from salvage_hf.files import locked
from salvage_hf.training.explainer import ExplainerArguments


@pytest.fixture
def arguments(tiny_classifier, save_processor, tmp_path, monkeypatch):
    """A factory: the two argument objects of an ablation of 4 steps on tiny images."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    tiny_classifier("dinov2_with_registers").save_pretrained(tmp_path / "classifier")
    save_processor(tmp_path / "classifier")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(3):
            folder = tmp_path / split / f"LABEL_{label}"
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")

    def build(seeds=(0, 1), budget=9, exponents=(4.0,), **changes):
        shared = ExplainerArguments(
            **{
                "model_name_or_path": str(tmp_path / "classifier"),
                "train_dir": str(tmp_path / "train"),
                "validation_dir": str(tmp_path / "val"),
                "output_dir": str(tmp_path / "out"),
                "max_train_steps": 4,
                "per_device_train_batch_size": 4,
                "new_subsets": 4,
                "learning_rate": 1e-3,
                **changes,
            }
        )
        args = AblationArguments(seeds=list(seeds), budget=budget, exponents=list(exponents), max_scored_samples=5)
        return args, shared

    return build


@pytest.fixture
def two_arms(monkeypatch):
    """An ablation of two arms, one of each objective, because each arm takes more than a second."""
    chosen = ("vit_shapley-uniform", "salvage-guided")
    monkeypatch.setattr(ablation, "arms_with", lambda exponents: {name: ARMS[name] for name in chosen})


def test_every_arm_is_trained_once_with_its_own_recipe(arguments, monkeypatch, tmp_path):
    runs, train = [], ablation.train_explainer

    def remember(args):
        forwards = args.new_subsets + 2 * (args.objective == "vit_shapley")  # and both ends
        law = args.sampling, args.guidance_exponent
        runs.append((args.objective, law, args.seed, args.learning_rate, args.max_train_steps, forwards))
        return train(args)

    monkeypatch.setattr(ablation, "train_explainer", remember)
    first = run_ablation(*arguments(seeds=[0]))
    both = run_ablation(*arguments())  # as after a stop: finished runs are not repeated
    assert runs == [
        (objective, law, seed, rate, 4, 4)
        for seed in (0, 1)
        for objective, law, rate in (
            ("vit_shapley", ("shapley_kernel", None), 1e-4),  # as published
            ("salvage", ("uniform", None), 1e-3),
            ("salvage", ("guided", 1.0), 1e-3),  # as published
            ("salvage", ("guided", 4.0), 1e-3),
        )
    ]
    assert {name: of["0"] for name, of in both["arms"].items()} == {name: of["0"] for name, of in first["arms"].items()}
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == both
    # Four validations, so that the report finds a quarter, a half and all of the training.
    history = both["arms"]["salvage-guided"]["1"]["history"]
    assert [row["step"] for row in history if "eval_srg" in row] == [1, 2, 3, 4]
    assert len(ablation_table(both).splitlines()) == 2 + 4


def test_other_exponents_join_an_earlier_ablation(arguments, monkeypatch, tmp_path):
    """The arms of a search, one after another in one folder; what is finished is not trained again."""
    trained = []

    def made_up(args, shared, folder, arm, seed):
        trained.append((folder.name, arm.exponent))
        run = {"history": [{"step": 4, "eval_srg": 0.5}], "srg": [0.1 * len(trained)], "r_srg": [0.2]}
        return run, {"classifier": "a", "content": "b"}

    monkeypatch.setattr(ablation, "train_and_score", made_up)
    run_ablation(*arguments(seeds=[0], exponents=[8.0, 2.5]))
    searched = run_ablation(*arguments(seeds=[0], exponents=[16, 2.5, 4]))
    published = [("vit_shapley-uniform-0", None), ("salvage-uniform-0", None), ("salvage-guided-0", 1.0)]
    sharper = [(8.0, "8"), (2.5, "2.5"), (16, "16"), (4, "4")]
    assert trained == published + [(f"salvage-guided-{word}-0", exponent) for exponent, word in sharper]
    assert searched == read_ablation(tmp_path / "out")
    assert searched["exponents"] == [2.5, 4, 8, 16]
    titles = [line.split("|")[1].strip() for line in ablation_table(searched).splitlines()[2:]]
    assert titles[:3] == ["ViT-Shapley (MSE)", "Salvage, uninformed", "Salvage, informed"]
    assert titles[3:] == [f"Salvage, exponent {word}" for word in ("2.5", "4", "8", "16")]


@pytest.mark.usefixtures("two_arms")
def test_scores_are_those_of_the_last_model(arguments, tmp_path):
    args, shared = arguments(seeds=[0])
    arms = run_ablation(args, shared)["arms"]
    for name, method in (("salvage-guided", "salvage"), ("vit_shapley-uniform", "vit_shapley")):
        last = str(tmp_path / "out" / f"{name}-0" / "last")
        assert AutoModel.from_pretrained(last).config.paired_values == (method == "salvage")
        results = run_benchmark(
            BenchmarkArguments(
                model_name_or_path=shared.model_name_or_path,
                explainers=[f"{method}={last}"],
                methods=[method],
                validation_dir=shared.validation_dir,
                max_eval_samples=5,
                budget=9,
                output_dir=str(tmp_path / f"scores_{method}"),
            )
        )
        for score in ("srg", "r_srg"):
            assert arms[name]["0"][score] == results["methods"][method][score]
            assert len(arms[name]["0"][score]) == 5


@pytest.mark.usefixtures("two_arms")
def test_a_stopped_training_goes_on_from_its_checkpoint(arguments, monkeypatch, tmp_path):
    whole = run_ablation(*arguments(seeds=[0]))
    changes = {"output_dir": str(tmp_path / "stopped"), "checkpointing_steps": 2}
    steps, step = [], torch.optim.AdamW.step

    def stopped_at_the_fourth(self, *inputs, **options):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append("before")
        return step(self, *inputs, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopped_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(*arguments(seeds=[0], **changes))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **o: steps.append("after") or step(self, *a, **o))
    resumed = run_ablation(*arguments(seeds=[0], **changes))
    assert steps == ["before"] * 3 + ["after"] * (2 + 4)  # the first arm repeats two steps
    for name in whole["arms"]:
        assert resumed["arms"][name]["0"]["srg"] == pytest.approx(whole["arms"][name]["0"]["srg"], abs=1e-5)


def test_steps_are_fixed_from_the_start(arguments, monkeypatch, tmp_path):
    """A run that is stopped in its first arm does not go on with another schedule."""

    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "run_benchmark", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(*arguments(seeds=[0]))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"other arguments \(before, now\): {'max_train_steps': \(4, 8\)}"):
        run_ablation(*arguments(seeds=[0], max_train_steps=8))


@pytest.mark.usefixtures("two_arms")
def test_one_run_follows_another_in_two_processes(arguments, run_two, tmp_path):
    _, shared = arguments(per_device_train_batch_size=2)
    words = ["--seeds", "0", "--budget", "9", "--max_scored_samples", "5"]
    for name in ("model_name_or_path", "train_dir", "validation_dir", "output_dir", "max_train_steps", "new_subsets"):
        words += [f"--{name}", str(getattr(shared, name))]
    run_two("ablation", *words, "--per_device_train_batch_size", "2", "--learning_rate", "1e-3")
    two = json.loads((tmp_path / "out" / "ablation.json").read_text())
    one = run_ablation(*arguments(seeds=[0], output_dir=str(tmp_path / "one")))
    for name, runs in one["arms"].items():
        assert two["arms"][name]["0"]["r_srg"] == pytest.approx(runs["0"]["r_srg"], abs=1e-4)


@pytest.mark.usefixtures("two_arms")
def test_arms_of_another_classifier_do_not_join(arguments, tmp_path):
    run_ablation(*arguments(seeds=[0]))
    before = (tmp_path / "out" / "ablation.json").read_text()
    weights = load_file(tmp_path / "classifier" / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, tmp_path / "classifier" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="classifier or images have changed; give another output_dir"):
        run_ablation(*arguments(seeds=[1]))
    assert (tmp_path / "out" / "ablation.json").read_text() == before


@pytest.mark.usefixtures("two_arms")
def test_error_messages(arguments):
    with pytest.raises(ValueError, match="an ablation needs max_train_steps"):
        run_ablation(*arguments(max_train_steps=None))
    with pytest.raises(ValueError, match="an ablation needs validation_dir, or a data set"):
        run_ablation(*arguments(validation_dir=None))
    with pytest.raises(ValueError, match="budget must be at least 5, got 4"):
        arguments(budget=4)
    with pytest.raises(ValueError, match="max_scored_samples must be at least 1, got 0"):
        AblationArguments(max_scored_samples=0)
    with pytest.raises(ValueError, match="new_subsets must be at least 4, got 2"):
        run_ablation(*arguments(new_subsets=2))
    run_ablation(*arguments(seeds=[0], max_train_steps=1))
    with pytest.raises(ValueError, match=r"other arguments \(before, now\): {'max_train_steps': \(1, 2\)}"):
        run_ablation(*arguments(seeds=[0], max_train_steps=2))


def test_a_run_that_has_no_score_yet_stands_in_no_figure(arguments, monkeypatch, tmp_path):
    """A half-finished ablation is said to be one; arms without a finished run are left out."""

    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "train_explainer", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(*arguments(seeds=[0]))
    with pytest.raises(ValueError, match=r"ablation\.json' holds no finished run: run salvage ablation again"):
        read_ablation(tmp_path / "out")


def test_damaged_runs_are_refused_by_name_before_any_training(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(ablation, "train_explainer", None)
    (tmp_path / "out").mkdir()
    for wrong in ("", "[]", '{"settings": {}}', '{"settings": {"max_train_steps": 4}, "arms": {"other": {}}}'):
        (tmp_path / "out" / "ablation.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"out/ablation\.json' is not what salvage ablation writes: "):
            run_ablation(*arguments(seeds=[0]))


def test_two_ablations_do_not_write_to_one_folder(arguments, monkeypatch, tmp_path):
    def hold():
        with locked(tmp_path / "out", "salvage ablation"):
            (tmp_path / "held").touch()
            time.sleep(60)

    monkeypatch.setattr(ablation, "train_explainer", None)
    first = Forked(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(ValueError, match=rf"is being written by process {first.process.pid} on .*salvage ablation\)"):
        run_ablation(*arguments(seeds=[0]))
    first.kill()
