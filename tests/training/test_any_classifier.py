"""An explainer of a ResNet, with a DINOv2 backbone: trained, loaded, scored, drawn and examined like any other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import CLASSES, forget_accelerators, history_of
from transformers import AutoImageProcessor, AutoModel, BitImageProcessor, pipeline

from salvage_hf import MaskedClassifier, SalvageModel, attribution_methods
from salvage_hf.cli import main
from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.benchmark import run_benchmark
from salvage_hf.evaluation.doctor import DoctorArguments, run_doctor
from salvage_hf.evaluation.doctor_checks import NOT_CHECKED
from salvage_hf.evaluation.exact import ExactArguments, run_exact_values
from salvage_hf.files import fingerprint
from salvage_hf.training.classifier import ClassifierArguments, train_classifier
from salvage_hf.training.explainer import train_explainer

LABELS = {"id2label": {0: "English springer", 1: "tench"}, "label2id": {"English springer": 0, "tench": 1}}
SIZE = {"height": 24, "width": 16}


@pytest.fixture
def resnet(tiny_classifier, tmp_path):
    """The folder of a tiny ResNet, whose images have 24 x 16 pixels, of 0 to 1."""
    tiny_classifier("resnet", num_labels=2, **LABELS).save_pretrained(tmp_path / "resnet")
    processor = BitImageProcessor(size=SIZE, do_center_crop=False, do_normalize=False)
    processor.save_pretrained(tmp_path / "resnet")
    return str(tmp_path / "resnet")


@pytest.fixture
def backbone(tiny_backbone, save_processor, tmp_path):
    """A factory: the folder of a tiny backbone with patches of 4 pixels."""

    def build(kind="dinov2", **config):
        tiny_backbone(kind, **config).save_pretrained(tmp_path / kind)
        save_processor(tmp_path / kind)
        return str(tmp_path / kind)

    return build


@pytest.fixture
def train(arguments, resnet, backbone):
    """A factory: trains an explainer of the ResNet on 3 x 2 patches of 8 pixels, and returns its folder."""

    def run(**changes):
        options = {"explainer_backbone": backbone(), "patch_size": 8, "max_train_steps": 4, **changes}
        args = arguments(model_name_or_path=resnet, **options)
        train_explainer(args)
        return args.output_dir

    return run


def benchmark(resnet, folder, data, tmp_path, **changes):
    forget_accelerators()
    options = {"methods": ["salvage", "rise", "random"], "explainers": [f"salvage={folder}"], **changes}
    return run_benchmark(
        BenchmarkArguments(
            model_name_or_path=resnet,
            validation_dir=str(data / "validation"),
            sampling_budget=20,
            n_masks=2,
            output_dir=str(tmp_path / "benchmark"),
            **options,
        )
    )


def test_from_training_to_scores(train, resnet, data, tmp_path):
    folder = train()
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert type(model) is SalvageModel
    assert (model.config.patch_size, model.config.backbone_config.patch_size) == (8, 4)
    stated = model.config.explained_classifier
    assert {name: stated[name] for name in ("name", "masking", "patch_size")} == {
        "name": "resnet",
        "masking": "zero",
        "patch_size": 8,
    }
    assert stated["fingerprint"] == fingerprint(MaskedClassifier.from_pretrained(resnet, patch_size=8).classifier)
    assert all(str(tmp_path) not in Path(folder, name).read_text() for name in ("config.json", "README.md"))
    picture = Image.open(next((data / "validation" / CLASSES[0]).iterdir()))
    pixel_values = processor(picture, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape[-2:] == (24, 16)
    assert model(pixel_values).attributions.shape == (1, 6, 2)
    assert {row["label"] for row in pipeline("image-classification", model=folder)(picture)} == {
        "English springer",
        "tench",
    }
    results = benchmark(resnet, folder, data, tmp_path)
    assert results["grid_size"] == [3, 2]
    assert (results["settings"]["masking"], results["settings"]["patch_size"]) == ("zero", 8)
    assert all(len(results["methods"][name]["srg"]) == 5 for name in ("salvage", "rise", "random"))
    assert results["methods"]["salvage"]["srg"] != results["methods"]["random"]["srg"]


def test_the_backbone_gets_the_colours_that_it_was_trained_with(train, resnet, backbone, data):
    """The same picture by the backbone's own processor, at the size of the explainer's grid."""
    model, picture = AutoModel.from_pretrained(train()), Image.new("RGB", (30, 30), (200, 90, 10))
    theirs = AutoImageProcessor.from_pretrained(backbone())
    ours = AutoImageProcessor.from_pretrained(resnet)
    pixels = [processor(picture, return_tensors="pt")["pixel_values"] for processor in (theirs, ours)]
    made = model.backbone_pixels(pixels[1])
    assert made.shape == (1, 3, 12, 8)
    torch.testing.assert_close(made, pixels[0][..., :12, :8], rtol=0, atol=1e-4)


def test_training_learns(train):
    history = history_of(train(max_train_steps=40, validation_steps=40, checkpointing_steps=40, new_subsets=8))
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]


@pytest.mark.parametrize("kind", ["dinov2_with_registers", "dinov3_vit", "vit", "deit", "beit"])
def test_backbones_of_every_kind_are_trained(train, backbone, kind):
    folder = train(explainer_backbone=backbone(kind), max_train_steps=1, freeze_backbone=True, cache_images=True)
    config = AutoModel.from_pretrained(folder).config
    assert config.backbone_config.model_type == kind
    assert [row[-1] for row in config.channel_map] == pytest.approx([-2.0] * 3, abs=1e-5)  # (x - 0.5) / 0.25


@pytest.mark.parametrize("family", ["vit", "deit", "beit"])
def test_plain_vision_transformers_give_their_own_backbone(
    arguments, tiny_classifier, save_processor, tmp_path, family
):
    """At another image size than that of their positions."""
    tiny_classifier(family, num_labels=2, **LABELS).save_pretrained(tmp_path / family)
    save_processor(tmp_path / family, 24)
    results = train_explainer(arguments(model_name_or_path=str(tmp_path / family), max_train_steps=1))
    config = AutoModel.from_pretrained(arguments().output_dir).config
    assert (config.backbone_config.model_type, config.patch_size, config.channel_map) == (family, 4, None)
    assert config.explained_classifier["masking"] == ("zero" if family == "beit" else "drop")
    assert results["step"] == 1


def test_a_given_backbone_wins_over_the_classifiers_own(arguments, backbone):
    train_explainer(arguments(explainer_backbone=backbone("vit"), max_train_steps=1))
    config = AutoModel.from_pretrained(arguments().output_dir).config
    assert (config.backbone_config.model_type, config.explained_classifier["masking"]) == ("vit", "drop")


def test_explanations_are_drawn(train, resnet, data, tmp_path):
    images = str(data / "validation")
    for name, options in {"plain": [], "refined": ["--classifier", resnet, "--budget", "16"]}.items():
        assert main(["explain", images, "--model", train(), "--output", str(tmp_path / name), *options]) == 0
        assert len(list((tmp_path / name).glob("*.png"))) == 5
        forget_accelerators()


def test_the_doctor_examines_it(train, resnet, data, tmp_path, capsys):
    findings = run_doctor(
        DoctorArguments(
            explainer=train(),
            classifier=resnet,
            validation_dir=str(data / "validation"),
            output_dir=str(tmp_path / "d"),
        )
    )
    verdicts = {found.name: found.verdict for found in findings}
    assert verdicts["maps: SRG less that of attention"] == NOT_CHECKED
    assert [verdicts[f"explainer: {what}"] for what in ("trained for this classifier", "label names")] == ["good"] * 2
    assert verdicts["explainer: image processor"] == "good"
    assert json.loads((tmp_path / "d" / "doctor.json").read_text())["images"] == 5


def test_patches_are_those_that_the_explainer_states(train, resnet, data, tmp_path):
    folder = train(masking="mean")
    exact = {"model_name_or_path": resnet, "validation_dir": str(data / "validation"), "max_eval_samples": 2}
    results = run_exact_values(
        ExactArguments(
            **exact, methods=["salvage"], explainers=[f"salvage={folder}"], output_dir=str(tmp_path / "exact")
        )
    )
    assert (results["settings"]["masking"], results["settings"]["patch_size"]) == ("mean", 8)
    with pytest.raises(ValueError, match="explainer has patches of 8 pixels, the classifier of 4"):
        benchmark(resnet, folder, data, tmp_path, patch_size=4)
    with pytest.raises(ValueError, match=r"differs from 'resnet' in masking .mean, here zero"):
        benchmark(resnet, folder, data, tmp_path, masking="zero")
    v = MaskedClassifier.from_pretrained(resnet, patch_size=8, masking="mean")
    attribution_methods.load("salvage", v, explainer=folder)


def test_a_run_is_not_resumed_with_another_backbone(train, backbone, tiny_backbone, save_processor, tmp_path):
    train(max_train_steps=2)
    for change in ("weights", "processor"):
        other = str(shutil.copytree(backbone(), tmp_path / "another" / "dinov2", dirs_exist_ok=True))
        if change == "weights":
            tiny_backbone("dinov2", layer_norm_eps=1e-3).save_pretrained(other)
        else:
            save_processor(other, image_mean=[0.1, 0.2, 0.3])
        forget_accelerators()
        with pytest.raises(ValueError, match=r"other arguments or contents .*backbone_content"):
            train(explainer_backbone=other, resume_from_checkpoint="latest")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"explainer_backbone": None},
            r"classifier is a ResNetFor.* give it another one, by --explainer_backbone NAME",
        ),
        ({"patch_size": None}, "patch_size is needed for a resnet model, whose config states no patches"),
        (
            {"patch_size": 10},
            "patch_size=10 does not divide the images, which have 24 x 16 pixels; sides that do are 2, 4, 8",
        ),
        ({"masking": "drop"}, "masking='drop' needs one of dinov2"),
        ({"explainer_backbone": "/nowhere"}, "the config of '/nowhere' cannot be loaded"),
        ({"explainer_backbone": ""}, "explainer_backbone must not be empty"),
    ],
    ids=lambda changes: "-".join(map(str, changes.items())) if isinstance(changes, dict) else "",
)
def test_what_does_not_fit_is_refused(train, changes, message):
    with pytest.raises(ValueError, match=message):
        train(**changes)


def test_other_backbones_are_refused(train, resnet):
    with pytest.raises(ValueError, match=r"explainer_backbone='.*resnet' is of the type 'resnet'; an explainer can"):
        train(explainer_backbone=resnet)


def test_a_convolutional_classifier_is_trained_on_its_patches(resnet, data, tmp_path):
    results = train_classifier(
        ClassifierArguments(
            model_name_or_path=resnet,
            train_dir=str(data / "train"),
            validation_dir=str(data / "validation"),
            mask_patches=True,
            patch_size=8,
            max_train_steps=2,
            per_device_train_batch_size=4,
            output_dir=str(tmp_path / "run"),
        )
    )
    assert results["step"] == 2
