"""A checkpoint knows the classifier, the image processor and the images that it was made with."""

import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import CLASSES, forget_accelerators, make_arguments

from salvage_hf.training.classifier import ClassifierArguments, ClassifierTask
from salvage_hf.training.explainer import ExplainerTask, train_explainer
from salvage_hf.training.setup import make_accelerator


@pytest.fixture
def own_data(data, tmp_path):
    """A copy of the data, to be changed."""
    return shutil.copytree(data, tmp_path / "data")


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(data):
    file = data / "classifier" / "model.safetensors"
    weights = load_file(file)
    weights["dinov2_with_registers.embeddings.cls_token"] += 1e-3
    save_file(weights, file, {"format": "pt"})


def invert(file):
    with Image.open(file) as opened:
        Image.eval(opened, lambda value: 255 - value).save(file)


CHANGES = {
    "weights": (change_weights, "classifier_content"),
    "config": (lambda data: edit_json(data / "classifier" / "config.json", layer_norm_eps=0.1), "classifier_content"),
    "processor": (
        lambda data: edit_json(data / "classifier" / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3]),
        "processor_content",
    ),
    "image": (lambda data: invert(data / "train" / CLASSES[0] / "3.png"), "training_images"),
    "class": (
        lambda data: (data / "train" / CLASSES[0] / "6.png").rename(data / "train" / CLASSES[1] / "60.png"),
        "training_images",
    ),
    "one less": (lambda data: (data / "train" / CLASSES[1] / "6.png").unlink(), "training_images"),
    "validation": (lambda data: invert(data / "validation" / CLASSES[1] / "1.png"), "validation_images"),
}


@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES)
def test_what_an_explainer_is_made_with(own_data, tmp_path, change, name):
    def made_with():
        forget_accelerators()
        args = make_arguments(own_data, tmp_path / "run")
        return ExplainerTask(args, make_accelerator(args)).made_with()

    before = made_with()
    assert made_with() == before
    change(own_data)
    after = made_with()
    assert {key for key in before if before[key] != after[key]} == {name}


@pytest.mark.parametrize(
    ("change", "name"),
    [(change, name.replace("classifier", "backbone")) for change, name in CHANGES.values()],
    ids=CHANGES,
)
def test_what_a_classifier_is_made_with(own_data, tmp_path, change, name):
    def made_with():
        forget_accelerators()
        args = ClassifierArguments(
            model_name_or_path=str(own_data / "classifier"),
            train_dir=str(own_data / "train"),
            validation_dir=str(own_data / "validation"),
            output_dir=str(tmp_path / "run"),
        )
        return ClassifierTask(args, make_accelerator(args)).made_with()

    before = made_with()
    change(own_data)
    after = made_with()
    assert {key for key in before if before[key] != after[key]} == {name}


def test_a_run_is_not_resumed_with_another_classifier(own_data, tmp_path):
    """With a frozen backbone, the features would come from the new classifier, and the saved backbone from the old."""
    args = make_arguments(
        own_data, tmp_path / "run", max_train_steps=2, freeze_backbone=True, resume_from_checkpoint="latest"
    )
    train_explainer(args)
    change_weights(own_data)
    forget_accelerators()
    with pytest.raises(
        ValueError, match=r"step_2' was written with other .*contents \(before, now\): {'classifier_con"
    ):
        train_explainer(args)
