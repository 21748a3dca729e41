"""Cards of models and data sets, filled in from what a run measured."""

import logging
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

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


def write_explainer_card(
    folder: Path, args: Any, config: Any, results: dict[str, Any], num_train_images: int, num_eval_images: int
) -> None:
    """Writes README.md beside a trained explainer, without any local path.

    Args:
        folder: the explainer's folder.
        args: the `ExplainerArguments` of the run; those that differ from the defaults are listed.
        config: the explainer's config.
        results: of the saved step: its number ("step"), its scores ("eval_..."), and whether they chose it ("chosen").
        num_train_images: number of training images.
        num_eval_images: number of validation images.
    """
    scores = {name.removeprefix("eval_"): value for name, value in results.items() if name.startswith("eval_")}
    repository = repository_name(args.hub_model_id, args.output_dir)
    title = repository.split("/")[-1]
    hub_dataset = _hub_dataset(args)
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag=TASK,
            license="apache-2.0",
            tags=["explainability", "shapley-values", "salvage", "custom_code"],
            base_model=hub_name(args.model_name_or_path),
            datasets=[hub_dataset] if hub_dataset else None,
            model_name=title,
            eval_results=_eval_results(scores, None if args.validation_dir else hub_dataset),
        ),
        template_path=str(TEMPLATE),
        title=title,
        repository=repository,
        classifier=public_name(args.model_name_or_path),
        patch_size=config.patch_size,
        masking=(config.explained_classifier or {}).get("masking"),
        objective=OBJECTIVES[config.objective],
        num_train_images=num_train_images,
        num_eval_images=num_eval_images,
        step=results["step"],
        chosen=results["chosen"],
        scores={name: f"{value:.4f}" for name, value in scores.items()},
        arguments=_listed_arguments(args),
        guidance_exponent=args.guidance_exponent,
    )
    card.save(folder / "README.md")


def write_classifier_card(
    folder: Path,
    args: Any,
    config: Any,
    results: dict[str, Any],
    num_images: tuple[int, int],
    first_stage: Any = None,
    curve: dict[str, Any] | None = None,
) -> None:
    """Writes README.md beside a fine-tuned classifier, without any local path.

    Args:
        folder: the classifier's folder.
        args: the `ClassifierArguments` of the run; those that differ from the defaults are listed.
        config: the classifier's config.
        results: of the saved step, which its scores chose: its number ("step") and the scores ("eval_...").
        num_images: numbers of training and of validation images.
        first_stage: the `ClassifierArguments` of the run that trained what this one started from, where known.
        curve: what partial_images.json holds, where it and partial_images.png are there.
    """
    scores = {name.removeprefix("eval_"): value for name, value in results.items() if name.startswith("eval_")}
    repository, hub_dataset = repository_name(args.hub_model_id, args.output_dir), _hub_dataset(args)
    title = repository.split("/")[-1]
    stages = [stage for stage in (args, first_stage) if stage is not None]
    base_models = [name for stage in stages if (name := hub_name(stage.model_name_or_path))]
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag=TASK,
            license=licence_of(args.model_name_or_path),
            tags=["image-classification", "explainability", "salvage"],
            base_model=base_models[0] if base_models else None,
            datasets=[hub_dataset] if hub_dataset else None,
            model_name=title,
            eval_results=_eval_results(scores, None if args.validation_dir else hub_dataset),
        ),
        template_path=str(CLASSIFIER_TEMPLATE),
        title=title,
        repository=repository,
        start=public_name(args.model_name_or_path),
        dataset=hub_dataset,
        stages=[_listed_arguments(stage) for stage in reversed(stages)],
        num_train_images=num_images[0],
        num_eval_images=num_images[1],
        results=results,
        scores={name: f"{value:.4f}" for name, value in scores.items()},
        masked=args.mask_patches,
        patch_size=args.patch_size or (None if config.model_type in BACKBONES else EXAMPLE_PATCH_SIZE),
        has_backbone=config.model_type in BACKBONES,
        curve=curve,
        shown=_with_error,
    )
    card.save(folder / "README.md")


def _with_error(point: tuple[float, float | None]) -> str:
    """A mean and its standard error, None where it is not known, as text."""
    mean, error = point
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


def licence_of(name_or_path: str) -> str | None:
    """The licence that a model's card states; None where there is no card, it states none or is not within reach."""
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
    hub_dataset = None if args.validation_dir else _hub_dataset(args)
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


def _hub_dataset(args: Any) -> str | None:
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
