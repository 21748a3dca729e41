"""Training of explainers: what a run learns, draws, writes and refuses."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import NUM_TRAIN, files_of, forget_accelerators, history_of
from transformers import AutoImageProcessor, AutoModel

from salvage_hf import MaskedClassifier, SalvageModel
from salvage_hf.data.images import ProcessedImages
from salvage_hf.data.loading import load_images
from salvage_hf.files import LOCK
from salvage_hf.keyed_random import KeyedGenerator
from salvage_hf.objectives import OBJECTIVES
from salvage_hf.recipes import RECIPE
from salvage_hf.subsets import attribution_guided
from salvage_hf.training.checkpoints import checkpoints
from salvage_hf.training.explainer import ExplainerTask, all_patch_features, draw_subsets, train_explainer
from salvage_hf.training.images import load_splits
from salvage_hf.training.setup import make_accelerator


def test_training_lowers_the_validation_loss(arguments):
    results = train_explainer(
        arguments(freeze_backbone=True, max_train_steps=60, validation_steps=20, checkpointing_steps=60, new_subsets=8)
    )
    losses = [row["eval_js"] for row in results["history"] if "eval_js" in row]
    train_losses = [row["train_loss"] for row in results["history"]]
    assert len(losses) == 3
    assert train_losses[-1] < 0.5 * train_losses[0]
    # the explainer's first predictions are uniform
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
    code = {f"{name}_salvage.py" for name in ("configuration", "geometry", "modeling", "pipeline")}
    model = {"config.json", "model.safetensors", *code}
    model |= {"preprocessor_config.json", "README.md"}
    assert model | {RECIPE} <= files
    assert {f"last/{name}" for name in model} <= files
    assert "These images chose the checkpoint" in (straight / "README.md").read_text()
    assert "which these images did not choose" in (straight / "last" / "README.md").read_text()
    assert [folder.name for folder in checkpoints(straight)] == ["step_6", "step_8"]  # two are kept
    assert {"step_8/progress.json", "step_8/model.safetensors", "step_8/optimizer.bin"} <= files
    assert not [name for name in files if "partial" in name or ".writable" in name]


def test_images_of_one_patch_are_trained_on(arguments, data, tmp_path, save_processor):
    shutil.copytree(data / "classifier", tmp_path / "classifier")
    save_processor(tmp_path / "classifier", 4)
    results = train_explainer(arguments(model_name_or_path=str(tmp_path / "classifier"), max_train_steps=1))
    assert math.isfinite(results["eval_js"])


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
        {"objective": "vit_shapley"},
        {"objective": "vit_shapley", "sampling": "guided", "model_name_or_path": "one_label"},
        {"objective": "fastshap", "sampling": "shapley_kernel_published", "new_subsets": 5},
        {"objective": "salvage", "sampling": "shapley_kernel"},
        {"freeze_backbone": True, "num_views": 2, "dataloader_num_workers": 1},
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
    assert f"\n{NUM_TRAIN} images" in card  # not their views
    assert model.config.objective == changes.get("objective", "salvage")
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
    train, validation = load_splits(arguments(**own))
    assert (len(train), len(validation)) == (9, 5)
    train, validation = load_splits(
        arguments(**own, train_split_name="validation", validation_split_name="train", max_eval_samples=4)
    )
    assert (len(train), len(validation)) == (5, 4)


def test_images_without_labels_train_for_the_predicted_class(arguments, data, tmp_path):
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
    """The second loss is the first to depend on the features, and the last before a full run's backbone moves."""
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
    drawn = draw_subsets(args, scores, torch.tensor([4, 0, 9]), step=5)
    assert torch.equal(drawn[[2]], draw_subsets(args, scores[[2]], torch.tensor([9]), step=5))
    sizes = drawn.sum(-1)
    assert (sizes == sizes[0]).all()  # slot m has one size for all images
    assert len(sizes[0].unique()) > 1
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn, draw_subsets(args, scores, torch.tensor([4, 0, 9]), step=6))
    other_seed = dataclasses.replace(args, seed=4)
    assert not torch.equal(drawn, draw_subsets(other_seed, scores, torch.tensor([4, 0, 9]), step=5))


@pytest.mark.parametrize(("sampling", "parts"), [("guided", [2, 2]), ("uniform", [4])])
def test_sizes_are_stratified_within_each_half(arguments, sampling, parts):
    args = arguments(sampling=sampling, new_subsets=4)
    for index in range(20):
        sizes = draw_subsets(args, torch.randn(1, 16), torch.tensor([0]), index)[0].sum(-1)
        for part in sizes.split(parts):
            strata = ((part - 1) * len(part) // 16).tolist()
            assert strata == list(range(len(part)))


@pytest.mark.parametrize("exponent", [None, 1.0, 4.0, 9.0])
def test_training_draws_by_its_exponent(arguments, exponent):
    """Slot by slot, an image's subsets are those of Algorithm 3 with the weights to that power."""
    args = arguments(guidance_exponent=exponent, new_subsets=6)
    scores, ids = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 0, 9])
    drawn = {
        e: draw_subsets(dataclasses.replace(args, guidance_exponent=e), scores, ids, step=2)
        for e in (args.guidance_exponent, 1.0, 4.0, 9.0)
    }
    mine = draw_subsets(args, scores, ids, step=2)
    for other, subsets in drawn.items():
        generator = KeyedGenerator("training subsets", args.seed, 2, keys=ids)
        sizes = subsets[0].sum(-1)  # which the exponent does not change
        assert torch.equal(sizes, mine[0].sum(-1))
        expected = attribution_guided(scores, 6, generator=generator, sizes=sizes, exponent=other)
        assert torch.equal(subsets, expected)
        assert torch.equal(mine, expected) is (other == (exponent or 4.0))


def test_a_single_guided_subset_comes_from_both_halves_in_turn(arguments):
    args = arguments(new_subsets=1)
    scores = torch.zeros(400, 16)
    scores[:, :8] = 1.0  # drawn first in proportion to the scores, and last to one minus them
    informative_steps = 0
    for step in range(8):
        drawn = draw_subsets(args, scores, torch.arange(400), step)[:, 0]
        first, last = drawn[:, :8].sum(), drawn[:, 8:].sum()
        if not drawn.all():  # full subsets do not show which patches were drawn first
            assert (first > last) if step % 2 == 0 else (first < last)
            informative_steps += 1
    assert informative_steps >= 6


@pytest.mark.parametrize("kind", [{}, {"freeze_backbone": True}], ids=["everything", "frozen"])
def test_mixed_precision(arguments, data, monkeypatch, tmp_path, kind):
    """With bfloat16 forwards, losses are nearly those of float32, and weights stay in float32."""
    kind = {**kind, "learning_rate": 1e-4, "sampling": "uniform"}  # so that rounding errors do not grow
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


def test_a_compiled_explainer_is_written_like_any_other(arguments, straight, monkeypatch, tmp_path):
    """As by `accelerate launch --dynamo_backend inductor`; this backend traces and does not compile."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    forget_accelerators()
    train_explainer(arguments(output_dir=str(tmp_path / "compiled"), max_train_steps=1, validation_steps=1))
    compiled, plain = (load_file(folder / "model.safetensors") for folder in (tmp_path / "compiled", straight))
    assert compiled.keys() == plain.keys()


def test_smaller_batches_where_memory_is_short(arguments, monkeypatch, tmp_path):
    """Batches of 4 and 2 run out of memory, which leaves batches of 1, 4 of them per step."""
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


def test_a_loss_that_is_not_a_number_stops_before_anything_is_written(arguments, monkeypatch, tmp_path):
    broken = dataclasses.replace(OBJECTIVES["salvage"], loss=lambda model, output, *_: output.logits[:, :1] * torch.nan)
    monkeypatch.setitem(OBJECTIVES, "salvage", broken)
    with pytest.raises(FloatingPointError, match="the loss is nan before step 1: lower --learning_rate"):
        train_explainer(arguments(checkpointing_steps=1, validation_steps=1))
    assert files_of(tmp_path / "run") == {LOCK, RECIPE}


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
def test_wrong_arguments_are_refused(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        train_explainer(arguments(**changes))


def test_an_output_folder_that_cannot_be_written_is_refused_at_once(arguments, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match=r"output_dir '.*run' is not writable"):
        train_explainer(arguments())


def test_a_step_is_what_the_paper_says(arguments):
    """The loss in loops: u(S) from sums over patches, v(S) per image and subset, their divergence, and its mean."""
    task = ExplainerTask(arguments(new_subsets=4), make_accelerator(arguments()))
    torch.nn.init.normal_(task.model.head.class_projection.weight, generator=torch.Generator().manual_seed(0))
    batch = torch.utils.data.default_collate([task.train_images[index] for index in (3, 8, 13)])
    loss = task.loss(task.model, batch, step=5)
    with torch.no_grad():
        output = task.model(batch["pixel_values"])
    labels = batch["labels"]
    guide = torch.stack([output.attributions[image, :, label] for image, label in enumerate(labels)])
    drawn = draw_subsets(task.args, guide, batch["ids"], step=5)
    divergences = []
    for image in range(3):
        for subset in drawn[image]:
            total = sum(
                output.positive_values[image, patch] if visible else output.negative_values[image, patch]
                for patch, visible in enumerate(subset)
            )
            u = total.double().softmax(dim=-1)
            v = (
                task.classifier.logits(batch["pixel_values"][[image]], subset[None, None])[0, 0]
                .double()
                .softmax(dim=-1)
            )
            middle = (u + v) / 2
            divergences.append((torch.xlogy(u, u / middle).sum() + torch.xlogy(v, v / middle).sum()) / 2)
    assert loss.item() == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-4)


def test_validation_and_training_draw_other_subsets(arguments):
    """Both are keyed by image, but use different streams of random numbers."""
    from salvage_hf.keyed_random import KeyedGenerator
    from salvage_hf.subsets import LAWS

    ids, scores = torch.arange(20), torch.rand(20, 16)
    args = arguments(sampling="uniform", new_subsets=8)
    validation = LAWS["uniform"].draw(scores, 8, KeyedGenerator("validation subsets", args.seed, keys=ids))
    for step in range(3):
        training = draw_subsets(args, scores, ids, step)
        assert (training[:, :, None] == validation[:, None]).all(dim=-1).float().mean() < 0.02
