"""Runs that cannot succeed say why: numbers that are not finite, and an output folder that vanishes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import CLASSES, make_arguments

from salvage_hf import MaskedClassifier
from salvage_hf.files import LOCK
from salvage_hf.recipes import RECIPE
from salvage_hf.training.explainer import ExplainerTask, train_explainer


@pytest.mark.parametrize(
    ("part", "index", "name", "told"),
    [
        ("train_images", 3, f"{CLASSES[0]}/3.png", "the loss is nan before step 3"),
        ("eval_images", 4, f"{CLASSES[1]}/2.png", r"the validation's scores are {.*nan.*} before step 3"),
    ],
    ids=["training", "validation"],
)
def test_an_image_without_a_finite_prediction_is_named(arguments, monkeypatch, tmp_path, part, index, name, told):
    """It is not the learning rate."""

    class Task(ExplainerTask):
        def __init__(self, args, accelerator):
            super().__init__(args, accelerator)
            bad = getattr(self, part)[index]["pixel_values"]
            monkeypatch.setattr(MaskedClassifier, "logits", lambda *given: no_answer(bad, *given))

    logits = MaskedClassifier.logits

    def no_answer(bad, self, pixel_values, subsets):
        answers = logits(self, pixel_values, subsets)
        answers[(pixel_values == bad).flatten(1).all(dim=1)] = torch.nan
        return answers

    message = rf"{told}: the classifier's predictions for image {name} are NaN or infinite"
    with pytest.raises(FloatingPointError, match=message):
        train_explainer(arguments(validation_steps=3, checkpointing_steps=3, max_train_steps=3), task=Task)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK, RECIPE}


def test_a_classifier_with_weights_that_are_not_numbers_is_refused(data, tmp_path):
    folder = shutil.copytree(data / "classifier", tmp_path / "classifier")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    args = make_arguments(data, tmp_path / "run", model_name_or_path=str(folder))
    with pytest.raises(ValueError, match=r"has weights that are NaN or infinite: classifier\.weight"):
        train_explainer(args)


def test_an_output_folder_that_vanishes_is_an_error_at_the_end(arguments, tmp_path):
    """The best model was written before; the last one is still written."""

    class Task(ExplainerTask):
        def loss(self, model, batch, step):
            if step == 3:
                shutil.rmtree(tmp_path / "run")
            return super().loss(model, batch, step)

        def evaluate(self, model):
            return {**super().evaluate(model), "srg": -self.validations.pop()}

        validations = [3, 2, 1]  # popped from the end: the first score is the best

    with pytest.raises(RuntimeError, match=r"run' does not hold the best model, of step 2: the folder was removed"):
        train_explainer(arguments(max_train_steps=6, validation_steps=2), task=Task)
    assert (tmp_path / "run" / "last" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["step"] == 2
