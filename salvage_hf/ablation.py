"""The paper's ablations (section 5.4, appendix A.2): objective and sampling exchanged one at a time, over seeds."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import get_dataset_split_names

from .benchmark import BenchmarkArguments, run_benchmark, write_json
from .explainer_training import ExplainerArguments, train_explainer
from .tables import Cell, Table, percent, title_of
from .training import FREE_ARGUMENTS, arg, check_least, check_writable, checkpoints

#: Title, objective and sampling of every arm.
ARMS = {
    "vit_shapley-uniform": ("ViT-Shapley (MSE)", "vit_shapley", "uniform"),
    "salvage-uniform": ("Salvage, uninformed", "salvage", "uniform"),
    "salvage-guided": ("Salvage, informed", "salvage", "guided"),
}


@dataclass
class AblationArguments:
    """Arguments of scripts/ablation.py beside those of scripts/train.py, which all arms share."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "A run of every arm for each."})
    vit_shapley_learning_rate: float | None = arg(
        None, "Learning rate of the arm with ViT-Shapley's objective; when not given 1e-4, as published."
    )
    budget: int = arg(160, "Forwards an image for R-SRG.")
    max_scored_samples: int = arg(200, "Score on this many random images of --validation_dir.")

    def __post_init__(self):
        check_least(self, {"budget": 5, "max_scored_samples": 1})  # before hours of training


def run_ablation(args: AblationArguments, shared: ExplainerArguments) -> dict[str, Any]:
    """Trains every arm with every seed, equal steps and forwards each, and scores the last models.

    ViT-Shapley's objective asks for v of no patch and of all beside its subsets, of which it therefore gets two less.

    Finished runs are kept in ablation.json; a run that was stopped goes on from its last checkpoint.

    Args:
        args: of the ablation.
        shared: of every training run; objective, sampling, seed and learning rate are the arms'.

    Returns:
        What ablation.json holds: the "settings", what it was "scored_on", and of each arm and seed the "history" of its
        training and its scores per image.
    """
    if not shared.max_train_steps:
        raise ValueError("an ablation needs max_train_steps: all arms make as many")
    if not shared.validation_dir:
        splits = get_dataset_split_names(shared.dataset_name) if shared.dataset_name else []
        if "validation" not in splits:
            raise ValueError(
                "an ablation needs validation_dir, or a data set with a split 'validation', "
                f"got validation_dir=None and dataset_name={shared.dataset_name!r} with the splits {splits}"
            )
    if shared.new_subsets < 4:
        raise ValueError(
            f"new_subsets must be at least 4, got {shared.new_subsets}: ViT-Shapley needs two for both ends"
        )
    check_writable(shared.output_dir)
    path, write = Path(shared.output_dir) / "ablation.json", Accelerator().is_main_process
    given = {**asdict(shared), **asdict(args)}
    settings = {key: given[key] for key in given if key == "max_train_steps" or key not in {*FREE_ARGUMENTS, "seeds"}}
    ablation: dict[str, Any] = {"settings": settings, "arms": {}}
    if path.is_file():
        ablation = json.loads(path.read_text())
        before = ablation["settings"]
        if changed := {key: (before.get(key), settings[key]) for key in settings if before.get(key) != settings[key]}:
            raise ValueError(
                f"{str(path)!r} holds runs with other arguments (before, now): {changed}; give another output_dir"
            )
    elif write:
        write_json(path, ablation)  # at once: a checkpoint alone would not tell that the steps have changed
    for seed in args.seeds:
        for name, (_, objective, sampling) in ARMS.items():
            if str(seed) in ablation["arms"].get(name, {}):
                continue
            run, scored_on = train_and_score(args, shared, f"{name}-{seed}", objective, sampling, seed)
            if (before := ablation.setdefault("scored_on", scored_on)) != scored_on:
                raise ValueError(
                    f"{str(path)!r} holds runs on {before}, here {scored_on}: classifier or images have changed; "
                    "give another output_dir"
                )
            ablation["arms"].setdefault(name, {})[str(seed)] = run
            if write:
                write_json(path, ablation)
    return ablation


def train_and_score(
    args: AblationArguments, shared: ExplainerArguments, name: str, objective: str, sampling: str, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """One arm with one seed: its training's history, and its SRG and R-SRG per image; digests of what scored it."""
    folder = Path(shared.output_dir, name)
    rate, new_subsets = shared.learning_rate, shared.new_subsets
    if objective == "vit_shapley":
        rate, new_subsets = args.vit_shapley_learning_rate, new_subsets - 2
    steps = shared.max_train_steps or 0
    trained = train_explainer(
        replace(
            shared,
            objective=objective,
            sampling=sampling,
            seed=seed,
            learning_rate=rate,
            new_subsets=new_subsets,
            output_dir=str(folder),
            validation_steps=math.ceil(steps / 4),
            resume_from_checkpoint="latest" if checkpoints(folder) else None,
        )
    )
    scored = run_benchmark(
        BenchmarkArguments(
            model_name_or_path=shared.model_name_or_path,
            methods=[objective],
            explainer=str(folder / "last"),
            vit_shapley=str(folder / "last"),
            validation_dir=shared.validation_dir,
            dataset_name=None if shared.validation_dir else shared.dataset_name,
            max_eval_samples=args.max_scored_samples,
            masking=shared.masking,
            budget=args.budget,
            image_column_name=shared.image_column_name,
            label_column_name=shared.label_column_name,
            on_bad_image=shared.on_bad_image,
            per_device_eval_batch_size=shared.per_device_eval_batch_size,
            output_dir=str(folder / "benchmark"),
        )
    )
    of_arm = scored["methods"][objective]
    run = {"history": trained["history"], **{score: of_arm[score] for score in ("srg", "r_srg")}}
    return run, {name: scored["settings"][name] for name in ("classifier", "content")}


def ablation_table(ablation: dict[str, Any]) -> str:
    """Scores of every arm in percent as Markdown, mean ± standard error over seeds."""
    scores, rows = ("srg", "r_srg"), []
    for name, runs in ablation["arms"].items():
        means = [torch.tensor([sum(run[score]) / len(run[score]) for run in runs.values()]) for score in scores]
        rows.append([Cell(text) for text in (ARMS[name][0], *map(percent, means))])
    return Table(["arm", *map(title_of, scores)], rows).markdown()
