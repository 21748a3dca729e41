"""Models trained earlier, and the metrics' Spaces, on the Hub: what `salvage push` and its kin do."""

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from transformers import AutoModelForImageClassification

from .app.space import write_space
from .arguments import NOT_IN_RECIPE, PRIVATE, arg, check_arguments
from .evaluate_modules.registration import metric_scripts
from .evaluation.arguments import BenchmarkArguments
from .evaluation.partial_images import first_stage_arguments
from .evaluation.reading import Benchmark, read_benchmark
from .evaluation.report import titled
from .evaluation.scores import SCORES
from .evaluation.tables import as_tensor
from .faithfulness import mean_and_stderr
from .files import fingerprint
from .hub.cards import (
    Measured,
    MeasuredScore,
    Publication,
    hub_dataset_of,
    write_classifier_card,
    write_explainer_card,
)
from .hub.publishing import push_model, push_space
from .modeling import SalvageConfig, SalvageModel
from .pretrained import hub_name, load_config, load_model, load_processor
from .recipes import RECIPE, read_recipe
from .training.classifier import ClassifierArguments
from .training.explainer import ExplainerArguments

#: What an earlier run measured, and the curve of a classifier on partial images with its picture.
_RESULTS, _CURVE, _PICTURE = "all_results.json", "partial_images.json", "partial_images.png"


@dataclass
class CardArguments:
    """What a card says beyond its run."""

    repo: str = arg("", "The repository, org/name.")
    benchmark: list[str] = arg(
        [],
        "Folders of salvage benchmark, as FOLDER or TITLE=FOLDER: their scores make the model index, per data set.",
    )
    base_model: str | None = arg(
        None, "The model on the Hub that it explains, or was trained from, where that was a folder in training."
    )

    def __post_init__(self):
        check_arguments(self)
        _check_repository(self.repo)


@dataclass
class PushArguments(CardArguments):
    """Arguments of `salvage push`, beside the folder."""

    report: Annotated[str | None, PRIVATE] = arg(None, "The folder of a report, whose figures the card shows.")
    private: bool = arg(False, "Make the repository a private one, where there is none yet.")
    hub_token: Annotated[str | None, PRIVATE, NOT_IN_RECIPE] = arg(None, "The token for the upload.")


@dataclass
class RecipeCardArguments(CardArguments):
    """Arguments of `salvage card`."""

    recipe: str = arg("", "The recipe of the explainer: a YAML file of arguments of salvage train.")
    output_dir: str = arg("", "The folder for README.md.")

    def __post_init__(self):
        super().__post_init__()
        for name in ("recipe", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name} is needed")


@dataclass
class PushAppArguments:
    """Arguments of `salvage push-app`, beside the repository."""

    model: str = arg("", "The Salvage explainer or image classifier on the Hub that the app shows.")
    classifier: str | None = arg(None, "The classifier of the explainer on the Hub, where it does not state it.")
    private: bool = arg(False, "Make the Space a private one, where there is none yet.")
    hub_token: Annotated[str | None, PRIVATE, NOT_IN_RECIPE] = arg(None, "The token for the upload.")

    def __post_init__(self):
        check_arguments(self)
        for name, value in (("model", self.model), ("classifier", self.classifier)):
            if value is not None and (not value or not hub_name(value)):
                raise ValueError(f"{name} must be a name on the Hub, where the Space loads it, got {value!r}")


@dataclass
class PushMetricsArguments:
    """Arguments of `salvage push-metrics`, beside the organisation."""

    private: bool = arg(False, "Make the Spaces private ones, where there are none yet.")
    hub_token: Annotated[str | None, PRIVATE, NOT_IN_RECIPE] = arg(None, "The token for the upload.")

    def __post_init__(self):
        check_arguments(self)


def push(folder: str, args: PushArguments) -> str:
    """Uploads an explainer or a classifier that was trained earlier, and returns its repository.

    The model is loaded and saved anew, so that its repository has safetensors, today's code, the image processor, the
    card and pictures, and nothing else that lies in the folder.

    Args:
        folder: of the model and its image processor.
        args: the rest.

    Raises:
        ValueError: where the folder holds no whole model, or a benchmark is of another one.
        OSError: where the Hub refuses.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"folder must be the one of a trained model, got {folder!r}")
    with tempfile.TemporaryDirectory() as made:
        stage(Path(folder), args, Path(made))
        push_model(Path(made), args.repo, args.hub_token, private=args.private)
    return args.repo


def push_app(repo: str, args: PushAppArguments) -> str:
    """Uploads the app as a Space, and returns its repository.

    Raises:
        ValueError: where `repo` is not org/name.
        OSError: where the Hub refuses.
    """
    _check_repository(repo)
    with tempfile.TemporaryDirectory() as made:
        write_space(Path(made), args.model, args.classifier)
        push_space(Path(made), repo, args.hub_token, args.private)
    return repo


def push_metrics(organisation: str, args: PushMetricsArguments) -> list[str]:
    """Uploads the metrics' Spaces, and returns their repositories; OSError where the Hub refuses."""
    if not organisation or "/" in organisation:
        raise ValueError(f"organisation must be a name on the Hub, got {organisation!r}")
    names = {f"{organisation}/{name}": script.parent for name, script in metric_scripts().items()}
    for name, folder in names.items():
        push_space(folder, name, args.hub_token, args.private)
    return list(names)


def write_recipe_card(args: RecipeCardArguments) -> Path:
    """Writes the card of an explainer from its recipe and from benchmarks, where there are any, and returns the file.

    Raises:
        ValueError: where recipe or benchmarks cannot be read.
    """
    run = ExplainerArguments(**read_recipe(args.recipe, [ExplainerArguments]))
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    publication = Publication(args.repo, args.base_model, _measured(args.benchmark, run.objective, None))
    write_explainer_card(folder, run, None, None, publication=publication)
    return folder / "README.md"


def stage(folder: Path, args: PushArguments, into: Path) -> None:
    """Writes what `push` uploads into an empty folder."""
    name, is_explainer = str(folder), isinstance(load_config(str(folder)), SalvageConfig)
    auto_class = SalvageModel if is_explainer else AutoModelForImageClassification
    model, processor = load_model(auto_class, name, dtype="auto"), load_processor(name)
    model.save_pretrained(into)
    processor.save_pretrained(into)
    measured = _measured(args.benchmark, model.config.objective if is_explainer else "classifier", model)
    publication = Publication(args.repo, args.base_model, measured, _copied_figures(args.report, into))
    results = _read_json(folder / _RESULTS)
    if is_explainer:
        run = _read_run(folder, ExplainerArguments)
        write_explainer_card(into, run, model.config, results, publication=publication)
        return
    has_curve = all((folder / file).is_file() for file in (_CURVE, _PICTURE))
    if has_curve:
        for file in (_CURVE, _PICTURE):
            shutil.copyfile(folder / file, into / file)
    run = _read_run(folder, ClassifierArguments)
    write_classifier_card(
        into,
        run,
        model.config,
        results,
        first_stage=first_stage_arguments(run) if run else None,
        curve=_read_json(folder / _CURVE) if has_curve else None,
        publication=publication,
    )


def _read_run(folder: Path, kind: type) -> Any:
    """The arguments of the run that wrote a folder; None where it left no recipe."""
    file = folder / RECIPE
    return kind(**read_recipe(str(file), [kind])) if file.is_file() else None


def _read_json(file: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None where there is none."""
    try:
        return json.loads(file.read_text()) if file.is_file() else None
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is no JSON: {error}") from error


def _copied_figures(report: str | None, into: Path) -> list[str]:
    """Copies the figures of a report, and returns their places in the repository."""
    if report is None:
        return []
    files = sorted(Path(report, "figures").glob("*.png"))
    if not files:
        raise ValueError(f"no figures/*.png in {report!r}: salvage report writes them")
    (into / "figures").mkdir()
    for file in files:
        shutil.copyfile(file, into / "figures" / file.name)
    return [f"figures/{file.name}" for file in files]


def _measured(folders: Sequence[str], name: str, model: Any) -> list[Measured]:
    """What benchmarks have measured of a model.

    Args:
        folders: FOLDER or TITLE=FOLDER.
        name: what benchmarks call it: its objective, or "classifier".
        model: the model, which must be the measured one; None where there is none yet.
    """
    if not folders:
        return []
    weights = None if model is None else fingerprint(model)
    benchmarks = {title: read_benchmark(folder) for title, folder in titled("benchmark", folders).items()}
    return [_measured_one(title, benchmark, name, weights) for title, benchmark in benchmarks.items()]


def _measured_one(title: str, benchmark: Benchmark, name: str, weights: str | None) -> Measured:
    """What a benchmark has measured of the model with these weights; ValueError where that is another one."""
    results = benchmark.results
    classified, entry = results["classification"].get(name), results["methods"].get(name, {})
    found = classified["weights"] if classified else entry.get("made_with", {}).get("weights")
    if found is None or weights not in (None, found):
        what = "no results of it" if found is None else f"those of other weights ({found}, here {weights})"
        raise ValueError(f"benchmark {str(benchmark.folder)!r} holds {what}: {name}; run salvage benchmark with it")
    run = _read_run(benchmark.folder, BenchmarkArguments)
    scores = {}
    for score in SCORES.values():
        if score.name in entry:
            options = results["settings"]["relative"] if score.family == "relative" else {}
            options = {option: value for option, value in options.items() if option != "images"}
            scores[score.name] = _score(score.title, as_tensor(entry[score.name]), options or None)
    if classified:
        pairs = zip(classified["predictions"], results["classification"]["labels"], strict=True)
        scores["accuracy"] = _score("accuracy", as_tensor([float(a == b) for a, b in pairs]), None)
    return Measured(title, hub_dataset_of(run) if run and not run.validation_dir else None, scores)


def _score(title: str, values: torch.Tensor, options: dict[str, Any] | None) -> MeasuredScore:
    """A score from its values, float64 [I], NaN where one is not defined."""
    mean, stderr = mean_and_stderr(values)
    return MeasuredScore(title, mean, None if math.isnan(stderr) else stderr, int(values.isfinite().sum()), options)


def _check_repository(repo: str) -> None:
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"repo must be org/name, got {repo!r}")
