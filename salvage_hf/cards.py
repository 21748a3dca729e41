"""Model cards, filled in from what a run measured."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = Path(__file__).parent / "model_cards" / "template.md"

# Where things lie on the machine that trained is nobody's business on the Hub.
_PRIVATE = ("output_dir", "resume_from_checkpoint", "replay_from", "hub_token", "train_dir", "validation_dir")


def write_explainer_card(
    folder: Path, args: Any, config: Any, results: dict[str, Any], num_train_images: int, num_eval_images: int
) -> None:
    """Writes README.md beside a trained explainer.

    Args:
        folder: the explainer's folder.
        args: the `ExplainerArguments` of the run; those that differ from the defaults are listed.
        config: the explainer's config.
        results: scores of the saved step, named "eval_...", and whether they chose it ("chosen").
        num_train_images, num_eval_images: how many images trained and validated.
    """
    classifier = (
        Path(args.model_name_or_path).name if Path(args.model_name_or_path).exists() else args.model_name_or_path
    )
    repository = args.hub_model_id or Path(args.output_dir).resolve().name
    scores = {name.removeprefix("eval_"): value for name, value in results.items() if name.startswith("eval_")}
    arguments = {
        field.name: getattr(args, field.name)
        for field in fields(args)
        if field.name not in _PRIVATE and getattr(args, field.name) != field.default
    }
    arguments["model_name_or_path"] = classifier
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag="image-classification",
            license="apache-2.0",
            tags=["explainability", "shapley-values", "salvage", "custom_code"],
            base_model=args.model_name_or_path if classifier == args.model_name_or_path else None,
        ),
        template_path=str(TEMPLATE),
        title=repository.split("/")[-1],
        repository=repository,
        classifier=classifier,
        objective=args.objective,
        paired_values=config.paired_values,
        num_train_images=num_train_images,
        num_eval_images=num_eval_images,
        step=results["step"],
        chosen=results["chosen"],
        metrics_table=_table(("score", "value"), {name: f"{value:.4f}" for name, value in scores.items()}),
        arguments_table=_table(("argument", "value"), {f"--{name}": value for name, value in arguments.items()}),
    )
    card.save(folder / "README.md")


def _table(titles: tuple[str, str], rows: dict[str, Any]) -> str:
    lines = [f"| {titles[0]} | {titles[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows.items()])
