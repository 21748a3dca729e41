"""How scores grow with the number of forwards that a method may ask for on each image: one benchmark per budget."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator, InitProcessGroupKwargs

from ..arguments import arg, check_arguments
from ..attribution_methods import REGISTRY
from ..faithfulness import mean_and_stderr
from ..files import locked, write_bytes, write_json
from ..recipes import write_recipe
from ..training.setup import PROCESS_TIMEOUT
from . import plots
from .arguments import BenchmarkArguments
from .benchmark import run_benchmark
from .loading import load_classifier
from .scores import SCORES
from .tables import Cell, Table, as_tensor, percent

#: The scores that are drawn.
SCORED = ("srg", "r_srg")


@dataclass
class BudgetCurveArguments:
    """Arguments of `salvage budget-curve`, in addition to those of `salvage benchmark`."""

    budgets: list[int] = arg([16, 64, 256, 1024, 2000], "Forwards per image, each a benchmark of its own.")

    def __post_init__(self):
        check_arguments(self)
        if not self.budgets or min(self.budgets) < 1 or len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"budgets must be one positive number or more, each once, got {self.budgets}")


def run_budget_curve(args: BudgetCurveArguments, shared: BenchmarkArguments) -> dict[str, Any]:
    """Scores every method at every budget that it can use, in folders budget-B of `output_dir`, each of which resumes.

    Methods that take no budget are scored once, in the folder budget-0: "salvage" is where "salvage_refined" begins.

    Args:
        args: the budgets.
        shared: the arguments of all benchmarks; `sampling_budget` is replaced.

    Returns:
        "images", the number of scored images, and "methods": name -> budget -> score -> values per image.
        It is written to budget_curve.json, and drawn in budget_curve.png.

    Raises:
        ValueError: as in `run_benchmark`, and where no method takes a budget, or none of these.
    """
    # Before the lock, which the first of the processes takes for all of them.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)])
    with locked(shared.output_dir, "salvage budget-curve"):
        return _run(args, shared, accelerator)


def _run(args: BudgetCurveArguments, shared: BenchmarkArguments, accelerator: Accelerator) -> dict[str, Any]:
    """`run_budget_curve` in a folder that no other process writes to."""
    folder = Path(shared.output_dir)
    curves: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in shared.methods}
    if not any(REGISTRY[name].takes_budget for name in shared.methods):
        raise ValueError(f"methods: none of {', '.join(shared.methods)} takes a budget")
    num_patches = load_classifier(shared).num_patches
    scored = {
        budget: [name for name in shared.methods if _is_scored(name, budget, num_patches)]
        for budget in (0, *sorted(args.budgets))
    }
    if not any(methods for budget, methods in scored.items() if budget):
        raise ValueError(f"budgets={args.budgets} are too small for all of {', '.join(shared.methods)}")
    write_recipe(folder, "budget-curve", args, shared, accelerator=accelerator)
    images = 0
    for budget, methods in scored.items():
        if not methods:
            continue
        needed = {REGISTRY[name].objective for name in methods}
        results = run_benchmark(
            replace(
                shared,
                methods=methods,
                explainers=[item for item in shared.explainers if item.partition("=")[0] in needed],
                sampling_budget=budget or shared.sampling_budget,
                output_dir=str(folder / f"budget-{budget}"),
            )
        )
        images = len(results["ids"])
        for name in methods:
            entry = results["methods"][name]
            curves[name][str(budget)] = {score: entry[score] for score in SCORED if score in entry}
    found = {"images": images, "methods": curves}
    if accelerator.is_main_process:
        write_json(folder / "budget_curve.json", found)
        write_bytes(folder / "budget_curve.png", plots.file_content(_figure(found)))
    return found


def _is_scored(name: str, budget: int, num_patches: int) -> bool:
    """Whether a method is scored at a budget; methods that take none are at 0."""
    method = REGISTRY[name]
    return budget >= method.least_budget(num_patches) if method.takes_budget else budget == 0


def _titles(found: dict[str, Any]) -> dict[str, str]:
    return {name: method.title for name, method in REGISTRY.items() if found["methods"].get(name)}


def _figure(found: dict[str, Any]):
    """A panel per score: mean and standard error over the budgets, in percent."""
    panels: dict[str, dict[str, dict[int, tuple[float, float]]]] = {}
    for score in SCORED:
        lines: dict[str, dict[int, tuple[float, float]]] = {}
        for name, title in _titles(found).items():
            points = {int(budget): entry[score] for budget, entry in found["methods"][name].items() if score in entry}
            if points:
                lines[title] = {budget: mean_and_stderr(100 * as_tensor(scores)) for budget, scores in points.items()}
        if lines:
            panels[SCORES[score].title] = lines
    return plots.budget_curves(panels)


def budget_table(found: dict[str, Any]) -> str:
    """Mean and standard error of every method at every budget as Markdown, in percent."""
    budgets = sorted({int(budget) for entry in found["methods"].values() for budget in entry})
    parts = []
    for score in SCORED:
        rows = []
        for name, title in _titles(found).items():
            entry = found["methods"][name]
            texts = [
                percent(as_tensor(entry[str(budget)][score])) if score in entry.get(str(budget), {}) else "-"
                for budget in budgets
            ]
            rows.append([Cell(title), *map(Cell, texts)])
        header = [f"{SCORES[score].heading}, forwards per image", *map(str, budgets)]
        parts.append(Table(header, rows).markdown())
    return "\n".join(parts)


def paired_table(found: dict[str, Any]) -> str:
    """Refined Salvage at every budget less each other method at its largest one, paired over images, as Markdown."""
    name, rows = "salvage_refined", []
    for budget, entry in found["methods"][name].items():
        for other, title in _titles(found).items():
            if other == name:
                continue
            points = found["methods"][other]
            largest = max(points, key=int)
            texts = [
                percent(as_tensor(entry[score]) - as_tensor(points[largest][score])) if score in entry else "-"
                for score in SCORED
            ]
            rows.append([Cell(f"{budget} forwards, against {title} with {largest}"), *map(Cell, texts)])
    return Table([REGISTRY[name].title, *(SCORES[score].title for score in SCORED)], rows).markdown()
