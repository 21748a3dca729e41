"""Wall clock to an SRG: the paper's loop for some time, and a cheaper recipe for a tenth of it, on the same images.

The paper's loop trains everything on 32 new subsets an image and step; its learning rate is the best of three runs of
a sixth of the time. The cheaper recipe trains the mask transformer on cached features of four views of every image, on
8 new subsets. Precision (that of `accelerate launch`), classifier and images are the same.

How many steps fit into a time is found before anything else, from some steps of both sides on a machine that does
nothing else. Time is counted as that of the preparations plus the steps, validations left out, and so may be spent
beside other work. Finished runs are in results.json and are not repeated.
"""

import itertools
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate import PartialState
from transformers import HfArgumentParser

from salvage_hf import explainer_training
from salvage_hf.benchmark import write_json
from salvage_hf.explainer_training import ExplainerArguments, train_explainer
from salvage_hf.training import arg, check_writable

PAPER: dict[str, Any] = {"per_device_train_batch_size": 64, "new_subsets": 32}
CHEAPER: dict[str, Any] = {
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
class TimeBenchmarkArguments:
    """Arguments of scripts/benchmark_time_to_srg.py."""

    model_name_or_path: str = arg("", "The frozen classifier: a name on the Hub or a folder.")
    train_dir: str = arg("", "A folder of training images, one sub-folder a class.")
    validation_dir: str = arg("", "A folder of validation images.")
    max_eval_samples: int = arg(200, "Validate on this many of them.")
    seconds: float = arg(3600.0, "Time of the paper's loop.")
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-5, 3e-5, 1e-4],
        metadata={"help": "Of the paper's loop, each tried for a sixth of the time."},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the cheaper recipe."})
    output_dir: str = arg("outputs/benchmark_time_to_srg", "Where results.json and the explainers are written.")


class Runs:
    """Training runs, each made once: results.json keeps what they gave."""

    def __init__(self, args: TimeBenchmarkArguments):
        self.args, self.path = args, Path(args.output_dir, "results.json")
        self.done: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        settings = {name: value for name, value in vars(args).items() if name not in ("seeds", "output_dir")}
        if self.done.setdefault("settings", settings) != settings:
            sys.exit(f"{str(self.path)!r} holds runs with other arguments: {self.done['settings']}")

    def keep(self, name: str, made) -> Any:
        """What the run of this name has given, or gives now."""
        if name not in self.done:
            self.done[name] = made()
            if PartialState().is_main_process:
                write_json(self.path, self.done)
        return self.done[name]

    def train(self, name: str, steps: int, validations: int, **options) -> dict[str, Any]:
        args = self.args
        return train_explainer(
            ExplainerArguments(
                model_name_or_path=args.model_name_or_path,
                train_dir=args.train_dir,
                validation_dir=args.validation_dir,
                max_eval_samples=args.max_eval_samples,
                max_train_steps=steps,
                validation_steps=math.ceil(steps / validations),
                checkpointing_steps=steps,
                output_dir=str(Path(args.output_dir, name)),
                **options,
            )
        )

    def probe(self, name: str, **options) -> dict[str, float]:
        """Seconds of the preparations and of a step."""
        start, ticks = time.perf_counter(), []

        def fit(args, accelerator, model, images, compute_loss, evaluate, *rest):
            def timed(*of_step):
                ticks.append(time.perf_counter())
                return compute_loss(*of_step)

            return fit_itself(args, accelerator, model, images, timed, lambda model: {"srg": 0.0}, *rest)

        fit_itself = explainer_training.fit
        with patch.object(explainer_training, "fit", fit):
            self.train(f"probe_{name}", PROBE_STEPS, 1, **options)
        steps = [after - before for before, after in itertools.pairwise(ticks)]
        return {"preparation": ticks[0] - start, "step": statistics.median(steps[len(steps) // 2 :])}  # once warmed up

    def timed(self, name: str, seconds: float, validations: int, probe: dict[str, float], **options) -> list[dict]:
        """A run of that many seconds: seconds and SRG at every validation."""
        steps = max(validations, int((seconds - probe["preparation"]) / probe["step"]))
        history = self.keep(name, lambda: self.train(name, steps, validations, **options)["history"])
        validated = [row for row in history if "eval_srg" in row]
        return [
            {"seconds": probe["preparation"] + row["step"] * probe["step"], "srg": row["eval_srg"]} for row in validated
        ]


def main() -> None:
    args = HfArgumentParser(TimeBenchmarkArguments).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    runs = Runs(args)
    paper_probe = runs.keep("probe_paper", lambda: runs.probe("paper", **PAPER))
    cheaper_probe = runs.keep("probe_cheaper", lambda: runs.probe("cheaper", **CHEAPER))
    for name, probe in (("paper's loop", paper_probe), ("cheaper recipe", cheaper_probe)):
        print(f"{name}: {probe['preparation']:.1f} s of preparation, {probe['step']:.3f} s a step")
    cheaper = {
        seed: runs.timed(f"cheaper_{seed}", args.seconds / 10, 3, cheaper_probe, **CHEAPER, seed=seed)
        for seed in args.seeds
    }
    short = {
        rate: runs.timed(f"paper_{rate}_short", args.seconds / 6, 1, paper_probe, **PAPER, learning_rate=rate)[-1]
        for rate in args.learning_rates
    }
    for rate, row in short.items():
        print(f"paper's loop, learning rate {rate}: SRG {row['srg']:.4f} after {row['seconds']:.0f} s")
    best = max(short, key=lambda rate: short[rate]["srg"])
    paper = runs.timed(f"paper_{best}", args.seconds, 4, paper_probe, **PAPER, learning_rate=best)
    target = max(row["srg"] for row in paper)
    print(f"paper's loop, learning rate {best}: SRG {target:.4f} after {paper[-1]['seconds']:.0f} s")
    for seed, rows in cheaper.items():
        reached = next((row["seconds"] / paper[-1]["seconds"] for row in rows if row["srg"] >= target), None)
        print(
            f"cheaper recipe, seed {seed}: " + ", ".join(f"{row['srg']:.4f} ({row['seconds']:.0f} s)" for row in rows)
        )
        print("  did not reach it" if reached is None else f"  reached it after {reached:.3f} of the time")


if __name__ == "__main__":
    main()
