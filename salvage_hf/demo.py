"""The whole method on a small data set whose answer is known: what `salvage demo` does."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification, set_seed

from .evaluation.arguments import BenchmarkArguments
from .evaluation.benchmark import run_benchmark
from .evaluation.report import ReportArguments, write_report
from .evaluation.report_summary import Point
from .evaluation.tables import results_table
from .files import locked
from .training.classifier import ClassifierArguments, train_classifier
from .training.explainer import ExplainerArguments, train_explainer
from .type_checks import check_type

IMAGE_SIZE, PATCH_SIZE = 64, 8
CLASSES = ("horizontal stripes", "vertical stripes", "diagonal stripes", "checks")
METHODS = ("salvage", "last_attention", "random")
TRAIN_PICTURES, EVAL_PICTURES = 400, 40  # per class
CLASSIFIER_STEPS, EXPLAINER_STEPS = 600, 600

#: With `fast` there is this share of pictures to score, and of training steps.
FAST = 10


def run_demo(output_dir: str, seed: int = 0, fast: bool = False) -> Path:
    """Makes pictures, trains a classifier and Salvage on them, scores the maps; returns the page that shows it all.

    Args:
        output_dir: the folder for data, models and the page.
        seed: of everything random.
        fast: a tenth of the training, in a minute or two on two CPU cores in place of nine. The classifier is then
            wrong half of the time, and the maps score like random ones: it shows that all parts work, and not how well.

    Raises:
        ValueError: where `output_dir` holds files that no demo has made, another process writes to it, or an argument
            has a wrong type.
    """
    check_type(output_dir, str, "output_dir")
    if not output_dir:
        raise ValueError("output_dir must not be empty")
    check_type(fast, bool, "fast")
    folder, start, part = Path(output_dir), time.perf_counter(), FAST if fast else 1
    _benchmark_arguments(folder, seed)  # checks the seed before anything is removed
    with locked(folder, "salvage demo"):
        _clear(folder)
        make_pictures(folder / "data" / "train", TRAIN_PICTURES, seed)
        make_pictures(folder / "data" / "val", EVAL_PICTURES // part, seed + 1)
        make_untrained_classifier(folder / "untrained", seed)
        print("1/3 training a classifier on pictures with patches removed")
        train_classifier(_classifier_arguments(folder, seed, CLASSIFIER_STEPS // part))
        print("2/3 training Salvage against the frozen classifier")
        train_explainer(_explainer_arguments(folder, seed, EXPLAINER_STEPS // part))
        print("3/3 scoring the explanations")
        results = run_benchmark(_benchmark_arguments(folder, seed))
        title = f"Demo, fast: a {FAST}th of the training, too little for maps that mean something" if fast else "Demo"
        report = ReportArguments([f"Drawn patterns={folder / 'benchmark'}"], output_dir=str(folder))
        page = write_report(report, "Salvage on pictures whose answer is known", _about(part))
    print(f"\n{title}\n\n{results_table(results, ('srg', 'r_srg', 'rma', 'rra'))}")
    print((folder / "tables" / "table4.md").read_text())
    print(f"{time.perf_counter() - start:.0f} s. Open {page}")
    return page


def _about(part: int) -> list[Point]:
    """What the page says before the results of a demo with one `part`-th of the training."""
    steps = CLASSIFIER_STEPS // part, EXPLAINER_STEPS // part
    train, looked_at = TRAIN_PICTURES * len(CLASSES), EVAL_PICTURES // part * len(CLASSES)
    drawn = (
        f"“salvage demo” drew {train:,} pictures of {IMAGE_SIZE} x {IMAGE_SIZE} pixels to train with, and {looked_at} "
        f"others to look at. In each, one shape has a pattern, and the pattern is the class: {', '.join(CLASSES)}. Two "
        f"plain shapes and the ground say nothing. It trained a small classifier ({steps[0]} steps), then "
        f"Salvage ({steps[1]} steps), which learns to say in one forward how much each patch of a picture "
        "speaks for each class."
    )
    look = (
        "Because the right answer is known, a good map is red on the patterned shape and nowhere else; RRA and RMA "
        "measure this. The pictures are simple and the training short: these numbers show that the program works, and "
        "say nothing of photographs."
    )
    if part > 1:
        look += " This was the fast demo, with too little training for maps that mean something."
    return [Point("What this is.", drawn), Point("What to look for.", look)]


def _clear(folder: Path) -> None:
    """Removes the files of an earlier demo; raises ValueError where something else has written them."""
    marker = folder / "salvage_demo"
    names = ("data", "untrained", "classifier", "explainer", "benchmark", "tables", "figures")
    parts = [folder / name for name in names]
    page = folder / "index.html"
    if foreign := [str(path) for path in (*parts, page) if path.exists() and not marker.exists()]:
        raise ValueError(f"{foreign[0]!r} is not of an earlier demo; give another output_dir")
    marker.write_text("What lies beside this file was made by `salvage demo`, which replaces it each time.\n")
    page.unlink(missing_ok=True)  # the page of an earlier demo must not stand beside the files of a new one
    for part in parts:
        if part.exists():
            shutil.rmtree(part)


def _classifier_arguments(folder: Path, seed: int, steps: int) -> ClassifierArguments:
    return ClassifierArguments(
        model_name_or_path=str(folder / "untrained"),
        output_dir=str(folder / "classifier"),
        mask_patches=True,
        learning_rate=1e-3,
        num_warmup_steps=steps // 6,
        max_train_steps=steps,
        validation_steps=300,
        checkpointing_steps=300,
        train_dir=str(folder / "data" / "train"),
        per_device_train_batch_size=32,
        seed=seed,
    )


def _explainer_arguments(folder: Path, seed: int, steps: int) -> ExplainerArguments:
    return ExplainerArguments(
        model_name_or_path=str(folder / "classifier"),
        output_dir=str(folder / "explainer"),
        new_subsets=8,
        guidance_exponent=1.0,  # the paper's: with so few values, sharper guidance gives worse maps (README)
        learning_rate=5e-4,
        num_warmup_steps=steps // 12,
        lr_scheduler_type="cosine",
        max_train_steps=steps,
        validation_steps=100,
        checkpointing_steps=350,
        train_dir=str(folder / "data" / "train"),
        per_device_train_batch_size=32,
        seed=seed,
    )


def _benchmark_arguments(folder: Path, seed: int) -> BenchmarkArguments:
    return BenchmarkArguments(
        model_name_or_path=str(folder / "classifier"),
        explainers=[f"salvage={folder / 'explainer'}"],
        methods=list(METHODS),
        validation_dir=str(folder / "data" / "val"),
        mask_dir=str(_mask_folder(folder / "data" / "val")),
        n_masks=2,
        seed=seed,
        output_dir=str(folder / "benchmark"),
    )


def make_pictures(folder: Path, per_class: int, seed: int) -> None:
    """Writes pictures of a disc or square whose pattern is the class, on a textured ground with two plain shapes.

    The picture folder/CLASS/NAME.png has the mask of its patterned shape in folder_masks/CLASS/NAME.png.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    patterns = [y // 2 % 2, x // 2 % 2, (x + y) // 3 % 2, (x // 3 + y // 3) % 2]
    for name, pattern in zip(CLASSES, patterns, strict=True):
        for kind in (folder, _mask_folder(folder)):
            (kind / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            coarse = Image.fromarray(rng.integers(60, 200, (8, 8, 3), dtype=np.uint8))
            ground = np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), dtype=float)
            picture = ground + rng.normal(0, 12, ground.shape)
            for _ in range(2):
                shape, _ = _shape(rng, 7, 11)
                picture[shape] = rng.integers(0, 256, 3) + rng.normal(0, 12, ground.shape)[shape]
            mask, (shift_x, shift_y) = _shape(rng, 7, 11)
            dark, light = rng.integers(0, 90, 3), rng.integers(165, 256, 3)
            shifted = np.roll(pattern, (shift_y, shift_x), axis=(0, 1))[..., None]
            picture[mask] = np.where(shifted, light, dark)[mask] + rng.normal(0, 12, ground.shape)[mask]
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:04d}.png")
            Image.fromarray(mask).save(_mask_folder(folder) / name / f"{number:04d}.png")


def _mask_folder(folder: Path) -> Path:
    return folder.with_name(folder.name + "_masks")


def _shape(rng: np.random.Generator, smallest: int, largest: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A disc or a square somewhere in the picture: bool [H, W], and its centre (x, y)."""
    radius = rng.integers(smallest, largest)
    x0, y0 = rng.integers(radius, IMAGE_SIZE - radius, 2)
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    if rng.random() < 0.5:
        return np.hypot(x - x0, y - y0) < radius, (x0, y0)
    return np.maximum(abs(x - x0), abs(y - y0)) < 0.85 * radius, (x0, y0)


def make_untrained_classifier(folder: Path, seed: int) -> None:
    """Writes a tiny DINOv2 with registers and random weights, and its image processor."""
    set_seed(seed)
    config = Dinov2WithRegistersConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        num_register_tokens=2,
        initializer_range=0.1,  # 0.02 is meant for wide models
    )
    config.num_labels = len(CLASSES)
    Dinov2WithRegistersForImageClassification(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_center_crop": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
