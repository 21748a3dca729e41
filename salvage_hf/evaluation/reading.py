"""Reads what benchmarks and ablations have left in their folders; `results` describes these files.

Every function raises ValueError, with the name of the file, where a file is missing or is not what its script writes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..attribution_methods import REGISTRY
from ..objectives import OBJECTIVES
from ..recipes import WrittenRecipe, written_recipe
from ..type_checks import check_type
from .results import arms_with, maps_file
from .scores import SCORES

#: File -> the script that writes it.
_WRITERS = {"results.json": "salvage benchmark", "ablation.json": "salvage ablation"}


class _Rank(TypedDict):
    images: int


class _Relative(TypedDict):
    images: int
    n_masks: NotRequired[int]
    budget: NotRequired[int]


class _Settings(TypedDict):
    rank: _Rank
    relative: _Relative


class _Method(TypedDict):
    curves: dict[str, list[float]]
    forwards: float
    seconds: float
    made_with: dict[str, Any]
    measured_on: NotRequired[dict[str, str]]


class _Classification(TypedDict):
    labels: list[int]


class _Predictions(TypedDict):
    weights: str
    predictions: list[int]


class _Misclassified(TypedDict):
    ids: list[str]
    predicted: list[int]
    true: list[int]


class _Results(TypedDict):
    settings: _Settings
    ids: list[str]
    targets: list[int]
    methods: dict[str, _Method]
    classification: _Classification
    examples: list[int]
    misclassified: NotRequired[_Misclassified]
    label_names: list[str]
    grid_size: list[int]


class _AblationSettings(TypedDict):
    max_train_steps: int


class _Run(TypedDict):
    history: list[dict[str, Any]]
    srg: list[float]
    r_srg: list[float]


class _Ablation(TypedDict):
    settings: _AblationSettings
    arms: dict[str, dict[str, _Run]]
    exponents: NotRequired[list[float]]
    scored_on: NotRequired[dict[str, str]]


class _Validation(TypedDict):
    step: int
    eval_srg: float


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its folder, what results.json in it holds, and the recipe of its run, if it is there."""

    folder: Path
    results: dict[str, Any]
    recipe: WrittenRecipe | None = None


def read_benchmark(folder: Path) -> Benchmark:
    """The benchmark in a folder, of which at least one method must be finished."""
    results = _read(folder / "results.json")
    if not results["methods"]:
        raise ValueError(f"{str(folder / 'results.json')!r} holds no finished method: run salvage benchmark again")
    return Benchmark(folder, results, written_recipe(folder))


def read_ablation(folder: Path) -> dict[str, Any]:
    """What ablation.json in a folder holds; at least one run must be finished."""
    ablation = _read(folder / "ablation.json")
    if not any(ablation["arms"].values()):
        raise ValueError(f"{str(folder / 'ablation.json')!r} holds no finished run: run salvage ablation again")
    return ablation


def earlier_results(folder: Path, measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier benchmark has left in a folder, None where it has left nothing.

    Args:
        folder: the folder.
        measured: "settings", "ids" and "targets" of the benchmark that would continue it.

    Raises:
        ValueError: also where images or settings differ, because one table cannot hold results of both.
    """
    path = folder / "results.json"
    if not path.is_file():
        return None
    results = _read(path)
    changed = [name for name in measured if results[name] != measured[name]]
    if changed:
        raise ValueError(
            f"{str(path)!r} holds results with other {' and '.join(changed)}: there {results['settings']} on "
            f"{len(results['ids'])} images, here {measured['settings']} on {len(measured['ids'])}; "
            "give another output_dir"
        )
    return results


def earlier_ablation(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier ablation has left in a folder, None where it has left nothing.

    Raises:
        ValueError: also where its runs had other settings.
    """
    path = folder / "ablation.json"
    if not path.is_file():
        return None
    ablation = _read(path)
    before = ablation["settings"]
    if changed := {key: (before.get(key), settings[key]) for key in settings if before.get(key) != settings[key]}:
        raise ValueError(
            f"{str(path)!r} holds runs with other arguments (before, now): {changed}; give another output_dir"
        )
    return ablation


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file of `_WRITERS` holds, checked."""
    writer = _WRITERS[path.name]
    if not path.is_file():
        raise ValueError(f"no {path.name} in {str(path.parent)!r}: it is written by {writer}")
    try:
        content = json.loads(path.read_text())
        (_check_results if path.name == "results.json" else _check_ablation)(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not what {writer} writes: {error}") from error
    return content


def _check_results(results: Any) -> None:
    """Raises ValueError where the content of a results.json has a wrong type, or its parts do not fit together."""
    check_type(results, _Results, "results")
    images, classes = len(results["ids"]), range(max(2, len(results["label_names"])))
    if not images or not results["label_names"]:
        raise ValueError("results.ids and results.label_names must not be empty")
    if len(results["grid_size"]) != 2 or min(results["grid_size"]) < 1:
        raise ValueError(f"results.grid_size must be rows and columns, got {results['grid_size']}")
    if not {"n_masks", "budget"} & results["settings"]["relative"].keys():
        raise ValueError("results.settings.relative must have n_masks or budget")
    _check_list("results.targets", results["targets"], images, classes)
    _check_list("results.examples", results["examples"], None, range(images))
    for name, entry in results["methods"].items():
        if name not in REGISTRY:
            raise ValueError(f"results.methods.{name} is not a method; there are {', '.join(REGISTRY)}")
        _check_method(f"results.methods.{name}", entry, images, results["grid_size"])
    classification = results["classification"]
    labels = classification["labels"]
    _check_list("results.classification.labels", labels, None, classes)
    models = [name for name in ("classifier", *OBJECTIVES) if name in classification]
    if models and models[0] != "classifier":
        raise ValueError("results.classification.classifier is missing")
    for name in models:
        place = f"results.classification.{name}"
        check_type(classification[name], _Predictions, place)
        _check_list(f"{place}.predictions", classification[name]["predictions"], len(labels), classes)
    if wrong := results.get("misclassified"):
        for kind in ("predicted", "true"):
            _check_list(f"results.misclassified.{kind}", wrong[kind], len(wrong["ids"]), classes)


def _check_method(place: str, entry: dict[str, Any], images: int, grid_size: Sequence[int]) -> None:
    """Raises ValueError where a method's entry has not one value per image, or a curve not one per patch."""
    for score in SCORES.values():
        for column in (score.name, f"{score.name}_stderr"):
            if column in entry:
                check_type(entry[column], list[float | None], f"{place}.{column}")
                _check_list(f"{place}.{column}", entry[column], images)
    for name, curve in entry["curves"].items():
        _check_list(f"{place}.curves.{name}", curve, grid_size[0] * grid_size[1])


def _check_list(place: str, values: Sequence[Any], length: int | None, choices: Sequence[int] | None = None) -> None:
    """Raises ValueError where a list has another length, or values that are not among the choices."""
    if length is not None and len(values) != length:
        raise ValueError(f"{place} must have {length} values, has {len(values)}")
    if choices is not None and (wrong := [value for value in values if value not in choices]):
        raise ValueError(f"{place} must be among {choices[0]}..{choices[-1]}, has {wrong[0]}")


def _check_ablation(ablation: Any) -> None:
    """Raises ValueError where the content of an ablation.json has a wrong type, or an arm or a score is missing."""
    check_type(ablation, _Ablation, "ablation")
    arms = arms_with(ablation.get("exponents", []))
    for name, runs in ablation["arms"].items():
        if name not in arms:
            raise ValueError(f"ablation.arms.{name} is not an arm; there are {', '.join(arms)}")
        for seed, run in runs.items():
            place = f"ablation.arms.{name}.{seed}"
            validations = [row for row in run["history"] if "eval_srg" in row]
            if not run["srg"] or not run["r_srg"] or not validations:
                raise ValueError(f"{place} lacks scores or validations")
            for row in validations:
                check_type(row, _Validation, f"{place}.history")


def read_maps(benchmark: Benchmark, method: str) -> torch.Tensor:
    """The maps of a method, of all images: [I, N]."""
    shape = [len(benchmark.results["ids"]), _num_patches(benchmark)]
    return _read_tensors(maps_file(benchmark.folder, method), {"attributions": shape})["attributions"]


def read_examples(benchmark: Benchmark) -> torch.Tensor:
    """The pictures of the images at `results["examples"]`: uint8 [examples, H, W, 3]."""
    shape = [len(benchmark.results["examples"]), None, None, 3]
    return _read_tensors(benchmark.folder / "examples.safetensors", {"pictures": shape})["pictures"]


def read_misclassified(benchmark: Benchmark) -> dict[str, torch.Tensor]:
    """What Salvage gets wrong: "pictures" uint8 [images, H, W, 3], and the maps "predicted" and "true" [images, N]."""
    images = len(benchmark.results["misclassified"]["ids"])
    maps = [images, _num_patches(benchmark)]
    shapes: dict[str, Sequence[int | None]] = {"pictures": [images, None, None, 3], "predicted": maps, "true": maps}
    return _read_tensors(benchmark.folder / "misclassified.safetensors", shapes)


def _num_patches(benchmark: Benchmark) -> int:
    rows, columns = benchmark.results["grid_size"]
    return rows * columns


def _read_tensors(path: Path, shapes: Mapping[str, Sequence[int | None]]) -> dict[str, torch.Tensor]:
    """The tensors of a file of a benchmark, checked: pictures are uint8, maps floating-point and finite.

    Args:
        path: the file.
        shapes: name of a tensor -> its shape, with None for sides of any length.
    """
    writer = _WRITERS["results.json"]
    if not path.is_file():
        raise ValueError(f"no {path.name} in {str(path.parent)!r}: it is written by {writer}, run it again")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not what {writer} writes: {error}") from error
    for name, shape in shapes.items():
        found = list(tensors[name].shape) if name in tensors else []
        fits = len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=True))
        if not fits or 0 in found:
            wanted = str(shape).replace("None", "any")
            raise ValueError(f"{str(path)!r} holds {name} {found} in place of {wanted}: run {writer} again")
        values = tensors[name]
        if values.dtype != torch.uint8 if name == "pictures" else not values.is_floating_point():
            raise ValueError(f"{str(path)!r} is not what {writer} writes: {name} is {values.dtype}")
        if name != "pictures" and not values.isfinite().all():
            raise ValueError(f"{str(path)!r} is not what {writer} writes: {name} has values that are NaN or infinite")
    return tensors
