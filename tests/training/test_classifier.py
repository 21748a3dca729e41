"""scripts/train_classifier.py: fine-tuning, with and without hidden patches."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetForImageClassification,
)

from salvage_hf import MaskedClassifier
from salvage_hf.pretrained import load_model
from salvage_hf.training.classifier import ClassifierArguments, classification_loss, train_classifier

#: As `ClassifierTask` loads a model for two classes.
OTHER_HEAD = {"ignore_mismatched_sizes": True, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}


@pytest.fixture
def arguments(tiny_classifier, save_processor, tmp_path):
    tiny_classifier("dinov2_with_registers", num_labels=2).save_pretrained(tmp_path / "start")
    save_processor(tmp_path / "start")
    rng = np.random.default_rng(0)
    for label, level in (("bright", 200), ("dark", 60)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(16):
            pixels = (level + rng.normal(0, 20, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")

    def build(**changes):
        return ClassifierArguments(
            **{
                "model_name_or_path": str(tmp_path / "start"),
                "train_dir": str(tmp_path / "images"),
                "train_val_split": 0.25,
                "per_device_train_batch_size": 8,
                "learning_rate": 3e-3,
                "max_train_steps": 30,
                "validation_steps": 15,
                "output_dir": str(tmp_path / "out"),
                **changes,
            }
        )

    return build


@pytest.mark.parametrize("one_label", [False, True])
def test_it_learns_and_loads(arguments, tmp_path, one_label):
    results = train_classifier(arguments(mask_patches=True, one_label=one_label))
    assert results["eval_accuracy"] > 0.9
    v = MaskedClassifier.from_pretrained(str(tmp_path / "out"))
    assert v.num_labels == (1 if one_label else 2)
    assert list(v.config.id2label.values()) == (["dark"] if one_label else ["bright", "dark"])
    assert v.grid_size == (4, 4)


def test_another_image_size(arguments, tmp_path):
    """The processor stores the new size and keeps the whole picture, without a crop to the old size."""
    train_classifier(arguments(max_train_steps=1, image_size=24))
    v = MaskedClassifier.from_pretrained(str(tmp_path / "out"))
    assert v.grid_size == (6, 6)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    picture = Image.fromarray(np.tile(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], (20, 1, 3)))
    seen = processor(picture, return_tensors="pt")["pixel_values"][0, 0]
    assert seen.shape == (24, 24)
    darkest, brightest = (255 * (seen[:, column] * 0.25 + 0.5).mean() for column in (0, -1))
    assert darkest < 15
    assert brightest > 240


def test_hidden_patches_are_hidden_in_training(arguments, monkeypatch):
    seen = []
    forward = MaskedClassifier.forward
    monkeypatch.setattr(
        MaskedClassifier,
        "forward",
        lambda self, pixels, subsets: seen.append(subsets) or forward(self, pixels, subsets),
    )
    train_classifier(arguments(mask_patches=True, max_train_steps=40, validation_steps=40))
    drawn = [s for s in seen if s.shape[1] == 1]
    sizes = torch.tensor([s.sum(-1).unique().item() for s in drawn])  # one size per step
    assert len(drawn) == 40
    assert sizes.min() < 4
    assert sizes.max() > 12
    assert (sizes.float().mean() - 8).abs() < 4 * (17**2 / 12 / 40) ** 0.5


def test_without_masking_everything_is_visible(arguments, monkeypatch):
    seen = []
    forward = MaskedClassifier.forward
    monkeypatch.setattr(
        MaskedClassifier,
        "forward",
        lambda self, pixels, subsets: seen.append(subsets) or forward(self, pixels, subsets),
    )
    train_classifier(arguments(max_train_steps=2, validation_steps=2))
    assert all(s.all() for s in seen[:2])


@pytest.fixture
def start_from(tiny_classifier, save_processor, tmp_path):
    """A function: writes a classifier of a family for `arguments` to start from, and returns its folder."""

    def write(family, **config):
        tiny_classifier(family, num_labels=2, **config).save_pretrained(tmp_path / family)
        save_processor(tmp_path / family)
        return str(tmp_path / family)

    return write


@pytest.mark.parametrize("family", ["resnet", "swin"])
def test_models_without_patches_learn_from_hidden_pixels(arguments, start_from, tmp_path, family):
    start = {"model_name_or_path": start_from(family), "mask_patches": True}
    with pytest.raises(ValueError, match=f"patch_size is needed for a {family} model, whose config states no patches"):
        train_classifier(arguments(**start))
    with pytest.raises(ValueError, match=r"not divided by patches of 5 x 5|patch_size=5 does not divide the images"):
        train_classifier(arguments(**start, patch_size=5))
    results = train_classifier(arguments(**start, patch_size=4))
    assert results["eval_accuracy"] > 0.9
    assert results["eval_accuracy_half"] > 0.9
    v = MaskedClassifier.from_pretrained(str(tmp_path / "out"), patch_size=4)
    assert (v.masking, v.grid_size) == ("zero", (4, 4))


def test_the_first_stage_of_a_model_without_patches_needs_none(arguments, start_from, tmp_path):
    results = train_classifier(arguments(model_name_or_path=start_from("resnet")))
    assert results["eval_accuracy"] == results["eval_score"] > 0.9
    assert "eval_accuracy_half" not in results
    other = arguments(model_name_or_path=start_from("resnet"), patch_size=4, output_dir=str(tmp_path / "other"))
    assert train_classifier(other)["eval_accuracy"] == results["eval_accuracy"]


def test_patches_that_are_not_the_models_own_are_hidden_in_the_pixels(arguments, caplog):
    caplog.set_level("INFO")
    train_classifier(arguments(patch_size=8, mask_patches=True))
    assert "masking='zero': hidden patches of 8 x 8 pixels become zeros" in caplog.text


def test_a_convolutional_model_sees_a_whole_batch_of_mixed_sizes(arguments, start_from, monkeypatch):
    """Its batch norms average over a forward: over all images of a step, and over all shares of visible patches."""
    start, seen, forward = start_from("resnet"), [], MaskedClassifier.forward

    def spy(self, pixels, subsets):
        if self.training:
            seen.append(subsets.sum(-1)[:, 0])
        return forward(self, pixels, subsets)

    rows, inner = [], ResNetForImageClassification.forward
    monkeypatch.setattr(MaskedClassifier, "forward", spy)
    monkeypatch.setattr("salvage_hf.masking.masked_classifier.tokens_that_fit", lambda device, size: 1)
    monkeypatch.setattr(
        ResNetForImageClassification,
        "forward",
        lambda self, pixels, **options: (self.training and rows.append(len(pixels))) or inner(self, pixels, **options),
    )
    train_classifier(
        arguments(model_name_or_path=start, mask_patches=True, patch_size=4, max_train_steps=20, validation_steps=20)
    )
    assert rows == [8] * 20
    assert min(len(sizes.unique()) for sizes in seen) > 1
    sizes = torch.cat(seen)
    counts = torch.bincount(sizes, minlength=17).double()
    expected = len(sizes) / 17
    assert ((counts - expected) ** 2 / expected).sum() < 39.25  # the 0.1% quantile of chi squared with 16 degrees


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers", "vit", "deit", "deit_teacher", "resnet", "swin"])
def test_only_the_head_may_be_new(tiny_classifier, tmp_path, family):
    """A backbone alone, and a classifier of other labels, get a new head; a backbone must be complete."""

    def load(**changes):
        return load_model(AutoModelForImageClassification, str(tmp_path), new_head=True, **OTHER_HEAD, **changes)

    classifier = tiny_classifier(family, num_labels=3)
    backbone = classifier.base_model
    for model in (backbone, classifier):
        model.save_pretrained(tmp_path)
        if model is backbone:  # the classes of DeiT are told apart by the name in the config
            named = {**backbone.config.to_dict(), "architectures": [type(classifier).__name__]}
            (tmp_path / "config.json").write_text(json.dumps(named))
        loaded = load()
        assert loaded.config.num_labels == 2
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(loaded.base_model.state_dict()[name], tensor), name
    weights = load_file(tmp_path / "model.safetensors")
    prefix = f"{classifier.base_model_prefix}."
    name = next(name for name in weights if name.endswith("weight") and name.startswith(prefix))
    lost = weights.pop(name)
    for damaged in (weights, {**weights, name: torch.cat([lost, lost])}):
        save_file(damaged, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(
            ValueError, match=rf"lacks 1 weights of a .* in other shapes, .* random: {re.escape(name)};"
        ):
            load()


@pytest.mark.parametrize("family", ["levit", "poolformer"])
def test_a_head_may_have_any_name(tmp_path, family):
    """Of LeViT's heads none is called "classifier"; PoolFormer's last norm lies beyond its backbone."""
    small = {"num_attention_heads": [2, 2, 2], "hidden_sizes": [16, 16, 16], "depths": [1, 1, 1], "key_dim": [8] * 3}
    config = AutoConfig.for_model(family, **(small if family == "levit" else {}), num_labels=3)
    config.architectures = [{"levit": "Levit", "poolformer": "PoolFormer"}[family] + "ForImageClassification"]
    backbone = AutoModelForImageClassification.from_config(config).base_model
    backbone.save_pretrained(tmp_path)
    loaded = load_model(AutoModelForImageClassification, str(tmp_path), new_head=True, **OTHER_HEAD)
    assert loaded.config.num_labels == 2


def test_a_backbone_with_missing_weights_is_not_trained(arguments, tmp_path):
    weights = load_file(tmp_path / "start" / "model.safetensors")
    del weights["dinov2_with_registers.embeddings.cls_token"]
    save_file(weights, tmp_path / "start" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"start' lacks 1 weights of a .*: dinov2_with_registers\.embeddings\.cls_token"
    ):
        train_classifier(arguments())


def test_losses_are_the_literal_ones():
    logits, labels = torch.tensor([[0.3, -1.0], [2.0, 0.1]]), torch.tensor([0, 1])
    probabilities = logits.softmax(-1)
    literal = -(probabilities[0, 0].log() + probabilities[1, 1].log()) / 2
    torch.testing.assert_close(classification_loss(logits, labels), literal)
    one = logits[:, :1]
    literal = -((1 - one[0, 0].sigmoid()).log() + one[1, 0].sigmoid().log()) / 2
    torch.testing.assert_close(classification_loss(one, labels), literal)


def test_one_class_is_no_classifier(arguments, tmp_path):
    shutil.rmtree(tmp_path / "images" / "bright")
    with pytest.raises(ValueError, match=r"a classifier needs at least two classes, the data set has 1: \['dark'\]"):
        train_classifier(arguments())


def test_error_messages(arguments, tmp_path):
    with pytest.raises(ValueError, match="model_name_or_path is needed"):
        ClassifierArguments()
    (tmp_path / "images" / "third").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "third" / "0.png")
    with pytest.raises(ValueError, match="one_label needs two classes, the data set has 3"):
        train_classifier(arguments(one_label=True))
