"""The whole method on a small data set whose answer is known: what `salvage demo` does."""

import html
import json
import logging
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    set_seed,
)

from . import attribution_methods, plots
from .benchmark import SCORES, BenchmarkArguments, run_benchmark
from .classifier_training import ClassifierArguments, train_classifier
from .data import open_image
from .explainer_training import ExplainerArguments, train_explainer
from .faithfulness import mean_and_stderr
from .localization import relevance_mass_accuracy, relevance_rank_accuracy, upsample
from .masking import MaskedClassifier, activation, target_attributions

IMAGE_SIZE, PATCH_SIZE = 64, 8
CLASSES = ("horizontal stripes", "vertical stripes", "diagonal stripes", "checks")
METHODS = ("salvage", "last_attention", "random")
TRAIN_PICTURES, EVAL_PICTURES = 400, 40  # of each class
CLASSIFIER_STEPS, EXPLAINER_STEPS = 600, 600

logger = logging.getLogger(__name__)


def run_demo(output_dir: str, seed: int = 0) -> Path:
    """Makes pictures, trains a classifier and Salvage on them, scores the maps; returns the page that shows it all."""
    start = time.perf_counter()
    folder = Path(output_dir)
    marker = folder / "salvage_demo"
    for part in ("data", "untrained", "classifier", "explainer", "benchmark"):
        if (folder / part).exists() and not marker.exists():
            raise ValueError(f"{str(folder / part)!r} is not of an earlier demo; give another output_dir")
        shutil.rmtree(folder / part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("What lies beside this file was made by `salvage demo`, which makes it anew each time.\n")
    make_pictures(folder / "data" / "train", TRAIN_PICTURES, seed)
    make_pictures(folder / "data" / "val", EVAL_PICTURES, seed + 1)
    make_untrained_classifier(folder / "untrained", seed)
    train_dir = str(folder / "data" / "train")
    print("1/3 training a classifier on pictures with patches removed")
    train_classifier(
        ClassifierArguments(
            model_name_or_path=str(folder / "untrained"),
            output_dir=str(folder / "classifier"),
            mask_patches=True,
            learning_rate=1e-3,
            num_warmup_steps=100,
            max_train_steps=CLASSIFIER_STEPS,
            validation_steps=300,
            checkpointing_steps=300,
            train_dir=train_dir,
            per_device_train_batch_size=32,
            seed=seed,
        )
    )
    print("2/3 training Salvage against the frozen classifier")
    train_explainer(
        ExplainerArguments(
            model_name_or_path=str(folder / "classifier"),
            output_dir=str(folder / "explainer"),
            new_subsets=8,
            learning_rate=5e-4,
            num_warmup_steps=50,
            lr_scheduler_type="cosine",
            max_train_steps=EXPLAINER_STEPS,
            validation_steps=100,
            checkpointing_steps=350,
            train_dir=train_dir,
            per_device_train_batch_size=32,
            seed=seed,
        )
    )
    print("3/3 scoring the explanations")
    results = run_benchmark(
        BenchmarkArguments(
            model_name_or_path=str(folder / "classifier"),
            explainer=str(folder / "explainer"),
            methods=list(METHODS),
            validation_dir=str(folder / "data" / "val"),
            n_masks=2,
            seed=seed,
            output_dir=str(folder / "benchmark"),
        )
    )
    add_localization(results, folder)
    table = score_table(results)
    print("\n" + table + "\n")
    classification = results["classification"]
    print(
        f"Classifying by explaining, {classification['images']} pictures: accuracy of the classifier "
        f"{classification['classifier']:.3f}, of the explainer {classification['explainer']:.3f}, "
        f"agreement {classification['agreement']:.3f}"
    )
    page = folder / "index.html"
    page.write_text(render_page(results, folder, table))
    print(f"\n{time.perf_counter() - start:.0f} s. Open {page}")
    return page


def make_pictures(folder: Path, per_class: int, seed: int) -> None:
    """Pictures of a patterned disc or square of one class, on a textured ground beside two plain shapes.

    Each picture folder/CLASS/NAME.png has its object's mask in folder_masks/CLASS/NAME.png.
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
    """A tiny DINOv2 with registers, with random weights, and its image processor."""
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


def add_localization(results: dict, folder: Path) -> None:
    """Adds RRA and RMA of every method, against the masks of the objects, to the results of the benchmark."""
    v, processor, files = _explained(results, folder)
    pixel_values = processor([open_image(file) for file in files], return_tensors="pt")["pixel_values"]
    targets = torch.tensor(results["targets"])
    masks = [np.asarray(Image.open(_mask_folder(file.parents[1]) / file.parent.name / file.name)) for file in files]
    for name, scores in results["methods"].items():
        options = {"explainer": str(folder / "explainer")} if name == "salvage" else {}
        method = attribution_methods.load(name, classifier=v, seed=results["settings"]["seed"], **options)
        maps = upsample(method(pixel_values, targets), v.grid_size, (IMAGE_SIZE, IMAGE_SIZE))
        region = torch.from_numpy(np.stack(masks))
        scores["rra"] = relevance_rank_accuracy(maps, region).tolist()
        scores["rma"] = relevance_mass_accuracy(maps, region).tolist()


def _explained(results: dict, folder: Path):
    v = MaskedClassifier.from_pretrained(str(folder / "classifier"))
    processor = AutoImageProcessor.from_pretrained(folder / "classifier")
    return v, processor, [folder / "data" / "val" / name for name in results["ids"]]


def score_table(results: dict) -> str:
    """A Markdown table, mean ± standard error over the pictures, in percent."""
    columns = [name for name in (*SCORES, "rra", "rma") if name in ("srg", "r_srg", "rra", "rma")]
    lines = [f"| method | {' | '.join(name.upper().replace('_', '-') for name in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, scores in results["methods"].items():
        pairs = [mean_and_stderr(torch.tensor(scores[column])) for column in columns]
        cells = " | ".join(f"{100 * mean:.1f} ± {100 * stderr:.1f}" for mean, stderr in pairs)
        lines.append(f"| {attribution_methods.REGISTRY[name].title} | {cells} |")
    return "\n".join(lines)


@torch.no_grad()
def render_page(results: dict, folder: Path, table: str) -> str:
    """The page: examples with the maps of two classes, the curves, the scores and the classification."""
    v, processor, files = _explained(results, folder)
    model = AutoModel.from_pretrained(str(folder / "explainer")).eval()
    shown = [next(file for file in files if file.parent.name == name) for name in CLASSES]
    rows = []
    for file in shown:
        picture = open_image(file)
        output = model(processor(picture, return_tensors="pt")["pixel_values"])
        true = v.config.label2id[file.parent.name]
        ranked = output.logits[0].argsort(descending=True).tolist()
        runner_up = next(index for index in ranked if index != true)
        probabilities = activation(output.logits)[0]
        maps = [target_attributions(output.attributions, torch.tensor([c]))[0] for c in (true, runner_up)]
        grids = [values.unflatten(0, v.grid_size).numpy() for values in maps]
        limit = float(max(abs(grid).max() for grid in grids))
        rows.append(
            [
                (file.parent.name, picture),
                *(
                    (
                        f"{v.config.id2label[c]}\n{100 * probabilities[c]:.1f}%",
                        plots.overlay(picture, grid, limit=limit),
                    )
                    for c, grid in zip((true, runner_up), grids, strict=True)
                ),
            ]
        )
    titles = {name: attribution_methods.REGISTRY[name].title for name in results["methods"]}
    panels = {
        title: {titles[name]: scores["curves"][curve] for name, scores in results["methods"].items()}
        for curve, title in (
            ("lif", "LIF (insertion) ↑"),
            ("mif", "MIF (deletion) ↓"),
            ("r_lif", "R-LIF ↑"),
            ("r_mif", "R-MIF ↓"),
        )
    }
    classification = results["classification"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    header, body = cells[0], cells[2:]
    return PAGE.format(
        examples=plots.html_image(plots.picture_grid(rows), "Example pictures with the maps of two classes"),
        curves=plots.html_image(plots.curves(panels), "Curves of prediction over visible patches"),
        header="".join(f"<th>{html.escape(cell)}</th>" for cell in header),
        body="".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in body),
        images=classification["images"],
        classifier=f"{100 * classification['classifier']:.1f}%",
        explainer=f"{100 * classification['explainer']:.1f}%",
        agreement=f"{100 * classification['agreement']:.1f}%",
        scored=len(results["ids"]),
        n_masks=results["settings"]["relative"]["n_masks"],
    )


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Salvage demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100%; height: auto }}
table {{ border-collapse: collapse }} td, th {{ padding: .3rem .8rem; border-bottom: 1px solid #ccc; text-align: left }}
</style>
<h1>Salvage demo</h1>
<p>Every picture holds one patterned shape, which makes its class, and two plain ones on a textured ground. A tiny
DINOv2 with registers was trained to name the pattern, and Salvage to explain it.</p>
<h2>Explanations</h2>
<p>Left the picture with its class; then Salvage's maps for that class and for the runner-up, with the probability that
the explainer itself gives. Red patches speak for the class, blue ones against it.</p>
{examples}
<h2>Faithfulness and localisation</h2>
<p>{scored} pictures, in percent, mean and standard error; relative scores with {n_masks} draws a size. SRG and R-SRG:
how much more the classifier predicts from the patches called important than from the others. RRA and RMA: how far the
map keeps to the patterned shape.</p>
<table><tr>{header}</tr>{body}</table>
<h2>Curves</h2>
<p>What the classifier predicts for the true class as patches are added: most important first (LIF, insertion) and least
important first (MIF, deletion); the relative curves draw patches in proportion to their attribution.</p>
{curves}
<h2>Classifying by explaining</h2>
<p>On {images} pictures the classifier is right on {classifier}, the explainer on {explainer}; they agree on
{agreement}.</p>
</html>
"""
