"""The end of the report's page: by which commands, with which settings and versions its numbers were made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attribution_methods import REGISTRY
from ..recipes import RECIPE, WrittenRecipe
from .reading import Benchmark
from .tables import Cell, Table


@dataclass(frozen=True)
class Origin:
    """Where the numbers of a benchmark or an ablation come from.

    Args:
        title: its title on the page.
        command: what runs it again, from the folder where it was started; empty where it left no recipe.
        lists: heading -> name -> value, as text.
        methods: the methods, what they need, and who published them; None for an ablation.
    """

    title: str
    command: str
    lists: Mapping[str, Mapping[str, str]]
    methods: Table | None = None


def benchmark_origin(dataset: str, benchmark: Benchmark) -> Origin:
    """The origin of a benchmark; `dataset` is its title on the page."""
    results = benchmark.results
    measured = {
        "images": len(results["ids"]),
        "classes": len(results["label_names"]),
        "patches, rows x columns": " x ".join(map(str, results["grid_size"])),
        **results["settings"],
        **_measured_on(results["methods"]),
    }
    return _origin(dataset, benchmark.recipe, measured, _methods(results["methods"]))


def _measured_on(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Device, torch and transformers -> the names or versions of all methods; several where a run was continued."""
    of_methods = [entry.get("measured_on", {}) for entry in methods.values()]
    names = dict.fromkeys(name for values in of_methods for name in values)
    return {name: sorted({values[name] for values in of_methods if name in values}) for name in names}


def ablation_origin(dataset: str, ablation: Mapping[str, Any], recipe: WrittenRecipe | None) -> Origin:
    """The origin of an ablation.

    Args:
        dataset: its title on the page.
        ablation: what its ablation.json holds.
        recipe: the recipe of its run, if there is one.
    """
    return _origin(f"Ablation on {dataset}", recipe, ablation["settings"] | ablation.get("scored_on", {}), None)


def _origin(title: str, recipe: WrittenRecipe | None, measured: Mapping[str, Any], methods: Table | None) -> Origin:
    lists = {"Measured with": measured, "Arguments (recipe.yaml)": recipe.arguments if recipe else {}}
    texts = {
        heading: {name: shown(value) for name, value in values.items()} for heading, values in lists.items() if values
    }
    command = ""
    if recipe:
        ends = recipe.command.endswith(RECIPE)
        command = recipe.command.removesuffix(RECIPE) + shown(str(recipe.file)) if ends else recipe.command
    return Origin(title, command, texts, methods)


def shown(value: Any) -> str:
    """A value as JSON, a text as it is; of a folder of this machine the last part, because pages are shared."""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    name, equals, folder = value.partition("=")  # an explainer is OBJECTIVE=FOLDER
    if Path(value).is_absolute() or not equals:
        name, equals, folder = "", "", value
    return f"{name}{equals}…/{Path(folder).name}" if Path(folder).is_absolute() else value


def _methods(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """The methods of a benchmark: what they need besides the image, their source and what they were made with."""
    rows = []
    for name in (name for name in REGISTRY if name in methods):
        info = REGISTRY[name]
        options = ", ".join(f"{key}: {shown(value)}" for key, value in methods[name]["made_with"].items())
        rows.append([Cell(text) for text in (info.title, info.needs, info.source, options or "-")])
    return Table(["method", "needs", "source", "made with"], rows)
