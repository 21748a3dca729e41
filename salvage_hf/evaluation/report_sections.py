"""The sections of the report, one per table or figure, with the texts that explain it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from ..objectives import OBJECTIVES
from . import report_figures as figures
from .ranking import shown_methods
from .reading import Benchmark
from .report_tables import classification_table, cost_table
from .results import finished_runs, method_titles
from .scores import TABLES, Score, scores_of_table
from .tables import Table, score_table

#: Explains the numbers and marks in the tables of scores.
MARKED = (
    "Scores are in percent, mean ± standard error over images. Bold: the best method, and all that a paired bootstrap "
    "over images (10,000 resamples, one-sided, 5%) cannot tell from it; underlined: the same among the other methods."
)


@dataclass(frozen=True)
class Section:
    """A table or figure.

    Args:
        name: the name of its file.
        title: its title.
        text: the text of the page about it; of a figure, what there is to see.
        content: the table or figure.
        alt: what the figure shows, for those who cannot see it; empty for a table.
        terms: name -> meaning of what the columns of a table are.
    """

    name: str
    title: str
    text: str
    content: Table | Figure
    alt: str = ""
    terms: Mapping[str, str] = field(default_factory=dict)


def file_name(title: str) -> str:
    """A title with "_" in place of characters that a file name should not have."""
    return re.sub(r"[^\w.-]+", "_", title)


def benchmark_sections(benchmarks: Mapping[str, Benchmark]) -> list[Section]:
    """The sections of benchmarks (data set -> benchmark), without those whose scores were not computed."""
    results_of = {dataset: benchmark.results for dataset, benchmark in benchmarks.items()}
    methods_of = {dataset: results["methods"] for dataset, results in results_of.items()}
    drawn = [
        *_map_sections(benchmarks),
        *_curve_sections(methods_of),
        _agreement_section(results_of),
        *_score_sections(results_of),
        _classification_section(results_of),
        _cost_section(methods_of),
    ]
    return [section for section in drawn if section]


def _curve_sections(methods_of: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """Figures 2 and 6, without those for which no curve was computed."""
    sections = []
    shown = _listed(dict.fromkeys(name for methods in methods_of.values() for name in shown_methods(methods)))
    if curves := figures.cardinality_curves(methods_of):
        text = (
            "How probable the classifier finds the true class (upwards) while it sees a share of the patches (to the "
            "right). In LIF it sees those that a map values most: the better the map, the earlier the curve rises. In "
            "MIF it sees those that the map values least: the better the map, the longer the curve stays low. SRG is "
            "the gap between both. R- stands for patches drawn by chance in proportion to their values. Thick: "
            "explainers trained for the classifier; dashed: random maps; the others are the best of the rest."
        )
        alt = f"Line charts over the share of visible patches, with a line for each of {shown}. The tables have means."
        title = "Figure 2: What the classifier sees in the patches that a map values"
        sections.append(Section("figure2", title, text, curves, alt))
    if sampling := figures.sampling_likelihood(methods_of):
        text = (
            "Mean probability of the true class on subsets of each size: guided by Salvage's final maps (Algorithm 3 "
            "as published, with the exponent 1; the mean of its R-LIF and R-MIF curves), and uniformly random (the "
            "same mean for random maps). Training on guided subsets shows the explainer more of what decides."
        )
        alt = f"Line charts of guided and random subsets for {', '.join(methods_of)}."
        sections.append(Section("figure6", "Figure 6: Guided and random subsets", text, sampling, alt))
    return sections


def _agreement_section(results_of: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """Figure 4, None without any explainer."""
    matrices = figures.correctness_matrices(results_of)
    if not matrices:
        return None
    text = (
        "An explainer also says which class it finds. Share of all images in percent: the upper row has the images on "
        "which the explainer is right, the left column those on which the classifier is. An explainer that follows its "
        "classifier has little outside of the diagonal from the upper left to the lower right."
    )
    alt = f"Two by two matrices of who is right, per explainer, for {', '.join(results_of)}. Table 4 has the shares."
    return Section("figure4", "Figure 4: Who is right, explainer and classifier", text, matrices, alt)


def ablation_sections(ablation_of: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """The figures of ablations: data set -> what its ablation.json holds."""
    runs = "; ".join(
        f"{dataset}: {ablation['settings']['max_train_steps']} steps each, "
        + ", ".join(f"{len(runs)} x {arm.title}" for arm, runs in finished_runs(ablation))
        for dataset, ablation in ablation_of.items()
    )
    text = f"In percent; bars are means over seeds, points are single seeds. {runs}."
    if any(ablation.get("exponents") for ablation in ablation_of.values()):
        text += " An exponent is the power of Algorithm 3's weights that draws the subsets; the informed arm's is 1."
    where = ", ".join(ablation_of)
    return [
        Section(
            "figure3",
            "Figure 3: What each part of the training adds",
            f"R-SRG with another objective (MSE on probabilities, ViT-Shapley's) and without informed sampling. {text}",
            figures.ablation_bars(ablation_of),
            f"Bars of R-SRG per way of training, with a point per seed, for {where}. The summary has the means.",
        ),
        Section(
            "figure7",
            "Figure 7: How fast training gets there",
            f"SRG after a quarter, a half and all of the training, with and without informed sampling. {text}",
            figures.ablation_course(ablation_of),
            f"Bars of SRG per way of training at three times of the training, with a point per seed, for {where}.",
        ),
    ]


def _titles(methods_of: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name -> title of every method of any data set."""
    return method_titles(name for methods in methods_of.values() for name in methods)


def _score_sections(results_of: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """Tables 1 to 3, without those for which no score was computed."""
    methods_of = {dataset: results["methods"] for dataset, results in results_of.items()}
    measured = "; ".join(f"{dataset}: {_measured(results)}" for dataset, results in results_of.items())
    sections = []
    for name, title in TABLES.items():
        scores = scores_of_table(name)
        table = score_table(methods_of, [score.name for score in scores], _titles(methods_of))
        if len(table.header) > 1:
            text = f"{measured}. {_undefined(methods_of, scores)}".strip()
            columns = [heading.split(" ")[-2] for heading in table.header[1:]]  # "Pets R-SRG ↑" is of R-SRG
            terms = {score.title: score.meaning for score in scores if score.title in columns}
            sections.append(Section(name, title, text, table, terms=terms))
    return sections


def _measured(results: Mapping[str, Any]) -> str:
    """On how many images scores were measured, and with how many draws."""
    rank, relative = results["settings"]["rank"], results["settings"]["relative"]
    draws = f"{relative['budget']} forwards" if "budget" in relative else f"{relative['n_masks']} draws per size"
    parts = [f"{len(results['ids'])} images"]
    if 0 < rank["images"] < len(results["ids"]):
        parts.append(f"rank scores on {rank['images']} of them")
    if relative["images"]:
        parts.append(f"relative scores on {relative['images']} of them with {draws}")
    return ", ".join(parts)


def _undefined(methods_of: Mapping[str, Mapping[str, Mapping[str, Any]]], scores: list[Score]) -> str:
    """A sentence on how many images are left out of a mean, because their region leaves the score undefined."""
    counts = []
    for dataset, methods in methods_of.items():
        for score in scores:
            for name, title in method_titles(methods).items():
                missing = sum(value is None for value in methods[name].get(score.name, ()))
                if score.family == "region" and missing:
                    images = "image" if missing == 1 else "images"
                    counts.append(f"{score.title} of {title} on {missing} {images} of {dataset}")
    return f"Undefined, and left out: {', '.join(counts)}." if counts else ""


def _classification_section(results_of: Mapping[str, Mapping[str, Any]]) -> Section | None:
    table = classification_table(results_of)
    if not table.rows:
        return None
    text = "All images; precision, recall and F1 are means over the classes (of label 1 where there is one label)."
    terms = {
        "accuracy": "The share of images whose true class the model finds.",
        "precision": "Of the images for which it names a class, the share that has it.",
        "recall": "Of the images of a class, the share for which it names this class.",
        "F1": "The harmonic mean of precision and recall.",
        "MCC": "Matthews' correlation of named and true classes: 1 is perfect, 0 is chance.",
        "agrees with the classifier": "The share of images for which it names the class that the classifier names.",
    }
    return Section("table4", "Table 4: Classifying by explaining", text, table, terms=terms)


def _cost_section(methods_of: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Section:
    explainers = ", ".join(objective.title for objective in OBJECTIVES.values())
    text = f"Per image. Trained explainers ({explainers}) explain all classes at once, the other methods one."
    terms = {
        "forwards": "The floating-point operations of explaining an image, backward passes included, in forwards of "
        "the classifier on the whole image (counted on the first image).",
        "seconds": "Time on the device that stands under 'Settings and commands', in batches.",
    }
    table = cost_table(methods_of, _titles(methods_of))
    return Section("cost", "Cost of an explanation", text, table, terms=terms)


def _map_sections(benchmarks: Mapping[str, Benchmark]) -> list[Section]:
    """Figures 1, 5 and 8 of every data set."""
    sections = []
    for dataset, benchmark in benchmarks.items():
        several, methods = len(benchmarks) > 1, benchmark.results["methods"]
        suffix, where = (f"_{file_name(dataset)}", f" on {dataset}") if several else ("", "")
        shown = shown_methods(methods)
        text = (
            "Left the image as the classifier sees it, with its true class, then the maps of that class, best method "
            "first. A patch is red where it speaks more for the class than the map's mean, and blue where it speaks "
            "less. Look where the red is: a map can be trusted if the classifier's probability hangs on it, which "
            "Figure 2 and the tables measure."
        )
        alt = f"Images of {dataset} in rows, beside maps by {_listed(shown)} as red and blue patches over them."
        if len(methods) > len(shown):
            text += " The other methods are in Figure 8."
            everything = figures.map_grid(benchmark)
            title = f"Figure 8: The maps of all methods{where}"
            what = f"Images of {dataset} in rows, beside maps by {_listed(method_titles(methods))}."
            sections.append(Section(f"figure8{suffix}", title, "As Figure 1, of all methods.", everything, what))
        maps = figures.map_grid(benchmark, shown)
        sections.append(Section(f"figure1{suffix}", f"Figure 1: What each method points at{where}", text, maps, alt))
        if wrong := figures.misclassified_grid(benchmark):
            text = (
                "First row the image, then Salvage's maps of the class that it predicts and of the true class: red "
                "patches speak for it, blue ones against it. Look whether the wrong class has found something that "
                "looks like it."
            )
            what = f"Images of {dataset} that Salvage gets wrong, and its maps of the predicted and of the true class."
            title = f"Figure 5: What Salvage gets wrong{where}"
            sections.append(Section(f"figure5{suffix}", title, text, wrong, what))
    return sections


def _listed(names: Iterable[str]) -> str:
    return ", ".join(method_titles(names).values())
