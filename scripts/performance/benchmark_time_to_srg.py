"""The time that training needs to reach an SRG: the paper's loop compared with a cheaper recipe, on the same images.

The paper's loop trains everything, on 32 new subsets per image and step. Each learning rate is tried for a sixth of
`--seconds`, and the best of them gets a run of all `--seconds`. The cheaper recipe gets a tenth of `--seconds`. It
trains the mask transformer alone, on features of four views per image that are computed once, with 8 new subsets per
image and step. The classifier, the images and the precision (that of `accelerate launch`) are the same.

First a few steps of both are timed, on a machine that should do nothing else. They say how many steps fit into a number
of seconds. The time of a run is computed from them: its preparations and steps, without the validations. The runs
themselves may therefore share the machine with other work. Finished runs are kept in results.json and not repeated.
"""

import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from measuring import MeasurementArguments, now
from transformers import HfArgumentParser

from salvage_hf.arguments import AtLeast, arg
from salvage_hf.files import check_writable, write_json
from salvage_hf.training.explainer import ExplainerArguments, ExplainerTask, train_explainer

PAPER: dict[str, Any] = {"per_device_train_batch_size": 64, "new_subsets": 32, "guidance_exponent": 1.0}
CHEAPER: dict[str, Any] = {
    "guidance_exponent": 1.0,  # as in the paper's loop, so that the recipes differ in their cost only
    "per_device_train_batch_size": 32,
    "new_subsets": 8,
    "freeze_backbone": True,
    "num_views": 4,
    "learning_rate": 5e-4,
    "num_warmup_steps": 50,
    "lr_scheduler_type": "cosine",
}
PROBE_STEPS = 16


@dataclass
class TimeBenchmarkArguments(MeasurementArguments):
    """Arguments of scripts/performance/benchmark_time_to_srg.py."""

    train_dir: str = arg("", "A folder of training images, one sub-folder per class.")
    max_eval_samples: Annotated[int, AtLeast(1)] = arg(200, "Validate on this many of the images in --validation_dir.")
    seconds: float = arg(3600.0, "The time of the paper's loop.")
    learning_rates: list[float] = arg(
        [1e-5, 3e-5, 1e-4], "Learning rates of the paper's loop, each tried for a sixth of the time."
    )
    seeds: list[int] = arg([0, 1, 2], "Seeds of the cheaper recipe, one run each.")
    output_dir: str = arg("outputs/benchmark_time_to_srg", "The folder for results.json and the explainers.")

    def __post_init__(self):
        super().__post_init__()
        if not self.train_dir:
            raise ValueError("train_dir is needed: a folder of training images, one sub-folder per class")


class Runs:
    """Training runs, each made once: results.json keeps their results."""

    def __init__(self, args: TimeBenchmarkArguments):
        self.args, self.path = args, Path(args.output_dir, "results.json")
        self.done: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        settings = {name: value for name, value in vars(args).items() if name not in ("seeds", "output_dir")}
        if self.done.setdefault("settings", settings) != settings:
            sys.exit(f"{str(self.path)!r} holds runs with other arguments: {self.done['settings']}")

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What results.json holds under a name; where it holds nothing, what `make` returns, which is then kept."""
        if name not in self.done:
            # All processes take the main process's result, whose seconds say how many steps all of them take.
            self.done[name] = broadcast_object_list([make()])[0]
            if PartialState().is_main_process:
                write_json(self.path, self.done)
        return self.done[name]

    def train(
        self, name: str, steps: int, validations: int, task: type[ExplainerTask] = ExplainerTask, **options
    ) -> dict[str, Any]:
        """Results of a training run of that many steps, validated that many times."""
        args = ExplainerArguments(
            model_name_or_path=self.args.model_name_or_path,
            train_dir=self.args.train_dir,
            validation_dir=self.args.validation_dir,
            max_eval_samples=self.args.max_eval_samples,
            max_train_steps=steps,
            validation_steps=math.ceil(steps / validations),
            checkpointing_steps=steps,
            output_dir=str(Path(self.args.output_dir, name)),
            **options,
        )
        return train_explainer(args, task=task)

    def probe(self, name: str, **options) -> dict[str, float]:
        """Seconds of a run's preparations, and of one step once the first ones have warmed up."""
        started, begun = now(), []

        class Probe(ExplainerTask):
            """Notes when each step begins, and does not spend time on validation."""

            def loss(self, model, batch, step):
                begun.append(now())
                return super().loss(model, batch, step)

            def evaluate(self, model):
                return {"srg": 0.0}

        self.train(f"probe_{name}", PROBE_STEPS, 1, task=Probe, **options)
        steps = [after - before for before, after in itertools.pairwise(begun)]
        return {"preparation": begun[0] - started, "step": statistics.median(steps[len(steps) // 2 :])}

    def run_for(
        self, seconds: float, name: str, validations: int, probe: dict[str, float], **options
    ) -> list[dict[str, float]]:
        """Trains for `seconds`; returns the time and the SRG of each validation."""
        steps = max(validations, int((seconds - probe["preparation"]) / probe["step"]))
        history = self.once(name, lambda: self.train(name, steps, validations, **options)["history"])
        return [
            {"seconds": probe["preparation"] + row["step"] * probe["step"], "srg": row["eval_srg"]}
            for row in history
            if "eval_srg" in row
        ]


def main() -> None:
    args = HfArgumentParser(TimeBenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    runs = Runs(args)
    paper_probe = runs.once("probe_paper", lambda: runs.probe("paper", **PAPER))
    cheaper_probe = runs.once("probe_cheaper", lambda: runs.probe("cheaper", **CHEAPER))
    cheaper = {
        seed: runs.run_for(args.seconds / 10, f"cheaper_{seed}", 3, cheaper_probe, **CHEAPER, seed=seed)
        for seed in args.seeds
    }
    short = {
        rate: runs.run_for(args.seconds / 6, f"paper_{rate}_short", 1, paper_probe, **PAPER, learning_rate=rate)[-1]
        for rate in args.learning_rates
    }
    best = max(short, key=lambda rate: short[rate]["srg"])
    paper = runs.run_for(args.seconds, f"paper_{best}", 4, paper_probe, **PAPER, learning_rate=best)
    if not PartialState().is_main_process:
        return
    for name, probe in (("paper's loop", paper_probe), ("cheaper recipe", cheaper_probe)):
        print(f"{name}: {probe['preparation']:.1f} s of preparation, {probe['step']:.3f} s per step")
    for rate, row in short.items():
        print(f"paper's loop, learning rate {rate}: SRG {row['srg']:.4f} after {row['seconds']:.0f} s")
    target, whole = max(row["srg"] for row in paper), paper[-1]["seconds"]
    print(f"paper's loop, learning rate {best}: SRG {target:.4f} after {whole:.0f} s")
    for seed, rows in cheaper.items():
        course = ", ".join(f"{row['srg']:.4f} ({row['seconds']:.0f} s)" for row in rows)
        reached = next((row["seconds"] / whole for row in rows if row["srg"] >= target), None)
        print(f"cheaper recipe, seed {seed}: {course}")
        print("  did not reach it" if reached is None else f"  reached it after {reached:.3f} of the time")


if __name__ == "__main__":
    main()
