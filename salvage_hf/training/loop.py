"""The training loop shared by classifiers and explainers, over accelerate.

A run is a pure function of its arguments: data order, subsets and initial weights come from the seed, and a resumed
run continues bit for bit (on a CPU) where the checkpoint was written. Global batches are the same for any number of
processes.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from ..arguments import PRIVATE, names_with
from ..data.cached_images import image_loader
from ..data.images import ProcessedImages
from ..files import LOCK, write_bytes
from ..hub.publishing import push_model, repository_name
from ..recipes import RECIPE, write_recipe
from .arguments import LoopArguments
from .checkpoints import (
    checkpoint_to_resume,
    has_model,
    load_checkpoint,
    save_best,
    save_checkpoint,
    save_last,
)
from .setup import TRACKER_LOGS, make_accelerator, output_folder, with_found_batch_size
from .task import Task

logger = logging.getLogger(__name__)

#: Optimizer steps between two logs of the training loss.
LOGGING_STEPS = 10


def fit(task: Callable[[Any, Accelerator], Task], args: LoopArguments) -> dict[str, Any]:
    """Trains the model of a task; writes its best and last state, checkpoints on the way, and the recipe.

    Args:
        task: makes what is learned, from the arguments and the accelerator.
        args: the arguments of the run.

    Returns:
        Results of the best step, and under "history" what was measured on the way.
    """

    def train(fitting: LoopArguments) -> dict[str, Any]:
        accelerator = make_accelerator(fitting)
        with output_folder(fitting, accelerator):
            return _TrainingRun(task(fitting, accelerator), fitting, accelerator, recipe=args).run()

    return with_found_batch_size(train, args)


class _TrainingRun:
    """A training run: what accelerate has prepared, and how far it has come.

    `recipe` is what was asked for, where `args` may have smaller batches.
    """

    def __init__(self, task: Task, args: LoopArguments, accelerator: Accelerator, recipe: LoopArguments):
        self.task, self.args, self.accelerator, self.recipe = task, args, accelerator, recipe
        self.output_dir = Path(args.output_dir)
        contents = [task.made_with() if accelerator.is_main_process else {}]
        self.made_with: dict[str, str] = broadcast_object_list(contents)[0]
        loader = self._make_loader()
        if args.learning_rate is None:
            raise ValueError("learning_rate is needed, for example 1e-5; got None")
        optimizer = torch.optim.AdamW(
            [p for p in task.model.parameters() if p.requires_grad],
            lr=args.learning_rate,
            weight_decay=args.weight_decay,
            # One kernel for all parameters; elsewhere torch chooses.
            fused=accelerator.device.type == "cuda" or None,
        )
        self.model, self.optimizer, self.loader = accelerator.prepare(task.model, optimizer, loader)
        self.steps_per_epoch = math.ceil(len(self.loader) / args.gradient_accumulation_steps)
        self.max_steps = args.max_train_steps or args.num_train_epochs * self.steps_per_epoch
        self.scheduler = accelerator.prepare_scheduler(
            get_scheduler(args.lr_scheduler_type, self.optimizer, args.num_warmup_steps, self.max_steps)
        )
        interval = args.checkpointing_steps
        self.checkpointing_steps = self.steps_per_epoch if interval == "epoch" else int(interval or self.max_steps)
        self._init_trackers()
        self.progress: dict[str, Any] = {"step": 0, "best": None, "history": []}
        self.losses: list[torch.Tensor] = []  # since the last log
        self.ids: list[torch.Tensor] = []  # of the images of these losses

    def _make_loader(self) -> DataLoader:
        args, images = self.args, self.task.train_images
        loader = image_loader(
            images,
            args.per_device_train_batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_num_workers > 0,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        if len(loader) < self.accelerator.num_processes:
            raise ValueError(
                f"{len(images)} training images are less than one batch of {args.per_device_train_batch_size} "
                f"in each of {self.accelerator.num_processes} processes"
            )
        return loader

    def _init_trackers(self) -> None:
        private = names_with(self.args, PRIVATE)
        shown = {name: value for name, value in asdict(self.args).items() if name not in private}
        self.accelerator.init_trackers(
            self.output_dir.resolve().name, config=shown if self.args.with_tracking else None
        )

    def run(self) -> dict[str, Any]:
        """All steps from the start or the checkpoint to the last; returns the results."""
        if folder := checkpoint_to_resume(self.args):
            self.progress = load_checkpoint(folder, self.args, self.accelerator, self.made_with)
            if self.progress["step"] > self.max_steps:
                raise ValueError(
                    f"the checkpoint is of step {self.progress['step']}, after the last one, {self.max_steps}"
                )
        # Now: a run that is killed has it too, and one that was refused leaves what lies beside the earlier results.
        write_recipe(self.output_dir, self.task.command, self.recipe, accelerator=self.accelerator)
        hidden = not self.accelerator.is_main_process
        self.bar = tqdm(total=self.max_steps, initial=self.progress["step"], disable=hidden, desc="Training")
        epoch, steps_done = divmod(self.progress["step"], self.steps_per_epoch)
        while self.progress["step"] < self.max_steps:
            self._run_epoch(epoch, steps_done)
            epoch, steps_done = epoch + 1, 0
        self.bar.close()
        return self._finish()

    def _run_epoch(self, epoch: int, steps_done: int) -> None:
        """One pass over the training images, without its first `steps_done` optimizer steps."""
        skipped = steps_done * self.args.gradient_accumulation_steps
        batches = self.accelerator.skip_first_batches(self.loader, skipped) if skipped else self.loader
        batches.set_epoch(epoch)  # after skipping: before accelerate 1.15 that began with the order of the first epoch
        for number, batch in enumerate(batches, start=epoch * len(self.loader) + skipped):
            self._learn_from(batch, number)
            if not self.accelerator.sync_gradients:
                continue  # more batches are accumulated before the optimizer's step
            self.scheduler.step()
            self.progress["step"] += 1
            self.bar.update()
            self._measure_and_keep()
            if self.progress["step"] == self.max_steps:
                break

    def _learn_from(self, batch: dict[str, torch.Tensor], number: int) -> None:
        """Forward, backward, and the optimizer's step where enough batches are accumulated."""
        self.model.train()
        with self.accelerator.accumulate(self.model):
            loss = self.task.loss(self.model, batch, number)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.losses.append(loss.detach())
        self.ids.append(batch["ids"])

    def _measure_and_keep(self) -> None:
        """Logs, validates and writes a checkpoint, each where its interval ends at this step."""
        step, last = self.progress["step"], self.progress["step"] == self.max_steps
        validate = last or step % self.args.validation_steps == 0
        checkpoint = last or step % self.checkpointing_steps == 0
        if validate or checkpoint or step % LOGGING_STEPS == 0:
            measured = {
                "step": step,
                "train_loss": self._mean_loss(),
                "learning_rate": self.scheduler.get_last_lr()[0],
            }
            if validate:
                measured |= self._validate(step)
                self._keep_if_best(measured)
            self.progress["history"].append(measured)
            logged = {name: value for name, value in measured.items() if name != "step"}
            self.accelerator.log(logged, step=step)
        if checkpoint:
            save_checkpoint(self.args, self.accelerator, self.progress, self.made_with)

    def _mean_loss(self) -> float:
        """The mean loss since the last log, over all processes; FloatingPointError where it is not finite."""
        loss = self.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        if not math.isfinite(loss):
            self._fail(f"the loss is {loss}", self.task.train_images, torch.cat(self.ids).tolist())
        self.losses.clear()
        self.ids.clear()
        self.bar.set_postfix(loss=f"{loss:.4f}")
        return loss

    def _fail(self, what: str, images: ProcessedImages, indices: Iterable[int]) -> NoReturn:
        """Raises FloatingPointError with the cause of a number that is not finite, the same one in all processes."""
        causes = gather_object([self.task.why_not_finite(images, indices)])
        cause = next(filter(None, causes), "lower --learning_rate, or resume from an earlier checkpoint")
        raise FloatingPointError(
            f"{what} before step {self.progress['step']}: {cause}; no checkpoint was written since"
        )

    def _validate(self, step: int) -> dict[str, float]:
        self.model.eval()
        scores = {f"eval_{name}": score for name, score in self.task.evaluate(self.model).items()}
        if not all(map(math.isfinite, scores.values())):
            images = self.task.eval_images
            self._fail(f"the validation's scores are {scores}", images, range(len(images)))
        logger.info("step %d: %s", step, {name: round(value, 4) for name, value in scores.items()})
        return scores

    def _keep_if_best(self, measured: dict[str, Any]) -> None:
        metric, best = f"eval_{self.task.best_metric}", self.progress["best"]
        if best is None or measured[metric] > best[metric]:
            self.progress["best"] = measured
            if self.accelerator.is_main_process:
                save_best(self.task, self._bare_model(), self.output_dir, measured)

    def _bare_model(self) -> torch.nn.Module:
        """The model without what accelerate has wrapped it in for distribution or compiling."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _finish(self) -> dict[str, Any]:
        """Writes the last model, the results and what describes the best model, which --push_to_hub uploads."""
        accelerator, history = self.accelerator, self.progress["history"]
        accelerator.wait_for_everyone()
        best = self.progress["best"] or history[-1]
        results = {**best, "num_processes": accelerator.num_processes, "history": history}
        if accelerator.is_main_process:
            save_last(self.task, self._bare_model(), self.output_dir, history[-1])
            write_bytes(self.output_dir / "all_results.json", (json.dumps(results, indent=2) + "\n").encode())
            if not has_model(self.output_dir):
                raise RuntimeError(
                    f"{self.args.output_dir!r} does not hold the best model, of step {best['step']}: the folder was "
                    "removed or emptied while the run wrote to it; last/ holds the model of the last step"
                )
        accelerator.wait_for_everyone()
        self.task.describe(self.output_dir, best)
        if accelerator.is_main_process and self.args.push_to_hub:
            left_out = ["step_*", "last/*", f"{TRACKER_LOGS}/*", f"{LOCK}*", RECIPE]  # paths of this machine
            name = repository_name(self.args.hub_model_id, self.args.output_dir)
            push_model(self.output_dir, name, self.args.hub_token, left_out, self.args.private)
        accelerator.wait_for_everyone()
        for tracker in accelerator.trackers:
            tracker.finish()
        return results
