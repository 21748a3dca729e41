"""Short training runs of tiny models on noisy images of two colours, and comparisons of their files."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from transformers import BitImageProcessor, Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

from salvage_hf.training.explainer import ExplainerArguments

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train.py"


CLASSES = ("n01440764_tench", "n02102040_English_springer")


NUM_TRAIN = 14  # an epoch has three batches of 4


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


def assert_same_run(folder, other):
    """Same history, and bit for bit the same models, optimizer and schedule."""
    assert history_of(folder) == history_of(other)
    last = f"step_{history_of(other)[-1]['step']}"
    for name in ("model.safetensors", "last/model.safetensors"):
        mine, others = load_file(Path(folder) / name), load_file(Path(other) / name)
        assert mine.keys() == others.keys()
        assert all(torch.equal(mine[key], others[key]) for key in mine), name
    states = [torch.load(Path(f) / last / "optimizer.bin") for f in (folder, other)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for mine, others in zip(*(state["state"].values() for state in states), strict=True):
        assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(others[key])) for key in others)
    schedules = [torch.load(Path(f) / last / "scheduler.bin") for f in (folder, other)]
    assert schedules[0] == schedules[1]
