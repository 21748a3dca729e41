"""Tables, figures and one page from finished benchmarks and ablations: what the paper shows, without any model."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

from . import plots
from .ablation import ARMS
from .attribution_methods import REGISTRY
from .benchmark import titled_scores
from .tables import Cell, Table, score_table, title_of
from .training import check_writable

#: What the paper's tables of scores hold, in its order.
SCORE_TABLES = {
    "table1": ("Table 1: Faithfulness and localisation", ("srg", "r_srg", "rma", "rra")),
    "table2": ("Table 2: Insertion and deletion", ("lif", "mif")),
    "table3": ("Table 3: Relative insertion and deletion", ("r_lif", "r_mif")),
}
MODELS = {"classifier": "Classifier", "vit_shapley": "ViT-Shapley", "salvage": "Salvage"}


@dataclass
class ReportArguments:
    """Arguments of scripts/report.py."""

    benchmarks: list[str] = field(
        default_factory=list, metadata={"help": "Output folders of scripts/benchmark.py, each FOLDER or TITLE=FOLDER."}
    )
    ablations: list[str] = field(
        default_factory=list, metadata={"help": "Output folders of scripts/ablation.py, each FOLDER or TITLE=FOLDER."}
    )
    output_dir: str = field(
        default="outputs/report", metadata={"help": "Where index.html, tables/ and figures/ are written."}
    )


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark: its results.json, and the folder that holds its maps and pictures."""

    folder: Path
    results: dict[str, Any]


def write_report(args: ReportArguments) -> Path:
    """Writes every table and figure that the results allow, and a page that holds them; returns the page."""
    if not args.benchmarks and not args.ablations:
        raise ValueError("benchmarks or ablations are needed: output folders of scripts/benchmark.py or ablation.py")
    benchmarks = {
        title: Benchmark(folder, _read(folder / "results.json")) for title, folder in _titled(args.benchmarks).items()
    }
    ablations = {title: _read(folder / "ablation.json") for title, folder in _titled(args.ablations).items()}
    folder = Path(args.output_dir)
    check_writable(folder)
    sections = (_of_benchmarks(benchmarks) if benchmarks else []) + (_of_ablations(ablations) if ablations else [])
    for kind in ("tables", "figures"):
        (folder / kind).mkdir(exist_ok=True)
    parts = []
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>\n<p>{html.escape(section.text)}</p>")
        if isinstance(section.content, Table):
            (folder / "tables" / f"{section.name}.md").write_text(section.content.markdown())
            (folder / "tables" / f"{section.name}.tex").write_text(section.content.latex())
            parts.append(section.content.html())
        else:
            picture = plots.png(section.content)
            (folder / "figures" / f"{section.name}.png").write_bytes(picture)
            parts.append(plots.html_image(picture, html.escape(section.title)))
    page = folder / "index.html"
    page.write_text(PAGE.format(body="\n".join(parts)))
    return page


def _titled(folders: Sequence[str]) -> dict[str, Path]:
    pairs = [
        item.split("=", 1) if "=" in item and not Path(item).is_dir() else (Path(item).resolve().name, item)
        for item in folders
    ]
    titles = [title for title, _ in pairs]
    if len(set(map(_file_name, titles))) < len(titles):
        raise ValueError(f"two results have the same title, or one that differs by signs alone: {titles}")
    return {title: Path(folder) for title, folder in pairs}


def _file_name(title: str) -> str:
    return re.sub(r"[^\w.-]+", "_", title)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no {path.name} in {str(path.parent)!r}: it is written by scripts/{_WRITER[path.name]}")
    return json.loads(path.read_text())


_WRITER = {"results.json": "benchmark.py", "ablation.json": "ablation.py"}


@dataclass(frozen=True)
class Section:
    """A table or figure, its file name, and what the page says of it."""

    name: str
    title: str
    text: str
    content: Table | Figure


def _of_benchmarks(benchmarks: Mapping[str, Benchmark]) -> list[Section]:
    scores = {title: titled_scores(benchmark.results) for title, benchmark in benchmarks.items()}
    what = "; ".join(f"{title}: {_how(benchmark.results)}" for title, benchmark in benchmarks.items())
    marked = (
        "In percent, mean ± standard error over images. Bold: the best and all that a paired bootstrap over images "
        "(10,000 resamples, one-sided, 5%) does not tell from it; underlined: of the others, likewise."
    )
    sections = []
    for name, (title, columns) in SCORE_TABLES.items():
        text = f"{marked} {what}. {_undefined(scores, columns)}".strip()
        table = score_table(scores, columns)
        if len(table.header) > 1:
            sections.append(Section(name, title, text, table))
    sections.append(
        Section(
            "table4",
            "Table 4: Classifying by explaining",
            "All images; precision, recall and F1 are means over the classes (of label 1 where there is one label).",
            classification_table({title: benchmark.results for title, benchmark in benchmarks.items()}),
        )
    )
    sections.append(
        Section(
            "cost",
            "Cost of an explanation",
            "Forwards of the classifier on the whole image that the operations of explaining it amount to, backward "
            "passes included (counted on the first image), and seconds an image, on the machine of the benchmark. "
            "Salvage and ViT-Shapley explain all classes at once, the others one.",
            cost_table(scores),
        )
    )
    for title, benchmark in benchmarks.items():
        suffix = f"_{_file_name(title)}" if len(benchmarks) > 1 else ""
        of = f" on {title}" if len(benchmarks) > 1 else ""
        sections.append(
            Section(
                f"figure1{suffix}",
                f"Figure 1: Maps{of}",
                "Each map is centred on its mean: red patches are above it, blue ones below.",
                map_grid(benchmark),
            )
        )
        if wrong := misclassified_grid(benchmark):
            text = (
                "First row the image, then Salvage's maps of the class it predicts and of the true class: red patches "
                "speak for it, blue ones against it."
            )
            sections.append(Section(f"figure5{suffix}", f"Figure 5: What Salvage gets wrong{of}", text, wrong))
    if curves := cardinality_curves(scores):
        text = "The three methods with the highest SRG (R-SRG where no SRG was asked for), and random maps."
        sections.append(Section("figure2", "Figure 2: Curves over the number of visible patches", text, curves))
    if right := correctness_matrices({title: benchmark.results for title, benchmark in benchmarks.items()}):
        text = "Share of all images in percent: rows the explainer, columns the classifier."
        sections.append(Section("figure4", "Figure 4: Who is right", text, right))
    if likelihood := sampling_likelihood(scores):
        text = (
            "Mean probability of the true class on subsets of each size: guided by Salvage's final maps (Algorithm 3; "
            "the mean of its R-LIF and R-MIF curves), and random (that of random maps, which draw all subsets alike)."
        )
        sections.append(Section("figure6", "Figure 6: Guided and random subsets", text, likelihood))
    return sections


def _how(results: Mapping[str, Any]) -> str:
    rank, relative = results["settings"]["rank"], results["settings"]["relative"]
    draws = f"{relative['budget']} forwards" if "budget" in relative else f"{relative['n_masks']} draws a size"
    parts = [f"{len(results['ids'])} images"]
    parts += [f"rank scores on {rank['images']} of them"] * (0 < rank["images"] < len(results["ids"]))
    parts += [f"relative scores on {relative['images']} of them with {draws}"] * (relative["images"] > 0)
    return ", ".join(parts)


def _undefined(scores: Mapping[str, Mapping[str, Mapping[str, Any]]], columns: Sequence[str]) -> str:
    """How often regions leave a score undefined: such images are left out of its mean."""
    counts = [
        f"{name} {column.upper()} {missing} on {dataset}"
        for dataset, methods in scores.items()
        for column in columns
        if column in ("rra", "rma")
        for name, of in methods.items()
        if (missing := sum(value is None for value in of.get(column, ())))
    ]
    return f"Left out as undefined (images): {', '.join(counts)}." if counts else ""


def classification_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """The paper's Table 4: accuracy, precision, recall, F1 and Matthews' correlation of classifier and explainers."""
    rows = []
    for dataset, of in results.items():
        labels = of["classification"]["labels"]
        average = "binary" if len(of["label_names"]) == 1 else "macro"
        for name, title in MODELS.items():
            if name not in of["classification"]:
                continue
            predicted = of["classification"][name]["predictions"]
            # Macro: over the classes that the images have; a wrong answer of another class is no class of theirs.
            present = None if average == "binary" else sorted(set(labels))
            *shares, _ = precision_recall_fscore_support(
                labels, predicted, labels=present, average=average, zero_division=0
            )
            cells = [f"{100 * share:.1f}%" for share in (accuracy_score(labels, predicted), *shares)]
            # Undefined with a single class, where scikit-learn says 0.
            cells.append(f"{matthews_corrcoef(labels, predicted):.3f}" if len(set(labels)) > 1 else "-")
            same = np.mean(np.array(predicted) == of["classification"]["classifier"]["predictions"])
            cells.append(f"{100 * same:.1f}%")
            rows.append([Cell(text) for text in (*([dataset] if len(results) > 1 else []), title, *cells)])
    header = ["model", "accuracy", "precision", "recall", "F1", "MCC", "agrees with the classifier"]
    return Table(["data set", *header] if len(results) > 1 else header, rows)


def cost_table(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """Forwards and seconds of every method, an image."""
    several = len(scores) > 1
    header = ["method"]
    header += [f"{dataset} {unit}" if several else unit for dataset in scores for unit in ("forwards", "seconds")]
    rows = []
    for name in dict.fromkeys(name for methods in scores.values() for name in methods):
        cells = [Cell(name)]
        for methods in scores.values():
            of = methods.get(name)
            cells += [Cell(f"{of['forwards']:,.1f}"), Cell(f"{of['seconds']:.3g}")] if of else [Cell("-"), Cell("-")]
        rows.append(cells)
    return Table(header, rows)


def map_grid(benchmark: Benchmark) -> Figure:
    """Figures 1, 8 and 9: pictures in rows, methods in columns."""
    results = benchmark.results
    pictures = load_file(benchmark.folder / "examples.safetensors")["pictures"].numpy()
    maps = {
        info.title: load_file(benchmark.folder / "maps" / f"{name}.safetensors")["attributions"]
        for name, info in REGISTRY.items()
        if name in results["methods"]
    }
    rows: list[list[tuple[str, Image.Image]]] = []
    for picture, position in zip(pictures, results["examples"], strict=True):
        image = Image.fromarray(picture)
        row = [(_label(results, results["targets"][position]), image)]
        for title, values in maps.items():
            centred = values[position] - values[position].mean()
            row.append((title if not rows else "", plots.overlay(image, _on_grid(centred, results))))
        rows.append(row)
    return plots.picture_grid(rows, width=1.1)


def misclassified_grid(benchmark: Benchmark) -> Figure | None:
    """Figure 5: images that Salvage misclassifies, its maps of the predicted and of the true class."""
    results, wrong = benchmark.results, benchmark.results.get("misclassified")
    if not wrong or not wrong["ids"]:
        return None
    tensors = load_file(benchmark.folder / "misclassified.safetensors")
    images = [Image.fromarray(picture) for picture in tensors["pictures"].numpy()]
    rows: list[list[tuple[str, Image.Image]]] = [[("", image) for image in images]]
    for kind in ("predicted", "true"):
        rows.append(
            [
                (f"{kind}: {_label(results, label)}", plots.overlay(image, _on_grid(values, results)))
                for image, label, values in zip(images, wrong[kind], tensors[kind], strict=True)
            ]
        )
    return plots.picture_grid(rows, width=2.0)


def _on_grid(values: torch.Tensor, results: Mapping[str, Any]) -> np.ndarray:
    return values.float().unflatten(0, tuple(results["grid_size"])).numpy()


def _label(results: Mapping[str, Any], label: int) -> str:
    names = results["label_names"]
    if len(names) == 1:
        return names[0] if label == 1 else f"not {names[0]}"
    return names[label]


def cardinality_curves(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure | None:
    """Figure 2: every score at every number of visible patches, of the three methods with the highest SRG or R-SRG."""
    panels = {}
    for dataset, methods in scores.items():
        by = "srg" if any("srg" in of for of in methods.values()) else "r_srg"
        asked = {name: [value for value in of[by] if value is not None] for name, of in methods.items() if by in of}
        ranked = sorted(asked, key=lambda name: np.mean(asked[name]), reverse=True)
        shown = {name: methods[name]["curves"] for name in ranked if name in (*ranked[:3], "Random")}
        for score in ("lif", "mif", "srg", "r_lif", "r_mif", "r_srg"):
            part = "r_lif" if score.startswith("r_") else "lif"
            if lines := {name: _curve(curves, score) for name, curves in shown.items() if part in curves}:
                panels[f"{dataset}: {title_of(score)}" if len(scores) > 1 else title_of(score)] = lines
    return plots.curves(panels, columns=6) if panels else None


def _curve(curves: Mapping[str, Sequence[float]], score: str) -> Sequence[float]:
    if score in curves:
        return curves[score]
    prefix = score.removesuffix("srg")
    return (np.array(curves[f"{prefix}lif"]) - np.array(curves[f"{prefix}mif"])).tolist()


def sampling_likelihood(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure | None:
    """Figure 6: the mean prediction under guided and under random sampling, by size."""
    panels = {}
    for dataset, methods in scores.items():
        lines = {
            title: np.mean([methods[name]["curves"]["r_lif"], methods[name]["curves"]["r_mif"]], axis=0).tolist()
            for title, name in (("guided", "Salvage"), ("random", "Random"))
            if name in methods and "r_lif" in methods[name]["curves"]
        }
        if len(lines) == 2:
            panels[dataset] = lines
    return plots.curves(panels, columns=4) if panels else None


def correctness_matrices(results: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Figure 4: how often the explainer and the classifier are both right, one of them, or none."""
    matrices = {}
    for dataset, of in results.items():
        labels, predicted = np.array(of["classification"]["labels"]), of["classification"]
        right = {name: np.array(predicted[name]["predictions"]) == labels for name in MODELS if name in predicted}
        for name in ("salvage", "vit_shapley"):
            if name in right:
                matrices[f"{dataset}: {MODELS[name]}"] = np.array(
                    [[100 * np.mean((right[name] == a) & (right["classifier"] == b)) for b in (1, 0)] for a in (1, 0)]
                )
    return plots.matrices(matrices, ("right", "wrong"), "classifier", "explainer") if matrices else None


def _of_ablations(ablations: Mapping[str, dict[str, Any]]) -> list[Section]:
    runs_of = "; ".join(
        f"{title}: {of['settings']['max_train_steps']} steps each, "
        + ", ".join(f"{len(runs)} x {ARMS[name][0]}" for name, runs in of["arms"].items())
        for title, of in ablations.items()
    )
    bars, course = {}, {}
    for dataset, of in ablations.items():
        arms = {title: of["arms"][name] for name, (title, *_) in ARMS.items() if name in of["arms"]}
        bars[dataset] = {name: [100 * np.mean(run["r_srg"]) for run in runs.values()] for name, runs in arms.items()}
        steps = of["settings"]["max_train_steps"]
        for share in (0.25, 0.5, 1.0):
            course[f"{dataset}: {share:.0%} of training"] = {
                name: [100 * _srg_at(run["history"], share * steps) for run in runs.values()]
                for name, runs in arms.items()
                if "Salvage" in name
            }
    text = f"Bars are means over seeds, points the seeds; percent. {runs_of}."
    return [
        Section(
            "figure3",
            "Figure 3: Ablation",
            f"R-SRG with another objective (MSE on probabilities, ViT-Shapley's) and without informed sampling. {text}",
            plots.bars(bars, "R-SRG (%)"),
        ),
        Section(
            "figure7",
            "Figure 7: SRG during training",
            f"With and without informed sampling. {text}",
            plots.bars(course, "SRG (%)", columns=3),
        ),
    ]


def _srg_at(history: Sequence[Mapping[str, float]], step: float) -> float:
    """SRG of the validation nearest to a step."""
    return min((row for row in history if "eval_srg" in row), key=lambda row: abs(row["step"] - step))["eval_srg"]


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Salvage: report</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100%; height: auto }}
table {{ border-collapse: collapse }} td, th {{ padding: .3rem .8rem; border-bottom: 1px solid #ccc; text-align: left }}
</style>
<h1>Salvage and other attribution methods</h1>
{body}
</html>
"""
