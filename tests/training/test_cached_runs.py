"""--cache_images changes no number of a run: neither of an explainer's nor of a classifier's."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import CLASSES, NUM_TRAIN, assert_same_run, forget_accelerators, history_of

from salvage_hf.data.cached_images import CachedImages
from salvage_hf.training.classifier import ClassifierArguments, train_classifier
from salvage_hf.training.explainer import ExplainerTask, train_explainer


def count_processed(monkeypatch):
    """A list that gets the name of every image that is read and processed."""
    import salvage_hf.data.images as module

    names, open_image = [], module.open_image

    def count(stored, pixel_range, name):
        names.append(name)
        return open_image(stored, pixel_range, name)

    monkeypatch.setattr(module, "open_image", count)
    return names


def test_a_cached_run_is_the_run_without_and_reads_every_image_once(arguments, straight, monkeypatch, tmp_path):
    names = count_processed(monkeypatch)
    train_explainer(arguments(cache_images=True))
    assert_same_run(tmp_path / "run", straight)
    assert len(names) == NUM_TRAIN + 5  # a name may be one of a training and of a validation image
    assert {name.split("/")[0] for name in names} == set(CLASSES)


@pytest.mark.parametrize("cached_first", [True, False])
def test_a_run_resumes_with_or_without_the_cache(arguments, straight, tmp_path, cached_first):
    """It stops in the middle of the second epoch."""

    class Stopped(Exception):
        pass

    class StoppedTask(ExplainerTask):
        def loss(self, model, batch, step):
            if step == 5:
                raise Stopped
            return super().loss(model, batch, step)

    with pytest.raises(Stopped):
        train_explainer(arguments(cache_images=cached_first), task=StoppedTask)
    forget_accelerators()
    train_explainer(arguments(cache_images=not cached_first, resume_from_checkpoint="latest"))
    assert_same_run(tmp_path / "run", straight)


@pytest.mark.parametrize(
    "kind",
    [
        {"freeze_backbone": True, "num_views": 2, "target": "predicted"},
        {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1, "masking": "zero"},
    ],
    ids=["frozen views", "accumulation and workers"],
)
def test_other_kinds_of_cached_runs(arguments, monkeypatch, tmp_path, kind):
    kind = {"max_train_steps": 4, "checkpointing_steps": 4, **kind}
    train_explainer(arguments(output_dir=tmp_path / "plain", **kind))
    forget_accelerators()
    names = count_processed(monkeypatch)
    train_explainer(arguments(cache_images=True, **kind))
    assert_same_run(tmp_path / "run", tmp_path / "plain")
    if "num_views" in kind:  # workers count in their own memory
        assert len(names) == 2 * NUM_TRAIN + 5


def test_a_cached_training_of_a_classifier(data, tmp_path):
    histories = []
    for name in ("plain", "cached"):
        forget_accelerators()
        args = ClassifierArguments(
            model_name_or_path=str(data / "classifier"),
            train_dir=str(data / "train"),
            validation_dir=str(data / "validation"),
            output_dir=str(tmp_path / name),
            per_device_train_batch_size=4,
            per_device_eval_batch_size=2,
            max_train_steps=4,
            validation_steps=2,
            mask_patches=True,
            cache_images=name == "cached",
        )
        train_classifier(args)
        histories.append(history_of(tmp_path / name))
    assert histories[0] == histories[1]
    plain, cached = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("plain", "cached"))
    assert all(torch.equal(plain[key], cached[key]) for key in plain)


def test_smaller_batches_fill_a_cache_again(arguments, monkeypatch, tmp_path):
    """Each attempt is a run of its own."""
    batch, sizes = CachedImages.batch, []

    def short_of_memory(self, indices):
        sizes.append(len(indices))
        if len(indices) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return batch(self, indices)

    monkeypatch.setattr(CachedImages, "batch", short_of_memory)
    train_explainer(arguments(cache_images=True, auto_find_batch_size=True, max_train_steps=2))
    assert sizes[0] == 4
    record = json.loads((tmp_path / "run" / "step_2" / "progress.json").read_text())
    assert record["arguments"]["per_device_train_batch_size"] == 2
    assert "cache_images" not in record["arguments"]
