"""The paper's ablations (section 5.4, appendix A.2): objective and sampling exchanged one at a time, over seeds.

Arms that the paper does not have follow: guided sampling by powers of the weights.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from ..arguments import MAY_CHANGE, AtLeast, ImageArguments, arg, check_arguments, names_with
from ..data.sources import Source
from ..files import locked, write_json
from ..logs import show_log
from ..objectives import OBJECTIVES
from ..recipes import write_recipe
from ..tensors import positive_number
from ..training.checkpoints import checkpoints
from ..training.explainer import ExplainerArguments, train_explainer
from ..training.setup import PROCESS_TIMEOUT
from .arguments import BenchmarkArguments
from .benchmark import run_benchmark
from .reading import earlier_ablation
from .results import Arm, arms_with, finished_runs
from .scores import SCORES
from .tables import Cell, Table, percent

#: The scores measured for every run.
SCORED = ("srg", "r_srg")


@dataclass
class AblationArguments:
    """Arguments of `salvage ablation`, in addition to those of `salvage train`, which all arms share."""

    seeds: list[int] = arg([0, 1, 2], "Every arm is run with each seed.")
    exponents: list[float] = arg(
        [OBJECTIVES["salvage"].guidance_exponent],
        "After the paper's arms, whose guided one has the exponent 1, run one with each of these as guidance_exponent.",
    )
    vit_shapley_learning_rate: float | None = arg(
        None,
        "The learning rate of the arm with ViT-Shapley's objective; when not given "
        f"{OBJECTIVES['vit_shapley'].learning_rate:g}, as published.",
    )
    budget: Annotated[int, AtLeast(5)] = arg(160, "Forwards per image for R-SRG.")
    max_scored_samples: Annotated[int, AtLeast(1)] = arg(
        200, "Score on this many of the images of --validation_dir, chosen at random."
    )

    def __post_init__(self):
        check_arguments(self)  # fails before hours of training
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be one whole number or more from 0 on, each once, got {self.seeds}")
        for index, exponent in enumerate(self.exponents):
            positive_number(f"exponents[{index}]", exponent)
        if len({"1", *(f"{exponent:g}" for exponent in self.exponents)}) <= len(self.exponents):
            raise ValueError(f"exponents must be other than 1, the paper's, each once, got {self.exponents}")
        if self.vit_shapley_learning_rate is not None and self.vit_shapley_learning_rate <= 0:
            raise ValueError(f"vit_shapley_learning_rate must be positive, got {self.vit_shapley_learning_rate}")


def run_ablation(args: AblationArguments, shared: ExplainerArguments) -> dict[str, Any]:
    """Trains every arm with every seed, with equal steps and forwards, and scores the last models.

    Objectives that also ask for v of no patch and of all patches get two subsets fewer, to keep the forwards equal.
    Finished runs are kept in ablation.json; a run that was stopped goes on from its last checkpoint.

    Args:
        args: the arguments of the ablation.
        shared: the arguments of all training runs; the arms set objective, sampling, exponent, seed and learning rate.

    Returns:
        What ablation.json holds (see `results`).

    Raises:
        ValueError: where an argument is missing, or `output_dir` holds runs with other arguments, or runs that were
            scored by another classifier or on other images, or where another process writes to `output_dir`.
    """
    _check(shared)
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)])
    show_log(accelerator.is_main_process)
    with locked(shared.output_dir, "salvage ablation"):
        return _run_arms(args, shared, accelerator)


def _run_arms(args: AblationArguments, shared: ExplainerArguments, accelerator: Accelerator) -> dict[str, Any]:
    """`run_ablation` in a folder that no other process writes to."""
    path, write = Path(shared.output_dir, "ablation.json"), accelerator.is_main_process
    settings = _settings(args, shared)
    ablation = earlier_ablation(path.parent, settings)
    accelerator.wait_for_everyone()  # all processes have read before one writes
    write_recipe(path.parent, "ablation", args, shared, accelerator=accelerator)
    if ablation is None:
        ablation = {"settings": settings, "arms": {}}
        if write:  # before training: a checkpoint alone does not show whether the steps have changed
            write_json(path, ablation)
    ablation["exponents"] = sorted({*ablation.get("exponents", []), *args.exponents})
    for seed in args.seeds:
        for name, arm in arms_with(args.exponents).items():
            if str(seed) in ablation["arms"].get(name, {}):
                continue
            run, scored_on = train_and_score(args, shared, path.parent / f"{name}-{seed}", arm, seed)
            if (before := ablation.setdefault("scored_on", scored_on)) != scored_on:
                raise ValueError(
                    f"{str(path)!r} holds runs on {before}, here {scored_on}: classifier or images have changed; "
                    "give another output_dir"
                )
            ablation["arms"].setdefault(name, {})[str(seed)] = run
            if write:
                write_json(path, ablation)
    return ablation


def _check(shared: ExplainerArguments) -> None:
    """Raises ValueError where an argument is missing that an ablation needs and training does not."""
    if not shared.max_train_steps:
        raise ValueError("an ablation needs max_train_steps, which is the same for all arms")
    if not shared.validation_dir:
        source = Source.of(shared)
        splits = [] if source is None else source.split_names()
        if (shared.validation_split_name or "validation") not in splits:
            raise ValueError(
                "an ablation needs validation_dir, or a data set with a split 'validation' or validation_split_name, "
                f"got validation_dir=None and dataset_name={shared.dataset_name!r} with the splits {splits}"
            )
    if shared.new_subsets < 4:
        raise ValueError(
            f"new_subsets must be at least 4, got {shared.new_subsets}: ViT-Shapley needs two for both ends"
        )


def _settings(args: AblationArguments, shared: ExplainerArguments) -> dict[str, Any]:
    """What all runs must have in common: also the number of steps, which a single training run may change."""
    may_change = names_with(shared, MAY_CHANGE) - {"max_train_steps"} | {"seeds", "exponents"}
    return {name: value for name, value in {**asdict(shared), **asdict(args)}.items() if name not in may_change}


def train_and_score(
    args: AblationArguments, shared: ExplainerArguments, folder: Path, arm: Arm, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Trains and scores one arm with one seed.

    Returns:
        The training's history with the last model's scores per image, and digests of classifier and images.
    """
    steps = shared.max_train_steps or 0  # `run_ablation` has checked it
    rate, new_subsets = shared.learning_rate, shared.new_subsets
    if arm.objective == "vit_shapley":
        rate = args.vit_shapley_learning_rate
    if OBJECTIVES[arm.objective].asks_ends:
        new_subsets -= 2
    trained = train_explainer(
        replace(
            shared,
            objective=arm.objective,
            sampling=arm.sampling,
            guidance_exponent=arm.exponent,
            seed=seed,
            learning_rate=rate,
            new_subsets=new_subsets,
            output_dir=str(folder),
            validation_steps=math.ceil(steps / 4),
            resume_from_checkpoint="latest" if checkpoints(folder) else None,
        )
    )
    images = {item.name: getattr(shared, item.name) for item in fields(ImageArguments)}
    images |= {"max_eval_samples": args.max_scored_samples}
    if shared.validation_dir:
        of_dataset = ("dataset_name", "dataset_config_name", "dataset_dir")
        images |= {**dict.fromkeys(of_dataset), "streaming": False}
    results = run_benchmark(
        BenchmarkArguments(
            **images,
            model_name_or_path=shared.model_name_or_path,
            methods=[arm.objective],
            explainers=[f"{arm.objective}={folder / 'last'}"],
            masking=shared.masking,
            patch_size=shared.patch_size,
            budget=args.budget,
            per_device_eval_batch_size=shared.per_device_eval_batch_size,
            output_dir=str(folder / "benchmark"),
        )
    )
    scores = results["methods"][arm.objective]
    run = {"history": trained["history"], **{score: scores[score] for score in SCORED}}
    return run, {name: results["settings"][name] for name in ("classifier", "content")}


def ablation_table(ablation: dict[str, Any]) -> str:
    """Scores of every arm in percent as Markdown, mean ± standard error over seeds."""
    rows = []
    for arm, runs in finished_runs(ablation):
        means = [torch.tensor([sum(run[score]) / len(run[score]) for run in runs.values()]) for score in SCORED]
        rows.append([Cell(text) for text in (arm.title, *map(percent, means))])
    return Table(["arm", *(SCORES[score].heading for score in SCORED)], rows).markdown()
