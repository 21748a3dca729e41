"""Runs of scripts/train.py and what becomes of them: tiny models on noisy images of two colours."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from local_hub import TOKEN, local_hub
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BitImageProcessor,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    HfArgumentParser,
)

from salvage_hf import MaskedClassifier, SalvageModel, explainer_training, training
from salvage_hf.data import ProcessedImages, load_images
from salvage_hf.explainer_training import ExplainerArguments, all_patch_features, draw_subsets, train_explainer
from salvage_hf.objectives import Objective
from salvage_hf.training import LoopArguments, checkpoints, load_checkpoint, make_accelerator

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train.py"
CLASSES = ("n01440764_tench", "n02102040_English_springer")
NUM_TRAIN = 14  # of batches of 4, three make an epoch


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(autouse=True)
def each_run_as_in_a_process_of_its_own():
    forget_accelerators()


def forget_accelerators():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def write_images(folder, count, seed):
    generator = np.random.default_rng(seed)
    for index, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 120, (16, 16, 3))
            pixels[:, :, 2 * index] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


def write_classifier(folder, labels):
    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        patch_size=4,
        image_size=16,
        num_register_tokens=2,
        initializer_range=0.3,  # predictions that depend on the pixels
        layerscale_value=1.0,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    Dinov2WithRegistersForImageClassification(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    BitImageProcessor(size=size, do_center_crop=False).save_pretrained(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with images in train/ and validation/, and classifiers in classifier/ and one_label/."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", NUM_TRAIN // 2, seed=0)
    write_images(folder / "validation", 3, seed=1)
    (folder / "validation" / CLASSES[0] / "2.png").unlink()  # 5 images: no multiple of anything
    write_classifier(folder / "classifier", ("English springer", "tench"))
    write_classifier(folder / "one_label", ("tench",))
    return folder


@pytest.fixture
def arguments(data, tmp_path):
    """A factory: the arguments of a short run that writes to tmp_path/run."""
    return lambda **changes: make_arguments(data, **{"output_dir": tmp_path / "run", **changes})


def make_arguments(data, output_dir, **changes):
    defaults = {
        "model_name_or_path": str(data / "classifier"),
        "train_dir": str(data / "train"),
        "validation_dir": str(data / "validation"),
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "new_subsets": 4,
        "learning_rate": 1e-2,
        "max_train_steps": 8,
        "validation_steps": 4,
        "checkpointing_steps": 2,
        "seed": 3,
    }
    return ExplainerArguments(**{**defaults, **changes})


def command_line(args):
    words = []
    for name, value in dataclasses.asdict(args).items():
        if value not in (None, False, ""):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def files_of(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def history_of(folder):
    return json.loads((Path(folder) / "all_results.json").read_text())["history"]


class Killed(Exception):
    pass


def killed_at(batch, monkeypatch, args):
    """Runs until batch number `batch` is reached."""

    def draw(args, scores, ids, index):
        if index == batch:
            raise Killed
        return draw_subsets(args, scores, ids, index)

    with monkeypatch.context() as patch:
        patch.setattr(explainer_training, "draw_subsets", draw)
        with pytest.raises(Killed):
            train_explainer(args)
    forget_accelerators()


def assert_same_run(folder, other):
    """Same history, and bit for bit the same models, optimizer and schedule."""
    assert history_of(folder) == history_of(other)
    last = f"step_{history_of(other)[-1]['step']}"
    for name in ("model.safetensors", "last/model.safetensors"):
        mine, others = load_file(Path(folder) / name), load_file(Path(other) / name)
        assert mine.keys() == others.keys()
        assert all(torch.equal(mine[key], others[key]) for key in mine), name
    states = [torch.load(Path(f) / last / "optimizer.bin", weights_only=False) for f in (folder, other)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for mine, others in zip(*(state["state"].values() for state in states), strict=True):
        assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(others[key])) for key in others)
    schedules = [schedule_of(Path(f) / last) for f in (folder, other)]
    assert schedules[0]["last_epoch"] == schedules[1]["last_epoch"]


def schedule_of(checkpoint):
    states = [torch.load(file, weights_only=False) for file in checkpoint.glob("custom_checkpoint_*.pkl")]
    return next(state for state in states if "last_epoch" in state)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """The folder of a run of 8 steps that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    forget_accelerators()
    train_explainer(make_arguments(data, folder))
    return folder


# A run


def test_training_lowers_the_validation_loss(arguments):
    results = train_explainer(
        arguments(freeze_backbone=True, max_train_steps=60, validation_steps=20, checkpointing_steps=60, new_subsets=8)
    )
    losses = [row["eval_js"] for row in results["history"] if "eval_js" in row]
    train_losses = [row["train_loss"] for row in results["history"]]
    assert len(losses) == 3
    assert train_losses[-1] < 0.5 * train_losses[0]
    # the explainer starts at uniform predictions
    assert losses[-1] < 0.5 * uniform_loss(arguments())


def uniform_loss(args):
    v = MaskedClassifier.from_pretrained(args.model_name_or_path)
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    images = ProcessedImages(load_images(folder=args.validation_dir), processor)
    pixel_values = torch.stack([images[i]["pixel_values"] for i in range(len(images))])
    p = v.probabilities(pixel_values, torch.rand(5, 50, 16, generator=torch.Generator().manual_seed(0)) < 0.5)
    mean = (p + 0.5) / 2
    return 0.5 * ((p * (p / mean).log()).sum(-1) + (0.5 * (0.5 / mean).log()).sum(-1)).mean().item()


def test_what_a_run_writes(straight):
    files = files_of(straight)
    model = {"config.json", "model.safetensors", "configuration_salvage.py", "modeling_salvage.py"}
    model |= {"preprocessor_config.json", "README.md"}
    assert model <= files
    assert {f"last/{name}" for name in model} <= files
    assert "These images chose the checkpoint" in (straight / "README.md").read_text()
    assert "which these images did not choose" in (straight / "last" / "README.md").read_text()
    assert [folder.name for folder in checkpoints(straight)] == ["step_6", "step_8"]  # two are kept
    assert {"step_8/progress.json", "step_8/model.safetensors", "step_8/optimizer.bin"} <= files
    assert not [name for name in files if "partial" in name or ".writable" in name]


def test_the_results_of_a_run(straight):
    results = json.loads((straight / "all_results.json").read_text())
    history = results["history"]
    assert [row["step"] for row in history] == [2, 4, 6, 8]
    assert [row["step"] for row in history if "eval_srg" in row] == [4, 8]
    best = max((row for row in history if "eval_srg" in row), key=lambda row: row["eval_srg"])
    assert {name: results[name] for name in best} == best
    scores = {"eval_srg", "eval_lif", "eval_mif", "eval_js", "eval_accuracy"}
    assert scores | {"step", "train_loss", "learning_rate"} == set(best)
    assert best["eval_srg"] == pytest.approx(best["eval_lif"] - best["eval_mif"], abs=1e-6)
    assert results["num_processes"] == 1
    assert [row["learning_rate"] for row in history] == pytest.approx([0.0075, 0.005, 0.0025, 0])


def test_the_model_of_a_run_loads_and_scores_what_was_recorded(straight, data):
    model = AutoModel.from_pretrained(straight)
    assert type(model) is SalvageModel
    assert model.config.id2label == {0: "English springer", 1: "tench"}
    assert str(data) not in (straight / "config.json").read_text()
    processor = AutoImageProcessor.from_pretrained(straight)
    images = ProcessedImages(load_images(folder=str(data / "validation")), processor, model.config)
    batch = [images[i] for i in range(len(images))]
    labels = torch.tensor([item["labels"] for item in batch])
    assert labels.tolist() == [1, 1, 0, 0, 0]
    with torch.no_grad():
        predicted = model(torch.stack([item["pixel_values"] for item in batch])).logits.argmax(-1)
    results = json.loads((straight / "all_results.json").read_text())
    assert (predicted == labels).float().mean().item() == pytest.approx(results["eval_accuracy"])


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "predicted"},
        {"sampling": "uniform", "gradient_accumulation_steps": 2},
        {"model_name_or_path": "one_label"},
        {"model_name_or_path": "one_label", "target": "predicted", "freeze_backbone": True},
        {"masking": "mean", "dataloader_num_workers": 1},
        {"objective": "vit_shapley", "sampling": "uniform", "replayed_subsets": 8},
        {"objective": "vit_shapley", "sampling": "guided", "model_name_or_path": "one_label"},
        {"objective": "fastshap", "sampling": "uniform", "shapley_sampler": "published", "new_subsets": 5},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_other_kinds_of_runs(arguments, data, straight, changes):
    if "model_name_or_path" in changes:
        changes = {**changes, "model_name_or_path": str(data / changes["model_name_or_path"])}
    results = train_explainer(arguments(max_train_steps=4, lr_scheduler_type="constant", **changes))
    assert results["step"] == 4
    assert np.isfinite([row["train_loss"] for row in results["history"]]).all()
    model = AutoModel.from_pretrained(results_folder := arguments().output_dir)
    paired = changes.get("objective", "salvage") == "salvage"
    assert ("eval_js" in results) is paired
    assert ("eval_mse" in results) is not paired
    card = (Path(results_folder) / "README.md").read_text()
    assert ("A Salvage explainer of" in card) is paired
    start = SalvageModel.from_classifier(
        MaskedClassifier.from_pretrained(arguments(**changes).model_name_or_path).classifier, paired_values=paired
    )
    assert model.config.paired_values is paired
    moved = {
        part: max(
            (p - q).abs().max().item()
            for p, q in zip(getattr(model, part).parameters(), getattr(start, part).parameters(), strict=True)
        )
        for part in ("head", "backbone")
    }
    assert moved["head"] > 1e-3
    assert (moved["backbone"] > 1e-3) is not changes.get("freeze_backbone", False)
    assert history_of(results_folder)[0] != history_of(straight)[0]


def test_a_data_set_with_a_validation_split_is_validated_on_it(arguments, data, tmp_path):
    (tmp_path / "dataset").mkdir()
    images = load_images(folder=str(data / "train"))
    images.select(range(9)).to_parquet(tmp_path / "dataset" / "train.parquet")
    images.select(range(9, 14)).to_parquet(tmp_path / "dataset" / "validation.parquet")
    own = {"train_dir": None, "validation_dir": None, "dataset_name": str(tmp_path / "dataset")}
    train, validation = training.load_splits(arguments(**own))
    assert (len(train), len(validation)) == (9, 5)


def test_images_without_labels_serve_the_predicted_class(arguments, data, tmp_path):
    (tmp_path / "dataset").mkdir()
    load_images(folder=str(data / "train")).remove_columns("label").to_parquet(tmp_path / "dataset" / "train.parquet")
    unlabelled = {
        "train_dir": None,
        "validation_dir": None,
        "dataset_name": str(tmp_path / "dataset"),
        "train_val_split": 0.3,
        "max_train_samples": 8,
        "max_eval_samples": 2,
        "max_train_steps": 2,
    }
    assert train_explainer(arguments(target="predicted", **unlabelled))["step"] == 2
    with pytest.raises(ValueError, match=r"no column 'label' in the data set, its columns are \['image'\]"):
        train_explainer(arguments(**unlabelled))


def test_cached_features_are_the_backbones(data, arguments, tmp_path):
    """The second loss of a frozen run depends on the features; only then does a full run's backbone begin to move."""
    losses = {}
    for freeze in (True, False):
        args = arguments(
            freeze_backbone=freeze, max_train_steps=3, validation_steps=1, output_dir=tmp_path / str(freeze)
        )
        losses[freeze] = [row["train_loss"] for row in train_explainer(args)["history"]]
    assert losses[True][:2] == pytest.approx(losses[False][:2], rel=2e-3)
    assert losses[True][0] != pytest.approx(losses[True][1], rel=2e-2)

    model = SalvageModel.from_classifier(MaskedClassifier.from_pretrained(str(data / "classifier")).classifier)
    processor = AutoImageProcessor.from_pretrained(data / "classifier")
    images = ProcessedImages(load_images(folder=str(data / "validation")), processor)
    features = all_patch_features(make_accelerator(arguments()), model, images, 2)
    with torch.no_grad():
        expected = model.patch_features(torch.stack([images[i]["pixel_values"] for i in range(5)]))
    assert features.shape == (5, 16, 16)
    torch.testing.assert_close(features.float(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampling", ["guided", "uniform"])
def test_subsets_of_an_image_do_not_depend_on_its_batch(arguments, sampling):
    args = arguments(sampling=sampling, new_subsets=6)
    scores = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    drawn = draw_subsets(args, scores, torch.tensor([4, 0, 9]), index=5)
    assert torch.equal(drawn[[2]], draw_subsets(args, scores[[2]], torch.tensor([9]), index=5))
    sizes = drawn.sum(-1)
    assert (sizes == sizes[0]).all()  # slot m has one size for all images
    assert len(sizes[0].unique()) > 1
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn, draw_subsets(args, scores, torch.tensor([4, 0, 9]), index=6))
    other_seed = dataclasses.replace(args, seed=4)
    assert not torch.equal(drawn, draw_subsets(other_seed, scores, torch.tensor([4, 0, 9]), index=5))


@pytest.mark.parametrize(("sampling", "parts"), [("guided", [2, 2]), ("uniform", [4])])
def test_sizes_are_stratified_within_each_half(arguments, sampling, parts):
    args = arguments(sampling=sampling, new_subsets=4)
    for index in range(20):
        sizes = draw_subsets(args, torch.randn(1, 16), torch.tensor([0]), index)[0].sum(-1)
        for part in sizes.split(parts):
            strata = ((part - 1) * len(part) // 16).tolist()
            assert strata == list(range(len(part)))


def test_a_single_guided_subset_comes_from_both_halves_in_turn(arguments):
    args = arguments(new_subsets=1)
    scores = torch.zeros(400, 16)
    scores[:, :8] = 1.0  # the first eight are drawn first by the scores, last by one minus them
    for index in range(6):
        drawn = draw_subsets(args, scores, torch.arange(400), index)[:, 0]
        first, last = drawn[:, :8].sum(), drawn[:, 8:].sum()
        assert (first > last) if index % 2 == 0 else (first < last)


@pytest.mark.parametrize("kind", [{}, {"freeze_backbone": True, "replayed_subsets": 8}], ids=["full", "replay"])
def test_mixed_precision(arguments, data, monkeypatch, tmp_path, kind):
    """bfloat16 forwards: nearly the losses of float32, and weights in float32."""
    kind = {**kind, "learning_rate": 1e-4, "sampling": "uniform"}  # so that no rounding grows
    precise = train_explainer(arguments(output_dir=tmp_path / "float32", **kind))
    forget_accelerators()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    dtypes = set()
    forward = MaskedClassifier.logits

    def remember(self, *inputs):
        logits = forward(self, *inputs)
        dtypes.add(logits.dtype)
        return logits

    monkeypatch.setattr(MaskedClassifier, "logits", remember)
    mixed = train_explainer(arguments(**kind))
    assert torch.bfloat16 in dtypes
    for row, other in zip(mixed["history"], precise["history"], strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
        assert row["train_loss"] != other["train_loss"]
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_smaller_batches_where_memory_is_short(arguments, monkeypatch, tmp_path):
    """Batches of 4 and 2 run out of memory; what is left is 1, and 4 of them a step."""
    forward = SalvageModel.forward
    tried = []

    def short_of_memory(self, pixel_values=None, **inputs):
        tried.append(len(pixel_values))
        if self.training and len(pixel_values) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(self, pixel_values, **inputs)

    monkeypatch.setattr(SalvageModel, "forward", short_of_memory)
    found = train_explainer(arguments(auto_find_batch_size=True, max_train_steps=2, sampling="uniform"))
    assert tried[:3] == [4, 2, 1]
    progress = json.loads((tmp_path / "run" / "step_2" / "progress.json").read_text())["arguments"]
    assert (progress["per_device_train_batch_size"], progress["gradient_accumulation_steps"]) == (1, 4)
    assert np.isfinite(found["train_loss"])
    forget_accelerators()
    tried.clear()
    more = {"max_train_steps": 3, "sampling": "uniform", "resume_from_checkpoint": "latest"}
    train_explainer(arguments(auto_find_batch_size=True, **more))
    assert set(tried) == {1}  # with the size that was found before
    forget_accelerators()
    with pytest.raises(RuntimeError, match="out of memory"):
        train_explainer(arguments(max_train_steps=2))


# Replayed values


@pytest.mark.parametrize("num_views", [1, 3])
def test_what_is_kept_is_what_the_classifier_says(arguments, data, tmp_path, num_views):
    args = arguments(new_subsets=2, replayed_subsets=6, max_train_steps=12, sampling="uniform", num_views=num_views)
    train_explainer(args)
    kept = load_file(tmp_path / "run" / "replay.safetensors")
    train_images = len(list((data / "train").rglob("*.png")))
    assert kept["written"].sum() == 12 * 4 * 2
    v = MaskedClassifier.from_pretrained(args.model_name_or_path)
    images = ProcessedImages(
        load_images(folder=args.train_dir),
        AutoImageProcessor.from_pretrained(v.config._name_or_path),
        num_views=num_views,
        seed=args.seed,
    )
    assert len(kept["written"]) == len(images) == train_images * num_views
    assert f"\n{train_images} images" in (tmp_path / "run" / "README.md").read_text()
    bits = (kept["subsets"][..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    for image in range(len(images)):
        number = min(int(kept["written"][image]), 6)
        subsets = bits[image, :number].flatten(-2)[:, :16].bool()
        expected = v.logits(images[image]["pixel_values"][None], subsets[None])[0].log_softmax(-1)
        torch.testing.assert_close(kept["values"][image, :number].float(), expected, rtol=1e-3, atol=1e-3)


def test_a_run_on_kept_values_alone_never_asks_the_classifier(arguments, monkeypatch, tmp_path):
    first = arguments(new_subsets=4, replayed_subsets=8, output_dir=tmp_path / "first")
    train_explainer(first)
    forget_accelerators()
    file = str(tmp_path / "first" / "replay.safetensors")
    asked = []
    logits = MaskedClassifier.logits
    monkeypatch.setattr(MaskedClassifier, "logits", lambda self, *inputs: asked.append(1) or logits(self, *inputs))
    again = {"new_subsets": 0, "replayed_subsets": 8, "replay_from": file, "validation_steps": 100}
    results = train_explainer(arguments(**again))
    assert len(asked) == 3  # the last step validates: 5 images, two a batch
    assert np.isfinite(results["train_loss"])
    before, after = (load_file(tmp_path / run / "replay.safetensors") for run in ("first", "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_values_of_another_classifier_are_refused(arguments, data, tmp_path):
    train_explainer(arguments(replayed_subsets=4, max_train_steps=2, output_dir=tmp_path / "first"))
    forget_accelerators()
    file = str(tmp_path / "first" / "replay.safetensors")
    with pytest.raises(ValueError, match=r"holds values of something else .*'masking': \('drop', 'zero'\)"):
        train_explainer(arguments(replayed_subsets=4, replay_from=file, masking="zero"))
    forget_accelerators()
    with pytest.raises(ValueError, match=r"holds no values of \d+ images"):
        train_explainer(arguments(new_subsets=0, replayed_subsets=4, replay_from=file))


# Stopped and resumed


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        # after step 4, in the middle of the second epoch; after step 6, between two epochs
        ({}, [4, 7]),
        # three batches an epoch, two steps: the second step of an epoch has one batch
        (
            {"gradient_accumulation_steps": 2, "checkpointing_steps": 1, "max_train_steps": 5, "freeze_backbone": True},
            [5],
        ),
        ({"new_subsets": 1, "replayed_subsets": 2, "max_train_steps": 11, "freeze_backbone": True}, [5, 10]),
    ],
    ids=["epochs", "accumulation", "replay"],
)
def test_a_stopped_run_continues_bit_for_bit(arguments, straight, monkeypatch, tmp_path, changes, stops):
    whole = straight
    if changes:
        whole = tmp_path / "whole"
        train_explainer(arguments(output_dir=whole, **changes))
    resume = None
    for stop in stops:
        killed_at(stop, monkeypatch, arguments(resume_from_checkpoint=resume, **changes))
        resume = "latest"
    train_explainer(arguments(resume_from_checkpoint="latest", **changes))
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_while_it_writes_continues_from_the_checkpoint_before(arguments, straight, tmp_path):
    """SIGKILL in the middle of writing step_6: no handler runs, step_4 is the last one whole."""

    def run():
        save_state = Accelerator.save_state

        def save_half(self, folder):
            save_state(self, folder)
            if "step_6" in str(folder):
                weights = Path(folder) / "model.safetensors"
                weights.write_bytes(weights.read_bytes()[:100])
                os.kill(os.getpid(), signal.SIGKILL)

        Accelerator.save_state = save_half
        train_explainer(arguments())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(timeout=600)
    process.kill()
    assert process.exitcode == -signal.SIGKILL
    left = tmp_path / "run"
    assert (left / "step_6.partial" / "model.safetensors").stat().st_size == 100
    assert [folder.name for folder in checkpoints(left)] == ["step_2", "step_4"]
    train_explainer(arguments(resume_from_checkpoint="latest"))
    assert_same_run(left, straight)
    assert not list(left.glob("*.partial"))


def test_a_finished_run_resumes_to_its_results(arguments, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    (tmp_path / "run" / "all_results.json").unlink()
    train_explainer(arguments(resume_from_checkpoint="latest"))
    assert_same_run(tmp_path / "run", straight)


def test_a_full_disk_leaves_earlier_checkpoints_and_models_intact(arguments, monkeypatch, tmp_path):
    save_state, folder = Accelerator.save_state, tmp_path / "run"

    def full_disk(self, path):
        save_state(self, path)
        if "step_4" in str(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", full_disk)
    with pytest.raises(RuntimeError, match=r"step_4' could not be written \(.*No space left.*earlier ones are intact"):
        train_explainer(arguments(validation_steps=1))
    assert [path.name for path in checkpoints(folder)] == ["step_2"]
    assert not list(folder.glob("*.partial"))

    best = (folder / "model.safetensors").read_bytes()

    def no_room(self, path, **kwargs):
        Path(path).mkdir(exist_ok=True)
        (Path(path) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SalvageModel, "save_pretrained", no_room)
    forget_accelerators()
    with pytest.raises(RuntimeError, match=r"best model of step 1 could not be written \(.*No space left"):
        train_explainer(arguments(validation_steps=1))
    assert (folder / "model.safetensors").read_bytes() == best
    assert not list(folder.glob("*.partial"))


def test_checkpointing_steps_epoch_and_the_limit(arguments, tmp_path):
    args = arguments(checkpointing_steps="epoch", checkpoints_total_limit=3, max_train_steps=None, num_train_epochs=2)
    assert train_explainer(args)["history"][-1]["step"] == 6
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step_3", "step_6"]


def test_the_newest_checkpoint_is_the_last_written_not_the_highest(tmp_path):
    """A new run in the folder of a longer one must neither lose its checkpoints to the limit nor resume the other's."""
    now = time.time()
    for name, written in (("step_100", now - 50), ("step_200", now - 40), ("step_9", now), ("step_10", now + 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(json.dumps({"time": written}))
    (tmp_path / "step_11.partial").mkdir()
    (tmp_path / "step_1").mkdir()  # without a record
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_1", "step_100", "step_200", "step_9", "step_10"]


def resume(args, num_images=NUM_TRAIN, num_processes=1):
    def load_state(folder):
        raise AssertionError("loaded a checkpoint that should have been refused")

    return load_checkpoint(args, SimpleNamespace(num_processes=num_processes, load_state=load_state), num_images)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "progress.json").unlink(), "is not complete: it has no progress.json"),
        (lambda folder: cut(folder / "progress.json"), "is not complete: progress.json is cut short"),
        (lambda folder: cut(folder / "optimizer.bin"), "is not complete: optimizer.bin is missing or cut short"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing or cut short"),
    ],
    ids=["no record", "half a record", "half a file", "no file"],
)
def test_half_a_checkpoint_is_refused(arguments, straight, tmp_path, damage, message):
    shutil.copytree(straight / "step_8", tmp_path / "run" / "step_8")
    damage(tmp_path / "run" / "step_8")
    with pytest.raises(ValueError, match=message) as error:
        resume(arguments(resume_from_checkpoint="latest"))
    assert "step_8" in str(error.value)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 4}, "'seed': (3, 4)"),
        ({"per_device_train_batch_size": 2}, "'per_device_train_batch_size': (4, 2)"),
        ({"gradient_accumulation_steps": 2}, "'gradient_accumulation_steps': (1, 2)"),
        ({"new_subsets": 2}, "'new_subsets': (4, 2)"),
        ({"learning_rate": 0.1}, "'learning_rate': (0.01, 0.1)"),
        ({"freeze_backbone": True}, "'freeze_backbone': (False, True)"),
        ({"train_dir": "elsewhere"}, "'train_dir': ("),
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else "",
)
def test_other_arguments_are_refused_by_name(arguments, straight, changes, told):
    with pytest.raises(ValueError, match=r"written with other arguments \(before, now\)") as error:
        resume(arguments(resume_from_checkpoint=str(straight / "step_8"), **changes))
    assert told in str(error.value)


def test_another_number_of_images_is_refused(arguments, straight):
    with pytest.raises(ValueError, match=r"'training_images': \(14, 13\)"):
        resume(arguments(resume_from_checkpoint=str(straight / "step_8")), num_images=13)


def test_what_a_resumed_run_may_change(arguments, straight):
    """How often to look changes nothing."""
    args = arguments(
        resume_from_checkpoint=str(straight / "step_8"),
        max_train_steps=20,
        validation_steps=7,
        checkpointing_steps=5,
        hub_token="secret",
    )
    with pytest.raises(AssertionError, match="loaded a checkpoint"):
        resume(args)
    with pytest.raises(ValueError, match=r"'num_processes': \(1, 2\)"):
        resume(args, num_processes=2)
    assert "hub_token" not in (straight / "step_8" / "progress.json").read_text()


def test_a_record_with_an_argument_of_another_version_is_refused(arguments, straight, tmp_path):
    shutil.copytree(straight / "step_8", tmp_path / "step_8")
    record = tmp_path / "step_8" / "progress.json"
    progress = json.loads(record.read_text())
    progress["arguments"]["num_subsets"] = 8
    record.write_text(json.dumps(progress))
    with pytest.raises(ValueError, match=r"'num_subsets': \(8, None\)"):
        resume(arguments(resume_from_checkpoint=str(tmp_path / "step_8")))


def test_a_run_resumed_elsewhere_writes_a_best_model_there(arguments, straight, tmp_path):
    there = {"output_dir": tmp_path / "there", "resume_from_checkpoint": str(straight / "step_6")}
    results = train_explainer(arguments(**there))
    assert results["step"] == 8
    assert (tmp_path / "there" / "model.safetensors").is_file()
    forget_accelerators()
    with pytest.raises(ValueError, match="the checkpoint is of step 6, after the last one, 4"):
        train_explainer(arguments(**there, max_train_steps=4))


def test_a_move_of_the_best_model_that_was_killed_is_finished(arguments, tmp_path):
    partial = tmp_path / "run" / "best.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_text("weights")
    (partial / ".complete").touch()
    make_accelerator(arguments())
    assert (tmp_path / "run" / "model.safetensors").read_text() == "weights"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model.safetensors"]
    partial.mkdir()
    (partial / "model.safetensors").write_text("half")
    forget_accelerators()
    make_accelerator(arguments())
    assert (tmp_path / "run" / "model.safetensors").read_text() == "weights"
    assert not partial.exists()


def test_latest_without_a_checkpoint(arguments):
    with pytest.raises(ValueError, match=r"resume_from_checkpoint='latest', but .* has no checkpoint step_N"):
        resume(arguments(resume_from_checkpoint="latest"))


# What stops a run


def test_a_loss_that_is_not_a_number_stops_before_anything_is_written(arguments, monkeypatch, tmp_path):
    broken = Objective(lambda model, output, subsets, logits, ends: output.logits[:, :1] * float("nan"), "js")
    monkeypatch.setitem(explainer_training.OBJECTIVES, "salvage", broken)
    with pytest.raises(FloatingPointError, match="the loss is nan before step 1: lower --learning_rate"):
        train_explainer(arguments(checkpointing_steps=1, validation_steps=1))
    assert files_of(tmp_path / "run") == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"per_device_train_batch_size": 15},
            "14 training images are less than one batch of 15 in each of 1 processes",
        ),
        ({"label_column_name": "class"}, r"no column 'class' in the data set, its columns are \['image', 'label'\]"),
        ({"image_column_name": "photo"}, "no column 'photo' in the data set"),
        ({"train_dir": "nowhere"}, "'nowhere' is not a folder"),
        ({"train_dir": None}, "give either dataset_name or folder"),
        ({"masking": "hide"}, "masking='hide' is not one of drop"),
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else "",
)
def test_wrong_arguments_are_told(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        train_explainer(arguments(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1, got 0"),
        ({"max_train_samples": 0}, "max_train_samples must be at least 1, got 0"),
        ({"max_train_steps": 0}, "max_train_steps must be at least 1, got 0"),
        ({"num_train_epochs": 0}, "num_train_epochs must be at least 1, got 0"),
        ({"checkpointing_steps": "0"}, "checkpointing_steps must be at least 1, got 0"),
        ({"checkpointing_steps": "often"}, "checkpointing_steps='often' is neither a number of steps nor 'epoch'"),
        ({"train_val_split": 1.0}, "train_val_split must lie between 0 and 1, got 1.0"),
        ({"new_subsets": 0}, "must not be negative nor both 0, got 0 and 0"),
        ({"num_views": 0}, "num_views must be at least 1, got 0"),
        ({"new_subsets": -1, "replayed_subsets": 4}, "must not be negative nor both 0, got -1 and 4"),
        ({"new_subsets": 4, "replayed_subsets": 2}, "replayed_subsets=2 is fewer than new_subsets=4"),
        ({"new_subsets": 0, "replayed_subsets": 2}, "new_subsets=0 needs replay_from"),
        ({"replay_from": "replay.safetensors"}, "replay_from needs replayed_subsets"),
        ({"target": "true"}, "target='true' is not one of label, predicted"),
        ({"sampling": "kernel"}, "sampling='kernel' is not one of guided, uniform"),
        ({"objective": "kl"}, "objective='kl' is not one of salvage"),
        ({"model_name_or_path": ""}, "model_name_or_path is needed"),
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else "",
)
def test_impossible_arguments_are_told_at_once(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**changes)


def test_an_output_folder_that_cannot_be_written_is_told_at_once(arguments, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match=r"output_dir '.*run' is not writable"):
        train_explainer(arguments())


# The command line


def test_the_scripts_arguments_are_those_of_transformers_examples():
    example = """dataset_name train_dir validation_dir max_train_samples max_eval_samples train_val_split
    model_name_or_path per_device_train_batch_size per_device_eval_batch_size learning_rate weight_decay
    num_train_epochs max_train_steps gradient_accumulation_steps lr_scheduler_type num_warmup_steps output_dir seed
    push_to_hub hub_model_id hub_token checkpointing_steps resume_from_checkpoint with_tracking report_to
    image_column_name label_column_name"""
    parser = HfArgumentParser(ExplainerArguments)
    options = {option for action in parser._actions for option in action.option_strings}
    assert {f"--{name}" for name in example.split()} <= options
    assert all(field.metadata["help"] for field in dataclasses.fields(ExplainerArguments))


def test_the_defaults_are_the_papers_recipe():
    args = HfArgumentParser(ExplainerArguments).parse_args_into_dataclasses(["--model_name_or_path", "x"])[0]
    assert (args.new_subsets, args.per_device_train_batch_size) == (32, 64)
    assert (args.learning_rate, args.weight_decay) == (1e-5, 1e-5)
    assert (args.sampling, args.masking, args.target, args.objective) == ("guided", "drop", "label", "salvage")
    assert args.freeze_backbone is False


@pytest.mark.parametrize("objective", ["vit_shapley", "fastshap"])
def test_shapley_objectives_have_their_own_recipe(objective):
    args = ExplainerArguments(model_name_or_path="x", objective=objective)
    assert (args.sampling, args.learning_rate) == ("uniform", 1e-4)
    asked = ExplainerArguments(model_name_or_path="x", objective=objective, sampling="guided", learning_rate=1e-3)
    assert (asked.sampling, asked.learning_rate) == ("guided", 1e-3)


@pytest.mark.parametrize(("word", "value"), [("epoch", "epoch"), ("20", 20)])
def test_checkpointing_steps_on_the_command_line(word, value):
    args = HfArgumentParser(LoopArguments).parse_args_into_dataclasses(["--checkpointing_steps", word])[0]
    assert args.checkpointing_steps == value


def environment(**more):
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize("kind", [{}, {"freeze_backbone": True, "replayed_subsets": 8}], ids=["full", "replay"])
def test_two_processes_give_the_numbers_of_one(data, tmp_path, launch_two, kind):
    """Half the batch in each of two processes, by `accelerate launch`."""
    changes = {"max_train_steps": 4, "validation_steps": 2, "checkpointing_steps": 4, **kind}
    one = train_explainer(make_arguments(data, tmp_path / "one", **changes))
    halves = make_arguments(data, tmp_path / "two", per_device_train_batch_size=2, **changes)
    launch_two("train.py", *command_line(halves))
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert two["num_processes"] == 2
    assert [row["step"] for row in two["history"]] == [2, 4]
    for mine, other in zip(two["history"], one["history"], strict=True):
        assert mine == pytest.approx(other, abs=1e-5)


def test_the_script_pushes_the_best_model_alone_and_logs_to_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboard")
    args = make_arguments(
        data,
        tmp_path / "run",
        max_train_steps=3,
        checkpointing_steps="epoch",
        freeze_backbone=True,
        with_tracking=True,
        report_to="tensorboard",
        push_to_hub=True,
        hub_model_id="org/tiny",
        hub_token=TOKEN,
    )
    with local_hub(tmp_path) as hub:
        env = environment(**hub, HF_DATASETS_CACHE=str(tmp_path / "cache"))
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *command_line(args)], env=env, capture_output=True, text=True, timeout=900
        )
    assert done.returncode == 0, done.stderr
    pushed = files_of(tmp_path / "hub" / "models" / "org" / "tiny") - {".gitattributes"}
    model = {"config.json", "model.safetensors", "configuration_salvage.py", "modeling_salvage.py"}
    assert pushed == model | {"preprocessor_config.json", "README.md", "all_results.json"}
    assert (tmp_path / "run" / "step_3").is_dir()
    written = files_of(tmp_path / "run")
    assert [name for name in written if "tfevents" in name and name.startswith(training.TRACKER_LOGS)]
    leaks = [name for name in written if TOKEN.encode() in (tmp_path / "run" / name).read_bytes()]
    assert leaks == []
