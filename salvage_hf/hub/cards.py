"""Cards of models and data sets, filled in from what a run measured."""

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from ..arguments import PRIVATE, names_with
from ..data.registry import repository_of
from ..modeling import BACKBONES
from ..objectives import OBJECTIVES
from ..pretrained import hub_name, public_name
from .publishing import repository_name

logger = logging.getLogger(__name__)

CARDS = Path(__file__).parents[1] / "model_cards"
TEMPLATE = CARDS / "template.md"
CLASSIFIER_TEMPLATE = CARDS / "classifier_template.md"
DATASET_TEMPLATE = CARDS / "dataset_template.md"

#: Stands in the example of a card for a classifier that has no patches of its own, and was given none.
EXAMPLE_PATCH_SIZE = 16

#: The task of explainers, as the Hub names tasks.
TASK = "image-classification"


class MeasuredScore(NamedTuple):
    """A score of a benchmark.

    Args:
        title: its name for readers.
        mean: over the images.
        stderr: the standard error of the mean; None where a single image has none.
        images: of how many images.
        options: what it was computed with, as arguments of its metric.
    """

    title: str
    mean: float
    stderr: float | None
    images: int
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Measured:
    """What a benchmark has measured of a model on a data set.

    Args:
        title: the data set's name for readers.
        dataset: its name on the Hub; None for local images.
        scores: by name.
    """

    title: str
    dataset: str | None
    scores: dict[str, MeasuredScore]


@dataclass(frozen=True)
class Publication:
    """What is known of a model beyond its own run.

    Args:
        repository: where it goes to.
        base_model: what it explains, or was trained from, on the Hub; None where the run says it.
        measured: what benchmarks have measured, which takes the place of the run's own scores in the model index.
        pictures: files of pictures beside the card.
    """

    repository: str
    base_model: str | None = None
    measured: Sequence[Measured] = ()
    pictures: Sequence[str] = ()


def write_explainer_card(
    folder: Path,
    args: Any,
    config: Any,
    results: dict[str, Any] | None,
    num_train_images: int | None = None,
    num_eval_images: int | None = None,
    publication: Publication | None = None,
) -> None:
    """Writes README.md beside a trained explainer, without any local path.

    Args:
        folder: the explainer's folder.
        args: the `ExplainerArguments` of the run, of which those that differ from the defaults are listed; None where
            they are not known.
        config: the explainer's config; None where there is no model yet, but arguments.
        results: of the saved step: its number ("step"), its scores ("eval_..."), and whether they chose it ("chosen");
            None where they are not known.
        num_train_images: number of training images, None where it is not known.
        num_eval_images: number of validation images, None where it is not known.
        publication: what is known beyond the run.
    """
    publication = publication or _of_run(args)
    stated = getattr(config, "explained_classifier", None) or {}
    start = args.model_name_or_path if args else None
    named = stated.get("name") if "/" in (stated.get("name") or "") else None  # one without "/" was a folder
    base_model = publication.base_model or hub_name(start) or named
    objective = OBJECTIVES[config.objective if config else args.objective]
    data, scores = _front_matter(publication, args, results, base_model, licence_of(start or base_model))
    data.tags = ["explainability", "shapley-values", "salvage", "custom_code"]
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=data.model_name,
        pictures=publication.pictures,
        benchmarks=_benchmarks(publication),
        repository=publication.repository,
        classifier=base_model or public_name(start or stated.get("name") or "not recorded"),
        revision=stated.get("revision"),
        patch_size=config.patch_size if config else args.patch_size,
        masking=stated.get("masking"),
        objective=objective,
        num_train_images=num_train_images,
        num_eval_images=num_eval_images,
        results=results,
        scores=scores,
        arguments=_listed_arguments(args) if args else None,
        guidance_exponent=args.guidance_exponent if args else None,
    )
    card.save(folder / "README.md")


def write_classifier_card(
    folder: Path,
    args: Any,
    config: Any,
    results: dict[str, Any] | None,
    num_images: tuple[int | None, int | None] = (None, None),
    first_stage: Any = None,
    curve: dict[str, Any] | None = None,
    publication: Publication | None = None,
) -> None:
    """Writes README.md beside a fine-tuned classifier, without any local path.

    Args:
        folder: the classifier's folder.
        args: the `ClassifierArguments` of the run, of which those that differ from the defaults are listed; None where
            they are not known.
        config: the classifier's config.
        results: of the saved step, which its scores chose: its number ("step") and the scores ("eval_..."); None where
            they are not known.
        num_images: numbers of training and of validation images, None where they are not known.
        first_stage: the `ClassifierArguments` of the run that trained what this one started from, where known.
        curve: what partial_images.json holds, where it and partial_images.png are there.
        publication: what is known beyond the run.
    """
    publication = publication or _of_run(args)
    stages = [stage for stage in (args, first_stage) if stage is not None]
    base_models = [name for stage in stages if (name := hub_name(stage.model_name_or_path))]
    base_model = publication.base_model or (base_models[0] if base_models else None)
    start = args.model_name_or_path if args else base_model
    data, scores = _front_matter(publication, args, results, base_model, licence_of(start))
    data.tags = ["image-classification", "explainability", "salvage"]
    card = ModelCard.from_template(
        data,
        template_path=str(CLASSIFIER_TEMPLATE),
        title=data.model_name,
        benchmarks=_benchmarks(publication),
        repository=publication.repository,
        start=public_name(start) if start else None,
        dataset=data.datasets[0] if data.datasets else None,
        stages=[_listed_arguments(stage) for stage in reversed(stages)],
        num_train_images=num_images[0],
        num_eval_images=num_images[1],
        results=results,
        scores=scores,
        masked=args.mask_patches if args else True,
        patch_size=(args.patch_size if args else None)
        or (None if config.model_type in BACKBONES else EXAMPLE_PATCH_SIZE),
        has_backbone=config.model_type in BACKBONES,
        curve=curve,
        shown=_with_error,
    )
    card.save(folder / "README.md")


def _of_run(args: Any) -> Publication:
    """What is known of a model when its run has just ended."""
    return Publication(repository_name(args.hub_model_id, args.output_dir))


def _front_matter(
    publication: Publication, args: Any, results: dict[str, Any] | None, base_model: str | None, licence: str | None
) -> tuple[ModelCardData, dict[str, str]]:
    """What the Hub reads from a model's card, and the run's own scores as text.

    The model index has what benchmarks have measured, or else the run's scores.
    """
    scores = {k.removeprefix("eval_"): v for k, v in (results or {}).items() if k.startswith("eval_")}
    trained_on = hub_dataset_of(args) if args else None
    local = args is None or args.validation_dir
    eval_results = [item for measured in publication.measured for item in _measured_results(measured)]
    known = [trained_on, *(measured.dataset for measured in publication.measured)]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        license=licence,
        base_model=base_model,
        datasets=list(dict.fromkeys(filter(None, known))) or None,
        metrics=list(dict.fromkeys(name for measured in publication.measured for name in measured.scores)) or None,
        model_name=publication.repository.split("/")[-1],
        eval_results=eval_results or _eval_results(scores, None if local else trained_on) or None,
    )
    return data, {name: f"{value:.4f}" for name, value in scores.items()}


def _benchmarks(publication: Publication) -> str:
    """What benchmarks have measured, as Markdown: a sentence and a table for each data set."""
    parts = []
    for measured in publication.measured:
        where = f"{measured.title} (`{measured.dataset}`)" if measured.dataset else measured.title
        rows = [f"| {s.title} | {_with_error((s.mean, s.stderr))} | {s.images} |" for s in measured.scores.values()]
        parts += [f"{where}, by `salvage benchmark`: mean ± standard error over the images, from 0 to 1.", ""]
        parts += ["| score | value | images |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _measured_results(measured: Measured) -> list[EvalResult]:
    """What a benchmark has measured, in the form in which the Hub reads it; of every mean also its standard error."""
    found = []
    for name, score in measured.scores.items():
        both = [
            (name, score.title, score.mean),
            (f"{name}_stderr", f"{score.title}, standard error", score.stderr),
        ]
        found += [
            EvalResult(
                task_type=TASK,
                dataset_type=measured.dataset or "imagefolder",
                dataset_name=measured.title,
                # The Hub takes data sets of one type for one, unless their configurations differ.
                dataset_config=None if measured.dataset else measured.title,
                metric_type=kind,
                metric_name=shown,
                metric_value=value,
                metric_args=score.options,
            )
            for kind, shown, value in both
            if value is not None
        ]
    return found


def _with_error(point: tuple[float, float | None]) -> str:
    """A mean and its standard error, None where it is not known, as text."""
    mean, error = point
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


@functools.cache  # a run asks for every card that it writes
def licence_of(name_or_path: str | None) -> str | None:
    """The licence that a model's card states; None where there is no card, it states none or is not within reach."""
    if name_or_path is None:
        return None
    local, name = Path(name_or_path) / "README.md", hub_name(name_or_path)
    try:
        if local.is_file() or name:
            return ModelCard.load(local if local.is_file() else str(name)).data.license
    except Exception as error:  # the network, and cards that are no YAML, raise many types
        logger.warning("the licence of %r is not known: %s", name_or_path, error)
    return None


def write_dataset_card(
    folder: Path, args: Any, method: str, columns: Iterable[str], found: dict[str, Any], repository: str
) -> None:
    """Writes README.md beside a data set of explanations, without any local path.

    Args:
        folder: the data set's folder.
        args: the `ExplainDatasetArguments` of the run.
        method: the title of the attribution method.
        columns: the names of the columns.
        found: the summary of the rows, with their "split" and the number of "shards".
        repository: the data set's name on the Hub.
    """
    hub_dataset = None if args.validation_dir else hub_dataset_of(args)
    files = [{"split": found["split"], "path": f"data/{found['split']}-*.parquet"}]
    data = DatasetCardData(
        task_categories=[TASK],
        tags=["explainability", "attributions", "salvage"],
        source_datasets=[hub_dataset] if hub_dataset else None,
        configs=[{"config_name": "default", "data_files": files}],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(DATASET_TEMPLATE),
        title=repository.split("/")[-1],
        repository=repository,
        classifier=public_name(args.model_name_or_path),
        explainer=public_name(args.explainer) if args.explainer else None,
        images=hub_dataset,
        method=method,
        columns=list(columns),
        found=found,
        args=args,
    )
    card.save(folder / "README.md")


def hub_dataset_of(args: Any) -> str | None:
    """The name of the data set of a run on the Hub; None for an archive or a folder."""
    return None if args.dataset_dir else hub_name(repository_of(args.dataset_name))


def _eval_results(scores: dict[str, float], dataset: str | None) -> list[EvalResult]:
    """The scores in the form in which the Hub reads them from a card's front matter.

    Args:
        scores: name -> value.
        dataset: the name of the validation images' data set on the Hub; None for local images.
    """
    dataset_type, dataset_name = (dataset, dataset) if dataset else ("imagefolder", "local images")
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            metric_type=name,
            metric_value=value,
        )
        for name, value in scores.items()
    ]


def _listed_arguments(args: Any) -> dict[str, Any]:
    """The arguments that differ from their defaults, without those marked `PRIVATE`."""
    private = names_with(args, PRIVATE)
    listed = {
        field.name: getattr(args, field.name)
        for field in fields(args)
        if field.name not in private and getattr(args, field.name) != field.default
    }
    # These may be local folders, whose paths must not reach the card.
    folders = ("model_name_or_path", "explainer_backbone", "dataset_name")
    return {name: public_name(value) if name in folders else value for name, value in listed.items()}
