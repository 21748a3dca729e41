"""Where the time of a training step goes: an ordinary run of `train_explainer`, with a clock around its parts.

Takes the arguments of scripts/train.py. The clock starts after the second optimizer step (the first ones warm up) and
stops with the last; validation and checkpoints are outside.
"""

import json
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from transformers import HfArgumentParser

from salvage_hf import MaskedClassifier, SalvageModel, explainer_training
from salvage_hf.data import ProcessedImages
from salvage_hf.explainer_training import ExplainerArguments, train_explainer
from salvage_hf.replay import ReplayStore

#: What is timed: owner, attribute, and the part of the step it is counted as. No part calls another.
PARTS = [
    (ProcessedImages, "__getitems__", "images (read, decode, process)"),
    (SalvageModel, "forward", "explainer forward"),
    (explainer_training, "draw_subsets", "sampling"),
    (MaskedClassifier, "logits", "classifier forwards v(S)"),
    (ReplayStore, "pairs", "replay"),
    (ReplayStore, "append", "replay"),
    (Accelerator, "backward", "explainer backward"),
    (torch.optim.AdamW, "step", "optimizer"),
]
MODEL_PARTS = ("explainer forward", "explainer backward", "classifier forwards v(S)")


class Clock:
    """Seconds of every part between the second and the last optimizer step."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps: list[tuple[float, dict[str, float]]] = []

    def timed(self, function, part):
        def wrapped(*args, **kwargs):
            start = now()
            result = function(*args, **kwargs)
            self.seconds[part] += now() - start
            if part == "optimizer":
                self.steps.append((now(), dict(self.seconds)))
            return result

        return wrapped


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    args = HfArgumentParser(ExplainerArguments).parse_args_into_dataclasses()[0]
    if not args.max_train_steps or args.max_train_steps < 4:
        sys.exit("--max_train_steps of at least 4 is needed")
    args.validation_steps = args.checkpointing_steps = args.max_train_steps
    clock = Clock()
    with ExitStack() as patches:
        for owner, name, part in PARTS:
            patches.enter_context(patch.object(owner, name, clock.timed(getattr(owner, name), part)))
        train_explainer(args)
    (start, before), (end, after) = clock.steps[1], clock.steps[-1]
    num_steps = len(clock.steps) - 2
    spent = {part: after[part] - before.get(part, 0.0) for part in after}
    spent["rest"] = end - start - sum(spent.values())
    for part, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{part:32} {1000 * seconds / num_steps:9.1f} ms a step {100 * seconds / (end - start):6.1f}%")
    share = sum(spent.get(part, 0.0) for part in MODEL_PARTS) / (end - start)
    print(f"{(end - start) / num_steps:.3f} s a step, {100 * share:.1f}% inside model forwards and backwards")
    results = {"seconds_a_step": (end - start) / num_steps, "share_in_models": share, "parts": spent}
    Path(args.output_dir, "benchmark_training.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
