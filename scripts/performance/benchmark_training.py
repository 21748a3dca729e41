"""Where the time of a training step goes: an ordinary run of `train_explainer`, with a clock that times its parts.

Takes the arguments of scripts/train.py. The first two optimizer steps warm up and are not counted; validation and
checkpoints come after the last step that is counted.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from measuring import now
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import HfArgumentParser

from salvage_hf.files import write_json
from salvage_hf.training.explainer import ExplainerArguments, ExplainerTask, train_explainer

#: Optimizer steps that are not counted.
WARM_UP_STEPS = 2

IMAGES, SAMPLING = "images (read, decode, process)", "sampling"
EXPLAINER_FORWARD, EXPLAINER_BACKWARD = "explainer forward", "explainer backward"
CLASSIFIER, OBJECTIVE, OPTIMIZER = "classifier forwards v(S)", "objective", "optimizer"
MODEL_PARTS = (EXPLAINER_FORWARD, EXPLAINER_BACKWARD, CLASSIFIER)


class Clock:
    """Seconds of the parts of every optimizer step.

    The parts of a step follow each other without a gap, so that it is enough to note where each of them ends. Only the
    process that trains does so: a DataLoader's worker is a fork, which cannot wait for the GPU, and the images that it
    reads cost a step what the step waits for them.

    Attributes:
        steps: for every finished optimizer step, when it ended, and the seconds of each of its parts.
    """

    def __init__(self):
        self.steps: list[tuple[float, dict[str, float]]] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = now()

    def end_part(self, part: str) -> None:
        """A part ends now; it began when the part before it ended."""
        end = now()
        self.seconds[part] += end - self.last
        self.last = end

    def end_step(self) -> None:
        """The last part of an optimizer step ends now."""
        self.end_part(OPTIMIZER)
        self.steps.append((self.last, dict(self.seconds)))
        self.seconds.clear()


class TimedTask(ExplainerTask):
    """An explainer's training that tells a clock where each part of a step ends."""

    clock: Clock  # set before the run

    def loss(self, model, batch, step):
        self.clock.end_part(IMAGES)  # since the previous optimizer step
        loss = super().loss(model, batch, step)
        self.clock.end_part(OBJECTIVE)
        return loss

    def explain(self, model, batch, images):
        output = super().explain(model, batch, images)
        self.clock.end_part(EXPLAINER_FORWARD)
        return output

    def targets(self, batch):
        self.clock.end_part(SAMPLING)  # up to here
        targets = super().targets(batch)
        self.clock.end_part(CLASSIFIER)  # it predicts the targets of images without labels
        return targets

    def draw_subsets(self, output, batch, step):
        drawn = super().draw_subsets(output, batch, step)
        self.clock.end_part(SAMPLING)
        return drawn

    def ask_classifier(self, batch, drawn):
        values = super().ask_classifier(batch, drawn)
        self.clock.end_part(CLASSIFIER)
        return values


@contextmanager
def clock_on_optimizer(clock: Clock) -> Iterator[None]:
    """Within this context, the optimizer tells the clock where the backward pass ends and where the step ends."""
    handles = [
        register_optimizer_step_pre_hook(lambda *_: clock.end_part(EXPLAINER_BACKWARD)),
        register_optimizer_step_post_hook(lambda *_: clock.end_step()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check(args: ExplainerArguments) -> None:
    """Ends the program where a step of these arguments cannot be timed."""
    if not args.max_train_steps or args.max_train_steps < WARM_UP_STEPS + 2:
        sys.exit(f"--max_train_steps must be at least {WARM_UP_STEPS + 2}, got {args.max_train_steps}")
    if args.gradient_accumulation_steps != 1 or args.auto_find_batch_size:
        sys.exit(
            "a step is timed from one batch to the optimizer: --gradient_accumulation_steps must be 1, got "
            f"{args.gradient_accumulation_steps}, and --auto_find_batch_size, which changes it, must not be given"
        )
    if args.resume_from_checkpoint:
        sys.exit(f"a new run is timed: --resume_from_checkpoint {args.resume_from_checkpoint!r} must not be given")


def main() -> None:
    args = HfArgumentParser(ExplainerArguments, description=__doc__).parse_args_into_dataclasses()[0]
    check(args)
    args.validation_steps = args.checkpointing_steps = args.max_train_steps
    clock = TimedTask.clock = Clock()
    with clock_on_optimizer(clock):
        train_explainer(args, task=TimedTask)
    if PartialState().is_main_process:
        report(clock, Path(args.output_dir, "benchmark_training.json"))


def report(clock: Clock, path: Path) -> None:
    """Prints the parts, the longest first, and writes them to a file."""
    (start, _), *counted = clock.steps[WARM_UP_STEPS - 1 :]
    total, num_steps = counted[-1][0] - start, len(counted)
    parts: dict[str, float] = defaultdict(float)
    for _, seconds in counted:
        for part, spent in seconds.items():
            parts[part] += spent
    for part, spent in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{part:32} {1000 * spent / num_steps:9.1f} ms per step {100 * spent / total:6.1f}%")
    share = sum(parts[part] for part in MODEL_PARTS) / total
    print(f"{total / num_steps:.3f} s per step, {100 * share:.1f}% inside model forwards and backwards")
    write_json(path, {"seconds_per_step": total / num_steps, "share_in_models": share, "parts": parts})


if __name__ == "__main__":
    main()
