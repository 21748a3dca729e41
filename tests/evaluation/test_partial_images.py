"""What a classifier says of partial images: the curve, its picture, and the card that shows it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import ModelCard
from local_hub import run_on
from PIL import Image

from salvage_hf import MaskedClassifier
from salvage_hf.evaluation import partial_images
from salvage_hf.evaluation.partial_images import DescribedClassifierTask, draw_curve, partial_image_curve
from salvage_hf.hub.cards import licence_of
from salvage_hf.training.classifier import ClassifierArguments, train_classifier


@pytest.fixture(autouse=True)
def each_run_as_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def arguments(tiny_classifier, save_processor, tmp_path):
    """A factory: arguments of a short training on pictures of two classes."""
    rng = np.random.default_rng(0)
    for label, level in (("bright", 200), ("dark", 60)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(7):
            pixels = (level + rng.normal(0, 20, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")

    def build(family="dinov2_with_registers", names=("bright", "dark"), **changes):
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
        tiny_classifier(family, num_labels=len(names), **labels).save_pretrained(tmp_path / "start")
        save_processor(tmp_path / "start")
        return ClassifierArguments(
            **{
                "model_name_or_path": str(tmp_path / "start"),
                "train_dir": str(tmp_path / "images"),
                "validation_dir": str(tmp_path / "images"),
                "per_device_train_batch_size": 4,
                "per_device_eval_batch_size": 3,
                "mask_patches": True,
                "max_train_steps": 2,
                "output_dir": str(tmp_path / "out"),
                **changes,
            }
        )

    return build


def train(args):
    return train_classifier(args, task=DescribedClassifierTask)


def curve_of(folder):
    return json.loads((folder / "partial_images.json").read_text())


# The curve


def batches_of(images, number, size, labels):
    pixel_values = images(number)
    ids = torch.arange(number) + 5
    for start in range(0, number, size):
        part = slice(start, start + size)
        yield {"pixel_values": pixel_values[part], "labels": labels[part], "ids": ids[part]}


def recorded(v):
    """The subsets that a classifier is asked about, gathered in a list."""
    asked, logits = [], v.logits
    v.logits = lambda pixel_values, subsets: asked.append(subsets) or logits(pixel_values, subsets)
    return asked


@pytest.mark.parametrize(("family", "num_labels"), [("dinov2", 3), ("dinov2", 1), ("resnet", 3)])
def test_the_curve_is_the_literal_one(tiny_classifier, images, family, num_labels):
    v, first = (
        MaskedClassifier(tiny_classifier(family, num_labels=num_labels, seed=seed), patch_size=4) for seed in (0, 1)
    )
    labels = torch.tensor([0, 1, 1, 0, 1])
    asked = recorded(v)
    curve = partial_image_curve(v, first, None, batches_of(images, 5, 2, labels), seed=3)
    drawn = torch.cat(asked)  # [5, M, 16]
    assert curve["shares"] == [0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1]
    assert {name: curve[name] for name in ("images", "draws", "num_patches", "patch_size")} == {
        "images": 5,
        "draws": 2,
        "num_patches": 16,
        "patch_size": 4,
    }
    pixel_values = images(5)

    def probabilities(model, image, subset):
        found = model.probabilities(pixel_values[image : image + 1], subset[None, None])[0, 0].double().tolist()
        return [1 - found[0], found[0]] if num_labels == 1 else found

    for name, model in (("classifier", v), ("first_stage", first)):
        for place, share in enumerate(curve["shares"]):
            hits, divergences = [], []
            for image in range(5):
                whole = probabilities(first, image, torch.ones(16, dtype=torch.bool))
                subsets = [subset for subset in drawn[image] if subset.sum() == 16 * share]
                assert len(subsets) == (1 if share in (0, 1) else 2)
                answers = [probabilities(model, image, subset) for subset in subsets]
                hits.append(np.mean([int(np.argmax(answer)) == labels[image] for answer in answers]))
                divergences.append(
                    np.mean([sum(p * math.log(p / q) for p, q in zip(whole, a, strict=True)) for a in answers])
                )
            for measure, values in (("accuracy", hits), ("kl", divergences)):
                expected = np.mean(values), np.std(values, ddof=1) / 5**0.5
                np.testing.assert_allclose(curve[name][measure][place], expected, rtol=1e-4, atol=1e-5)
    assert curve["first_stage"]["kl"][-1][0] == pytest.approx(0, abs=1e-9)
    assert curve["classifier"]["kl"][-1][0] > 0.01


def test_batches_change_no_number(tiny_classifier, images):
    v, first = (MaskedClassifier(tiny_classifier(seed=seed)) for seed in (0, 1))
    labels = torch.arange(7) % 3
    one, other = (partial_image_curve(v, first, None, batches_of(images, 7, size, labels)) for size in (7, 2))
    for name in ("classifier", "first_stage"):
        for measure in ("accuracy", "kl"):
            np.testing.assert_allclose(one[name][measure], other[name][measure], atol=1e-5)
    another = partial_image_curve(v, first, None, batches_of(images, 7, 7, labels), seed=1)
    assert another["classifier"]["kl"][3] != one["classifier"]["kl"][3]


def test_labels_in_another_order(tiny_classifier, images):
    """A first stage that is the classifier with its head turned round has no divergence from it."""
    v, turned = (MaskedClassifier(tiny_classifier()) for _ in range(2))
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter in turned.classifier.classifier.parameters():
            parameter.copy_(parameter[[order.index(k) for k in range(3)]])
    labels = torch.zeros(3, dtype=torch.int64)
    curve = partial_image_curve(v, turned, order, batches_of(images, 3, 3, labels))
    np.testing.assert_allclose(curve["classifier"]["kl"], curve["first_stage"]["kl"], atol=1e-6)
    assert curve["classifier"]["kl"][-1][0] == pytest.approx(0, abs=1e-6)


def test_answers_that_are_not_finite_are_refused(tiny_classifier, images):
    v = MaskedClassifier(tiny_classifier())
    v.classifier.classifier.bias.data[0] = float("inf")
    with pytest.raises(ValueError, match="the classifier answers NaN or infinity to parts of these images"):
        partial_image_curve(v, None, None, batches_of(images, 2, 2, torch.tensor([0, 1])))


# A run of training


def test_a_run_ends_with_curve_picture_and_card(arguments, tmp_path):
    train(arguments())
    curve = curve_of(tmp_path / "out")
    assert curve["images"] == 14
    first, v = (MaskedClassifier.from_pretrained(str(tmp_path / name)) for name in ("start", "out"))
    everything = torch.ones(1, 1, 16, dtype=torch.bool)
    hits, divergences = {"out": [], "start": []}, []
    for label, name in enumerate(("bright", "dark")):
        for file in sorted((tmp_path / "images" / name).iterdir()):
            pixel_values = v.processor(Image.open(file), return_tensors="pt")["pixel_values"]
            p, q = (model.probabilities(pixel_values, everything)[0, 0].double() for model in (first, v))
            hits["start"].append(float(p.argmax() == label))
            hits["out"].append(float(q.argmax() == label))
            divergences.append((p * (p / q).log()).sum().item())
    assert curve["classifier"]["accuracy"][-1][0] == pytest.approx(np.mean(hits["out"]))
    assert curve["first_stage"]["accuracy"][-1][0] == pytest.approx(np.mean(hits["start"]))
    assert curve["classifier"]["kl"][-1][0] == pytest.approx(np.mean(divergences), abs=1e-5)
    assert Image.open(tmp_path / "out" / "partial_images.png").size[0] > 600
    text = (tmp_path / "out" / "README.md").read_text()
    assert "](partial_images.png)" in text
    mean, error = curve["classifier"]["kl"][3]
    assert f" {mean:.3f} ± {error:.3f} |" in text


def test_two_processes_draw_the_same_curve(arguments, run_two, tmp_path):
    args = arguments(learning_rate=1e-12)
    train(args)
    words = []
    changed = dataclasses.replace(args, output_dir=str(tmp_path / "two"), per_device_train_batch_size=2)
    for name, value in dataclasses.asdict(changed).items():
        if value not in (None, False, ""):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    run_two("train-classifier", *words)
    one, two = (curve_of(tmp_path / name) for name in ("out", "two"))
    assert one["images"] == two["images"] == 14
    for name in ("classifier", "first_stage"):
        for measure in ("accuracy", "kl"):
            np.testing.assert_allclose(one[name][measure], two[name][measure], atol=1e-5)


def test_whole_images_alone_draw_no_curve(arguments, tmp_path):
    train(arguments(mask_patches=False))
    assert not list((tmp_path / "out").glob("partial_images*"))
    assert "It has not seen partial images" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("names", [("cat", "dog"), ("bright", "dark", "grey")])
def test_without_a_first_stage_of_these_labels(arguments, tmp_path, names, caplog):
    train(arguments(names=names))
    curve = curve_of(tmp_path / "out")
    assert "first_stage" not in curve
    assert list(curve["classifier"]) == ["accuracy"]
    assert "There is no first stage to compare with: " in caplog.text
    assert Image.open(tmp_path / "out" / "partial_images.png").size[0] < 600  # one panel
    assert "| visible patches | accuracy |\n|---|---|\n" in (tmp_path / "out" / "README.md").read_text()


def test_names_of_labels_are_matched(arguments, tmp_path):
    """Folders named by WordNet hold the classes of a first stage that has other spellings, in another order."""
    (tmp_path / "images").mkdir(exist_ok=True)
    args = arguments(names=("Dark", "Bright"))
    train(args)
    found = curve_of(tmp_path / "out")["first_stage"]["accuracy"][-1][0]
    first = MaskedClassifier.from_pretrained(str(tmp_path / "start"))
    hits = []
    for label, name in ((1, "bright"), (0, "dark")):
        for file in sorted((tmp_path / "images" / name).iterdir()):
            pixel_values = first.processor(Image.open(file), return_tensors="pt")["pixel_values"]
            logits = first.logits(pixel_values, torch.ones(1, 1, 16, dtype=torch.bool))
            hits.append(float(logits.argmax() == label))
    assert found == pytest.approx(np.mean(hits))


def test_one_image_has_no_standard_error(tiny_classifier, images):
    v = MaskedClassifier(tiny_classifier())
    curve = partial_image_curve(v, None, None, batches_of(images, 1, 1, torch.tensor([0])))
    assert {error for _, error in curve["classifier"]["accuracy"]} == {None}
    assert draw_curve(curve) is not None


# The card


def test_both_stages_are_in_the_card(arguments, tmp_path):
    train(arguments(mask_patches=False, output_dir=str(tmp_path / "first"), num_warmup_steps=1))
    AcceleratorState._reset_state(reset_partial_state=True)
    second = dataclasses.replace(
        arguments(), model_name_or_path=str(tmp_path / "first"), weight_decay=0.5, hub_model_id="org/dinov2-pet"
    )
    train(second)
    text = (tmp_path / "out" / "README.md").read_text()
    before, after = text.partition("First stage: the arguments")[2].split("Second stage: the arguments")
    assert "| --num_warmup_steps | 1 |" in before
    assert "--mask_patches" not in before
    assert "| --mask_patches | True |\n" in after
    assert "| --weight_decay | 0.5 |\n" in after
    assert str(tmp_path) not in text
    assert 'model="org/dinov2-pet"' in text
    assert "`salvage train --model_name_or_path org/dinov2-pet`" in text


def test_licence_and_base_model_are_those_of_the_start(arguments, tmp_path):
    args = arguments(mask_patches=False)
    (tmp_path / "start" / "README.md").write_text("---\nlicense: mit\n---\n# It\n")
    train(args)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "mit"
    assert card.data.base_model is None
    assert "licence of the model" not in card.text
    recipe = tmp_path / "start" / "recipe.yaml"
    recipe.write_text("model_name_or_path: facebook/dinov2-small\n")
    (tmp_path / "start" / "README.md").unlink()
    licence_of.cache_clear()  # another process would read it anew
    AcceleratorState._reset_state(reset_partial_state=True)
    train(dataclasses.replace(args, output_dir=str(tmp_path / "again")))
    card = ModelCard.load(tmp_path / "again" / "README.md")
    assert card.data.license is None
    assert card.data.base_model == "facebook/dinov2-small"
    assert "The licence of the model that training started from is not known here" in card.text
    recipe.write_text("methods: [random]\n")  # of another script
    assert partial_images.first_stage_arguments(args) is None


@pytest.mark.parametrize("family", ["dinov2", "resnet"])
@pytest.mark.parametrize("mask_patches", [True, False])
@pytest.mark.parametrize("names", [("bright", "dark"), ("cat", "dog")])
def test_the_card_is_whole(arguments, tmp_path, family, mask_patches, names):
    patch_size = 4 if family == "resnet" and mask_patches else None
    train(arguments(family, names=names, mask_patches=mask_patches, patch_size=patch_size))
    text = (tmp_path / "out" / "README.md").read_text()
    body = text.split("---\n", 2)[2]
    for wrong in ("{{", "{%", "\n\n\n\n", "None", "undefined", str(tmp_path)):
        assert wrong not in body, wrong
    for line in body.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    tables = [part for part in body.split("\n\n") if part.startswith("|")]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert ("--explainer_backbone" in body) is (family != "dinov2")
    example = {"dinov2": "", "resnet": ", patch_size=4" if mask_patches else ", patch_size=16"}[family]
    assert f'MaskedClassifier.from_pretrained("out"{example})' in body
    assert ("Is it ready to be explained?" in body) is mask_patches
    assert "\n\n## How to explain it\n\n" in body
    assert "\n\n## How it was trained\n\n" in body


def test_the_classifier_on_the_hub(arguments, tmp_path):
    args = arguments(push_to_hub=True, hub_model_id="org/dinov2-pet")
    words = [f"{name}={value!r}" for name, value in dataclasses.asdict(args).items()]
    code = f"""
    from salvage_hf.evaluation.partial_images import DescribedClassifierTask
    from salvage_hf.training.classifier import ClassifierArguments, train_classifier
    train_classifier(ClassifierArguments({", ".join(words)}), task=DescribedClassifierTask)
    """
    run_on(tmp_path, code)
    repository = tmp_path / "hub" / "models" / "org" / "dinov2-pet"
    files = {path.name for path in repository.rglob("*") if path.is_file()}
    assert {"README.md", "partial_images.json", "partial_images.png", "config.json", "model.safetensors"} <= files
    assert not {"recipe.yaml", "progress.json"} & files
    for name in ("README.md", "partial_images.json"):
        assert str(tmp_path) not in (repository / name).read_text()
