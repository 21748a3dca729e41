"""The sections of the report, one per table or figure, with the text that explains it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from ..objectives import OBJECTIVES
from . import report_figures as figures
from .reading import Benchmark
from .report_tables import classification_table, cost_table
from .results import finished_runs, method_titles
from .scores import TABLES, Score, scores_of_table
from .tables import Table, score_table

#: Explains the marks in the tables of scores.
MARKED = (
    "In percent, mean ± standard error over images. Bold: the best method, and all that a paired bootstrap over images "
    "(10,000 resamples, one-sided, 5%) cannot tell from it; underlined: the same among the other methods."
)


@dataclass(frozen=True)
class Section:
    """A table or figure, the name of its file, its title, and the text of the page about it."""

    name: str
    title: str
    text: str
    content: Table | Figure


def file_name(title: str) -> str:
    """A title with "_" in place of characters that a file name should not have."""
    return re.sub(r"[^\w.-]+", "_", title)


def benchmark_sections(benchmarks: Mapping[str, Benchmark]) -> list[Section]:
    """The sections of benchmarks (data set -> benchmark), without those whose scores were not computed."""
    results_of = {dataset: benchmark.results for dataset, benchmark in benchmarks.items()}
    methods_of = {dataset: results["methods"] for dataset, results in results_of.items()}
    drawn = [
        *_score_sections(results_of),
        _classification_section(results_of),
        _cost_section(methods_of),
        *_map_sections(benchmarks),
        _section(
            "figure2",
            "Figure 2: Curves over the number of visible patches",
            "The three methods with the highest SRG (R-SRG where no SRG was computed), and random maps.",
            figures.cardinality_curves(methods_of),
        ),
        _section(
            "figure4",
            "Figure 4: Who is right",
            "Share of all images in percent: rows the explainer, columns the classifier.",
            figures.correctness_matrices(results_of),
        ),
        _section(
            "figure6",
            "Figure 6: Guided and random subsets",
            "Mean probability of the true class on subsets of each size: guided by Salvage's final maps (Algorithm 3 "
            "as published, with the exponent 1; the mean of its R-LIF and R-MIF curves), and uniformly random (the "
            "same mean for random maps).",
            figures.sampling_likelihood(methods_of),
        ),
    ]
    return [section for section in drawn if section]


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
    return [
        Section(
            "figure3",
            "Figure 3: Ablation",
            f"R-SRG with another objective (MSE on probabilities, ViT-Shapley's) and without informed sampling. {text}",
            figures.ablation_bars(ablation_of),
        ),
        Section(
            "figure7",
            "Figure 7: SRG during training",
            f"With and without informed sampling. {text}",
            figures.ablation_course(ablation_of),
        ),
    ]


def _section(name: str, title: str, text: str, figure: Figure | None) -> Section | None:
    return Section(name, title, text, figure) if figure else None


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
            text = f"{MARKED} {measured}. {_undefined(methods_of, scores)}".strip()
            sections.append(Section(name, title, text, table))
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
                    counts.append(f"{title} {score.title} {missing} on {dataset}")
    return f"Left out as undefined (images): {', '.join(counts)}." if counts else ""


def _classification_section(results_of: Mapping[str, Mapping[str, Any]]) -> Section | None:
    table = classification_table(results_of)
    if not table.rows:
        return None
    text = "All images; precision, recall and F1 are means over the classes (of label 1 where there is one label)."
    return Section("table4", "Table 4: Classifying by explaining", text, table)


def _cost_section(methods_of: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Section:
    explainers = ", ".join(objective.title for objective in OBJECTIVES.values())
    return Section(
        "cost",
        "Cost of an explanation",
        "The floating-point operations of explaining an image, backward passes included, in forwards of the "
        "classifier on the whole image (counted on the first image); and seconds per image on the machine used. "
        f"Trained explainers ({explainers}) explain all classes at once, the other methods one.",
        cost_table(methods_of, _titles(methods_of)),
    )


def _map_sections(benchmarks: Mapping[str, Benchmark]) -> list[Section]:
    """Figures 1 and 5 of every data set."""
    sections = []
    for dataset, benchmark in benchmarks.items():
        several = len(benchmarks) > 1
        suffix, where = (f"_{file_name(dataset)}", f" on {dataset}") if several else ("", "")
        text = "Each map is centred on its mean: red patches are above it, blue ones below."
        maps = figures.map_grid(benchmark)
        sections.append(Section(f"figure1{suffix}", f"Figure 1: Maps{where}", text, maps))
        if wrong := figures.misclassified_grid(benchmark):
            text = (
                "First row the image, then Salvage's maps of the class it predicts and of the true class: red patches "
                "speak for it, blue ones against it."
            )
            sections.append(Section(f"figure5{suffix}", f"Figure 5: What Salvage gets wrong{where}", text, wrong))
    return sections
