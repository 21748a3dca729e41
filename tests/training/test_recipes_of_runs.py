"""The recipe beside the results of a training run computes the run again, bit for bit."""

import shutil
import sys

import pytest
import yaml
from tiny_runs import assert_same_run, files_of, forget_accelerators

from salvage_hf.cli import parse_arguments
from salvage_hf.recipes import RECIPE
from salvage_hf.training.classifier import ClassifierArguments, train_classifier
from salvage_hf.training.explainer import ExplainerArguments, ExplainerTask, train_explainer


@pytest.fixture
def parse(monkeypatch):
    """A function: a folder and further words -> the arguments that its recipe gives."""

    def read(kind, folder, *words):
        monkeypatch.setattr(sys, "argv", ["script.py", "--config", str(folder / RECIPE), *words])
        forget_accelerators()
        return parse_arguments(kind, description=None)[0]

    return read


def test_an_explainer_is_trained_again_from_its_recipe(straight, parse, tmp_path):
    train_explainer(parse(ExplainerArguments, straight, "--output_dir", str(tmp_path / "again")))
    assert_same_run(tmp_path / "again", straight)
    assert files_of(tmp_path / "again") == files_of(straight)
    before, now = ((folder / RECIPE).read_text() for folder in (straight, tmp_path / "again"))
    assert now == before.replace(str(straight), str(tmp_path / "again"))
    assert now.startswith(
        "# accelerate launch --num_processes 1 --mixed_precision no -m salvage_hf train --config recipe.yaml\n"
    )


def test_another_seed_gives_another_explainer(straight, parse, tmp_path):
    train_explainer(parse(ExplainerArguments, straight, "--output_dir", str(tmp_path / "other"), "--seed", "4"))
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "other", straight)


def test_a_classifier_is_trained_again_from_its_recipe(data, parse, tmp_path):
    args = ClassifierArguments(
        model_name_or_path=str(data / "classifier"),
        train_dir=str(data / "train"),
        validation_dir=str(data / "validation"),
        output_dir=str(tmp_path / "run"),
        mask_patches=True,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_train_steps=4,
        validation_steps=2,
        seed=3,
    )
    train_classifier(args)
    assert " train-classifier --config " in (tmp_path / "run" / RECIPE).read_text()
    train_classifier(parse(ClassifierArguments, tmp_path / "run", "--output_dir", str(tmp_path / "again")))
    assert_same_run(tmp_path / "again", tmp_path / "run")


def test_a_killed_run_has_its_recipe_which_goes_on_or_begins_anew(straight, arguments, parse, tmp_path):
    class Task(ExplainerTask):
        def loss(self, model, batch, step):
            if step == 5:
                raise KeyboardInterrupt
            return super().loss(model, batch, step)

    with pytest.raises(KeyboardInterrupt):
        train_explainer(arguments(), task=Task)
    for folder, words in (("again", ["--output_dir", str(tmp_path / "again")]), ("run", [])):
        args = parse(ExplainerArguments, tmp_path / "run", *words, "--resume_from_checkpoint", "latest")
        train_explainer(args)
        assert_same_run(tmp_path / folder, straight)
        assert "resume_from_checkpoint" not in (tmp_path / folder / RECIPE).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume_from_checkpoint": "latest", "seed": 4}, "other arguments"),
        ({"resume_from_checkpoint": "latest", "max_train_steps": 2}, "after the last one, 2"),
        ({"train_dir": "nowhere"}, "'nowhere' is not a folder"),
        ({"per_device_train_batch_size": 15}, "less than one batch"),
    ],
)
def test_a_run_that_is_refused_leaves_the_recipe_of_the_results(straight, arguments, tmp_path, changes, message):
    folder = shutil.copytree(straight, tmp_path / "run")
    before = (folder / RECIPE).read_bytes()
    with pytest.raises(ValueError, match=message):
        train_explainer(arguments(**changes))
    assert (folder / RECIPE).read_bytes() == before


def test_the_recipe_holds_the_batches_that_were_asked_for(arguments, monkeypatch, tmp_path):
    class Task(ExplainerTask):
        def loss(self, model, batch, step):
            if len(batch["ids"]) > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().loss(model, batch, step)

    train_explainer(arguments(auto_find_batch_size=True, max_train_steps=1, per_device_eval_batch_size=4), task=Task)
    held = yaml.safe_load((tmp_path / "run" / RECIPE).read_text())
    assert held["auto_find_batch_size"] is True
    assert (held["per_device_train_batch_size"], held["per_device_eval_batch_size"]) == (4, 4)
    assert held["gradient_accumulation_steps"] == 1
