"""Figures of the report: the paper's figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from ..modeling import overlay
from ..objectives import OBJECTIVES
from ..targets import target_names
from . import plots
from .ranking import TRAINED, shown_methods
from .reading import Benchmark, read_examples, read_maps, read_misclassified
from .results import finished_runs, method_titles
from .scores import SCORES, scores_of_family

#: Data set -> name of a method -> its entry in results.json.
MethodsOf = Mapping[str, Mapping[str, Mapping[str, Any]]]


#: What the colours of maps mean, in figures of maps that are centred on their mean, and in those that are not.
_CENTRED = "less than the map's mean", "the map's mean", "more than the map's mean"
_SIGNED = "against the class", "neither", "for the class"

#: How many images the large figure of few methods shows, and how wide it is in inches; the width of a small map.
_LARGE_ROWS, _LARGE_WIDTH, _SMALL_MAP = 5, 10.2, 1.1


def map_grid(benchmark: Benchmark, methods: Sequence[str] | None = None) -> Figure:
    """Figures 1, 8 and 9: pictures in rows, methods in columns.

    Args:
        benchmark: the benchmark.
        methods: names of few methods, whose maps of some images are drawn large; all methods and images when None.
    """
    results = benchmark.results
    names = target_names(results["label_names"])
    titles = method_titles(results["methods"])
    maps = {titles[name]: read_maps(benchmark, name) for name in methods or titles}
    pictures = list(zip(read_examples(benchmark).numpy(), results["examples"], strict=True))
    rows: list[list[tuple[str, Image.Image]]] = []
    for picture, position in pictures[: _LARGE_ROWS if methods else None]:
        image = Image.fromarray(picture)
        row = [(names[results["targets"][position]], image)]
        for title, values in maps.items():
            centred = values[position] - values[position].mean()
            row.append((title if not rows else "", overlay(image, _on_grid(centred, results))))
        rows.append(row)
    width = min(2.2, _LARGE_WIDTH / (1 + len(maps))) if methods else _SMALL_MAP
    return plots.picture_grid(rows, width, _CENTRED)


def misclassified_grid(benchmark: Benchmark) -> Figure | None:
    """Figure 5: images that Salvage gets wrong, with its maps of the predicted and the true class; None without any."""
    results, wrong = benchmark.results, benchmark.results.get("misclassified")
    if not wrong or not wrong["ids"]:
        return None
    tensors = read_misclassified(benchmark)
    names = target_names(results["label_names"])
    images = [Image.fromarray(picture) for picture in tensors["pictures"].numpy()]
    rows: list[list[tuple[str, Image.Image]]] = [[("", image) for image in images]]
    for kind in ("predicted", "true"):
        rows.append(
            [
                (f"{kind}: {names[target]}", overlay(image, _on_grid(values, results)))
                for image, target, values in zip(images, wrong[kind], tensors[kind], strict=True)
            ]
        )
    return plots.picture_grid(rows, 1.7, _SIGNED)


def _on_grid(values: torch.Tensor, results: Mapping[str, Any]) -> np.ndarray:
    """A map [N] on the grid of patches: [rows, columns]."""
    return values.float().unflatten(0, tuple(results["grid_size"])).numpy()


def cardinality_curves(methods_of: MethodsOf) -> Figure | None:
    """Figure 2: every score at every number of visible patches, of the methods of `shown_methods` that have a score.

    Trained explainers are drawn thick, random maps as dashes. None where no curve was computed.
    """
    scores = [score for family in ("rank", "relative") for score in _drawn_scores(family)]
    titles = method_titles(name for methods in methods_of.values() for name in methods)
    panels = {}
    for dataset, methods in methods_of.items():
        shown = shown_methods(methods)
        for score in scores:
            curves = {titles[name]: curve for name in shown if (curve := _curve(methods[name]["curves"], score))}
            if curves:
                heading = SCORES[score].heading
                panels[f"{dataset}: {heading}" if len(methods_of) > 1 else heading] = curves
    strong = [titles[name] for name in TRAINED if name in titles]
    dashed = [titles["random"]] if "random" in titles else []
    return plots.curves(panels, 3, strong, dashed) if panels else None


def _drawn_scores(family) -> list[str]:
    """The scores of a family that have a curve, then their differences."""
    scores = scores_of_family(family)
    return [score.name for score in scores if score.has_curve] + [score.name for score in scores if score.terms]


def _curve(curves: Mapping[str, Sequence[float]], score: str) -> Sequence[float] | None:
    """The curve of a score, which for a difference is that of its terms' curves; None where it was not computed."""
    terms = SCORES[score].terms
    if terms is None:
        return curves.get(score)
    if any(term not in curves for term in terms):
        return None
    return (np.array(curves[terms[0]]) - np.array(curves[terms[1]])).tolist()


def sampling_likelihood(methods_of: MethodsOf) -> Figure | None:
    """Figure 6: the mean prediction under guided and under random sampling, by size; None without both methods.

    The curves are those of the relative scores, whose draws (Algorithm 2) are Algorithm 3's of the same size with the
    exponent 1, whatever exponent the explainer was trained with.
    """
    panels = {}
    for dataset, methods in methods_of.items():
        lines = {
            title: np.mean([methods[name]["curves"]["r_lif"], methods[name]["curves"]["r_mif"]], axis=0).tolist()
            for title, name in (("guided", "salvage"), ("random", "random"))
            if name in methods and {"r_lif", "r_mif"} <= methods[name]["curves"].keys()
        }
        if len(lines) == 2:
            panels[dataset] = lines
    return plots.curves(panels, 3, strong=["guided"]) if panels else None


def correctness_matrices(results_of: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Figure 4: how often both an explainer and the classifier are right, only one of them, or neither.

    Args:
        results_of: data set -> what its results.json holds.

    Returns:
        A matrix per data set and explainer; None without any explainer.
    """
    matrices = {}
    for dataset, results in results_of.items():
        classification = results["classification"]

        def right(name: str, classification=classification) -> np.ndarray:
            return np.array(classification[name]["predictions"]) == np.array(classification["labels"])

        for name, objective in OBJECTIVES.items():
            if name in classification:
                explainer, classifier = right(name), right("classifier")
                matrices[f"{dataset}: {objective.title}"] = np.array(
                    [
                        [100 * np.mean((explainer == a) & (classifier == b)) for b in (True, False)]
                        for a in (True, False)
                    ]
                )
    return plots.matrices(matrices, ("right", "wrong"), "classifier", "explainer") if matrices else None


def ablation_bars(ablation_of: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Figure 3: R-SRG of every arm and seed in percent.

    Args:
        ablation_of: data set -> what its ablation.json holds.
    """
    panels = {
        dataset: {
            arm.title: [100 * np.mean(run["r_srg"]) for run in runs.values()] for arm, runs in finished_runs(ablation)
        }
        for dataset, ablation in ablation_of.items()
    }
    return plots.bars(panels, "R-SRG (%)", columns=3)


def ablation_course(ablation_of: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Figure 7: SRG of the arms with Salvage's objective after a quarter, a half and all of the training, in percent.

    Args:
        ablation_of: data set -> what its ablation.json holds.
    """
    panels = {}
    for dataset, ablation in ablation_of.items():
        steps = ablation["settings"]["max_train_steps"]
        for share in (0.25, 0.5, 1.0):
            panels[f"{dataset}: {share:.0%} of training"] = {
                arm.title: [100 * _srg_at(run["history"], share * steps) for run in runs.values()]
                for arm, runs in finished_runs(ablation)
                if arm.objective == "salvage"
            }
    return plots.bars(panels, "SRG (%)", columns=3)


def _srg_at(history: Sequence[Mapping[str, float]], step: float) -> float:
    """SRG of the validation nearest to a step."""
    validations = [row for row in history if "eval_srg" in row]
    return min(validations, key=lambda row: abs(row["step"] - step))["eval_srg"]
