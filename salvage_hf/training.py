"""The training loop shared by classifiers and explainers, over accelerate.

A run is a pure function of its arguments: data order, subsets and initial weights come from the seed, and a resumed
run continues bit for bit (on a CPU) where the checkpoint was written. Global batches are the same for any number of
processes.
"""

import atexit
import functools
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import ProjectConfiguration, find_executable_batch_size, set_seed
from huggingface_hub import HfApi
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from .data import ProcessedImages, load_images

logger = logging.getLogger(__name__)

#: Folder in output_dir where trackers that write files put them.
TRACKER_LOGS = "logs"
#: File in output_dir with the classifier's values that a run has kept.
REPLAY_FILE = "replay.safetensors"

#: Arguments that a resumed run may change. They leave the numbers of a training step as they are, but for its learning
#: rate where the schedule runs to the last step.
FREE_ARGUMENTS = {
    "output_dir",
    "num_train_epochs",
    "max_train_steps",
    "validation_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "auto_find_batch_size",
    "dataloader_num_workers",
    "per_device_eval_batch_size",
    "with_tracking",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
}


def arg(default: Any, help: str) -> Any:
    """A field of an arguments dataclass, with the help that the command line shows."""
    return field(default=default, metadata={"help": help})


@dataclass
class LoopArguments:
    """Arguments of every training script, named as in transformers' no-trainer examples."""

    output_dir: str = arg(
        "outputs", "Where the best model, the last one (last/) and checkpoints (step_N/) are written."
    )
    dataset_name: str | None = arg(None, "A data set on the Hub.")
    train_dir: str | None = arg(None, "A folder of training images, one sub-folder a class.")
    validation_dir: str | None = arg(
        None, "A folder of validation images; else the data set's split of that name, else a part of the training set."
    )
    train_val_split: float = arg(0.05, "Share of the training images kept for validation without --validation_dir.")
    max_train_samples: int | None = arg(None, "Train on this many random images only.")
    max_eval_samples: int | None = arg(None, "Validate on this many random images only.")
    image_column_name: str = arg("image", "Column of the images.")
    label_column_name: str = arg("label", "Column of the labels.")
    on_bad_image: str = arg("refuse", "What to do with unreadable images: refuse or skip.")
    per_device_train_batch_size: int = arg(64, "Images a step and process.")
    per_device_eval_batch_size: int = arg(64, "Images a validation step and process.")
    gradient_accumulation_steps: int = arg(1, "Batches an optimizer step.")
    learning_rate: float | None = arg(
        None, "Peak learning rate of AdamW; when not given, 1e-5, and 1e-4 for ViT-Shapley and FastSHAP, as published."
    )
    weight_decay: float = arg(1e-5, "Weight decay of AdamW.")
    num_train_epochs: int = arg(50, "Passes over the training images.")
    max_train_steps: int | None = arg(None, "Optimizer steps, in place of epochs.")
    lr_scheduler_type: str = arg("linear", "Schedule, as in transformers.get_scheduler.")
    num_warmup_steps: int = arg(0, "Steps of linear warm-up.")
    max_grad_norm: float = arg(1.0, "Gradients are clipped to this norm.")
    validation_steps: int = arg(500, "Optimizer steps between validations.")
    checkpointing_steps: int | str | None = arg(
        500, "Optimizer steps between checkpoints, or 'epoch'; the last step always writes one."
    )
    checkpoints_total_limit: int = arg(2, "How many checkpoints are kept.")
    resume_from_checkpoint: str | None = arg(None, "A checkpoint folder, or 'latest' of --output_dir.")
    auto_find_batch_size: bool = arg(
        False, "Where memory is short, take smaller batches and accumulate more: optimizer steps stay as large."
    )
    dataloader_num_workers: int = arg(0, "Processes that load images.")
    seed: int = arg(0, "Seed of everything random.")
    with_tracking: bool = arg(False, "Log to experiment trackers.")
    report_to: str = arg("all", "Which trackers, with --with_tracking.")
    push_to_hub: bool = arg(False, "Upload the best model.")
    hub_model_id: str | None = arg(None, "Repository to upload to; the name of --output_dir when not given.")
    hub_token: str | None = arg(None, "Token for the upload.")

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = 1e-5
        steps = self.checkpointing_steps
        if isinstance(steps, str) and steps != "epoch":
            if not steps.isdigit():
                raise ValueError(f"checkpointing_steps={steps!r} is neither a number of steps nor 'epoch'")
            self.checkpointing_steps = int(steps)
        positive = (
            "max_train_samples",
            "max_eval_samples",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "num_train_epochs",
            "max_train_steps",
            "validation_steps",
            "checkpointing_steps",
            "checkpoints_total_limit",
        )
        check_least(self, dict.fromkeys(positive, 1))
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"train_val_split must lie between 0 and 1, got {self.train_val_split}")


def check_least(arguments: Any, least: Mapping[str, int]) -> None:
    """Raises ValueError where an argument is a number below its least value."""
    for name, lowest in least.items():
        value = getattr(arguments, name)
        if isinstance(value, int) and value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")


def with_found_batch_size(train: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Decorator of a training function: what --auto_find_batch_size does, by accelerate's own finder.

    A smaller batch divides the one asked for, so that accumulation makes up for it exactly; the run begins anew.
    """

    @functools.wraps(train)
    def run(args):
        if not args.auto_find_batch_size:
            return train(args)
        largest = first = args.per_device_train_batch_size
        if args.resume_from_checkpoint:  # with the batch size that was found before
            first = read_checkpoint(args)[1]["arguments"]["per_device_train_batch_size"]
            first = first if largest % first == 0 else largest
        sizes = iter([size for size in range(first - 1, 0, -1) if largest % size == 0] + [0])

        def attempt(batch_size: int) -> dict[str, Any]:
            if batch_size < largest:
                logger.warning("Memory is short: per_device_train_batch_size=%d", batch_size)
            return train(
                replace(
                    args,
                    per_device_train_batch_size=batch_size,
                    per_device_eval_batch_size=min(batch_size, args.per_device_eval_batch_size),
                    gradient_accumulation_steps=args.gradient_accumulation_steps * (largest // batch_size),
                )
            )

        return find_executable_batch_size(attempt, first, lambda: next(sizes))()

    return run


def make_accelerator(args: LoopArguments) -> Accelerator:
    """The accelerator of a run; device, precision and processes come from `accelerate launch`."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to if args.with_tracking else None,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir) / TRACKER_LOGS)),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed, non_blocking=True),
    )
    # Not by end_training: another run may follow in the same processes.
    atexit.register(accelerator.state.destroy_process_group)
    logging.getLogger("salvage_hf").setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    set_seed(args.seed)
    check_writable(args.output_dir)
    if accelerator.is_main_process:
        # Left by a run that was killed while it wrote.
        best = Path(args.output_dir, "best.partial")
        if (best / _COMPLETE).exists():
            _publish(best, best.parent)
        for folder in (*Path(args.output_dir).glob("step_*.partial"), best):
            shutil.rmtree(folder, ignore_errors=True)
        if args.push_to_hub:
            create_repository(args)
    return accelerator


def check_writable(folder: str | Path) -> None:
    """Raises an error at once, rather than after hours, where a folder cannot be written to."""
    probe = Path(folder) / ".writable"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {str(folder)!r} is not writable: {error}") from error


def load_splits(args: LoopArguments) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and validation images."""
    options = {"image_column": args.image_column_name, "on_bad_image": args.on_bad_image}
    train = load_images(args.dataset_name, args.train_dir, **options)
    if args.validation_dir:
        validation = load_images(folder=args.validation_dir, **options)
    elif args.dataset_name and "validation" in datasets.get_dataset_split_names(args.dataset_name):
        validation = load_images(args.dataset_name, split="validation", **options)
    else:
        parts = train.train_test_split(test_size=args.train_val_split, seed=args.seed)
        train, validation = parts["train"], parts["test"]
    if args.max_train_samples and args.max_train_samples < len(train):
        train = train.shuffle(seed=args.seed).select(range(args.max_train_samples))
    if args.max_eval_samples and args.max_eval_samples < len(validation):
        # The same images whatever the seed: runs that differ in it are compared on them.
        validation = validation.shuffle(seed=0).select(range(args.max_eval_samples))
    return train, validation


def fit(
    args: LoopArguments,
    accelerator: Accelerator,
    model: torch.nn.Module,
    train_dataset: ProcessedImages,
    compute_loss: Callable[[torch.nn.Module, dict[str, torch.Tensor], int], torch.Tensor],
    evaluate: Callable[[torch.nn.Module], dict[str, float]],
    best_metric: str,
    save: Callable[[torch.nn.Module, Path, dict[str, Any]], None],
) -> dict[str, Any]:
    """Trains a model.

    Args:
        args: arguments of the loop.
        accelerator: of `make_accelerator`.
        model: what is trained: its parameters that require gradients.
        train_dataset: items as the default collate function takes them.
        compute_loss: (model, batch, number of the batch from 0) -> loss, mean over the images of the batch.
        evaluate: model -> scores on validation images, the same in all processes.
        best_metric: the score, higher is better, that selects the best model.
        save: (model, folder, results) writes a model; called in the main process. Of the results "chosen" says whether
            they chose it.

    Returns:
        Results of the best step, and under "history" what was measured on the way.
    """
    output_dir = Path(args.output_dir)
    loader = DataLoader(
        train_dataset,
        batch_size=args.per_device_train_batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.dataloader_num_workers,
        persistent_workers=args.dataloader_num_workers > 0,
        pin_memory=accelerator.device.type == "cuda",
    )
    if len(loader) < accelerator.num_processes:
        raise ValueError(
            f"{len(train_dataset)} training images are less than one batch of {args.per_device_train_batch_size} "
            f"in each of {accelerator.num_processes} processes"
        )
    assert args.learning_rate is not None  # __post_init__ has set it
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=args.learning_rate, weight_decay=args.weight_decay
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    max_steps = args.max_train_steps or args.num_train_epochs * steps_per_epoch
    # Not prepared: accelerate would step it once per process. Here one call is one optimizer step.
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, args.num_warmup_steps, max_steps)
    accelerator.register_for_checkpointing(scheduler)
    shown = {name: value for name, value in asdict(args).items() if name != "hub_token"}
    accelerator.init_trackers(output_dir.resolve().name, config=shown if args.with_tracking else None)
    every = args.checkpointing_steps
    checkpointing_steps = steps_per_epoch if every == "epoch" else int(every or max_steps)

    progress: dict[str, Any] = {"step": 0, "best": None, "history": []}
    if args.resume_from_checkpoint:
        progress = load_checkpoint(args, accelerator, len(train_dataset))
        if progress["step"] > max_steps:
            raise ValueError(f"the checkpoint is of step {progress['step']}, after the last one, {max_steps}")
    bar = tqdm(total=max_steps, initial=progress["step"], disable=not accelerator.is_main_process, desc="Training")
    epoch, done = divmod(progress["step"], steps_per_epoch)
    losses: list[torch.Tensor] = []
    while progress["step"] < max_steps:
        loader.set_epoch(epoch)
        skipped = done * args.gradient_accumulation_steps
        batches = accelerator.skip_first_batches(loader, skipped) if skipped else loader
        for index, batch in enumerate(batches, start=epoch * len(loader) + skipped):
            model.train()
            with accelerator.accumulate(model):
                loss = compute_loss(model, batch, index)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            if not accelerator.sync_gradients:
                continue
            scheduler.step()
            progress["step"] += 1
            step = progress["step"]
            bar.update()
            validate = step % args.validation_steps == 0 or step == max_steps
            checkpoint = step % checkpointing_steps == 0 or step == max_steps
            if step % 10 == 0 or validate or checkpoint:
                train_loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                losses.clear()
                if not math.isfinite(train_loss):
                    raise FloatingPointError(
                        f"the loss is {train_loss} before step {step}: lower --learning_rate, or resume from an "
                        "earlier checkpoint; no checkpoint was written since"
                    )
                measured = {"step": step, "train_loss": train_loss, "learning_rate": scheduler.get_last_lr()[0]}
                bar.set_postfix(loss=f"{train_loss:.4f}")
                if validate:
                    model.eval()
                    measured |= {f"eval_{name}": score for name, score in evaluate(model).items()}
                    _keep_if_best(accelerator, model, progress, measured, f"eval_{best_metric}", output_dir, save)
                progress["history"].append(measured)
                accelerator.log({name: value for name, value in measured.items() if name != "step"}, step=step)
            if checkpoint:
                save_checkpoint(args, accelerator, progress, len(train_dataset))
            if step == max_steps:
                break
        epoch, done = epoch + 1, 0
    bar.close()
    accelerator.wait_for_everyone()
    last = progress["history"][-1]
    results = {**(progress["best"] or last), "num_processes": accelerator.num_processes, "history": progress["history"]}
    if accelerator.is_main_process:
        save(accelerator.unwrap_model(model), output_dir / "last", {**last, "chosen": False})
        (output_dir / "all_results.json").write_text(json.dumps(results, indent=2) + "\n")
        if args.push_to_hub:
            push(args, output_dir)
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return results


def _keep_if_best(accelerator, model, progress, measured, metric, output_dir, save) -> None:
    shown = {name: round(value, 4) for name, value in measured.items() if name.startswith("eval_")}
    logger.info("step %d: %s", measured["step"], shown)
    if progress["best"] is None or measured[metric] > progress["best"][metric]:
        progress["best"] = measured
        if accelerator.is_main_process:
            # Written beside and moved: a full disk or a kill on the way leaves the best model so far.
            partial = output_dir / "best.partial"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                save(accelerator.unwrap_model(model), partial, {**measured, "chosen": True})
            except Exception as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise RuntimeError(
                    f"the best model of step {measured['step']} could not be written ({error})"
                ) from error
            (partial / _COMPLETE).touch()
            _publish(partial, output_dir)


#: The last file written to a model's temporary folder.
_COMPLETE = ".complete"


def _publish(partial: Path, output_dir: Path) -> None:
    """Moves a complete model to its place; also finishes a move that was killed half-way."""
    for file in partial.iterdir():
        if file.name != _COMPLETE:
            file.replace(output_dir / file.name)
    shutil.rmtree(partial)


def save_checkpoint(args: LoopArguments, accelerator: Accelerator, progress: dict[str, Any], num_images: int) -> None:
    """Writes step_N whole or not at all, then removes the oldest beyond the limit."""
    output_dir = Path(args.output_dir)
    final = output_dir / f"step_{progress['step']}"
    partial = output_dir / f"step_{progress['step']}.partial"
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
            state = {
                **progress,
                "arguments": _fixed(args, accelerator, num_images),
                "files": files,
                "time": time.time(),
            }
            (partial / "progress.json").write_text(json.dumps(state, indent=2) + "\n")
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in checkpoints(output_dir)[: -args.checkpoints_total_limit]:
                shutil.rmtree(old)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RuntimeError(
            f"checkpoint {str(final)!r} could not be written ({error}); earlier ones are intact"
        ) from error
    accelerator.wait_for_everyone()


def checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints of a run, in the order they were written.

    By time and not by step: where an earlier run of the same folder, or a run that was resumed from further back, has
    left later steps behind, these are the old ones.
    """

    def written(folder: Path) -> tuple[float, int]:
        try:
            time_written = json.loads((folder / "progress.json").read_text()).get("time", 0.0)
        except (OSError, ValueError):
            time_written = 0.0
        return time_written, int(folder.name.removeprefix("step_"))

    return sorted((p for p in output_dir.glob("step_*") if p.name.removeprefix("step_").isdigit()), key=written)


def read_checkpoint(args: LoopArguments) -> tuple[Path, dict[str, Any]]:
    """The folder of the checkpoint to resume from, and its record of the run; ValueError where it is not whole."""
    folder = Path(args.resume_from_checkpoint or "")
    if args.resume_from_checkpoint == "latest":
        found = checkpoints(Path(args.output_dir))
        if not found:
            raise ValueError(f"resume_from_checkpoint='latest', but {args.output_dir!r} has no checkpoint step_N")
        folder = found[-1]
    record = folder / "progress.json"
    if not record.is_file():
        raise ValueError(f"checkpoint {str(folder)!r} is not complete: it has no progress.json")
    try:
        progress = json.loads(record.read_text())
    except ValueError as error:
        raise ValueError(f"checkpoint {str(folder)!r} is not complete: progress.json is cut short") from error
    progress.pop("time", None)
    for name, size in progress.pop("files").items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ValueError(f"checkpoint {str(folder)!r} is not complete: {name} is missing or cut short")
    return folder, progress


def load_checkpoint(args: LoopArguments, accelerator: Accelerator, num_images: int) -> dict[str, Any]:
    """Restores a run; returns its progress."""
    folder, progress = read_checkpoint(args)
    before, now = progress.pop("arguments"), _fixed(args, accelerator, num_images)
    differ = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    changed = {name: (before.get(name), now.get(name)) for name in differ}
    if changed:
        raise ValueError(f"checkpoint {str(folder)!r} was written with other arguments (before, now): {changed}")
    accelerator.load_state(str(folder))
    if progress["best"] and not Path(args.output_dir, "config.json").is_file():
        logger.warning(
            "%s has no best model of the steps before: the best is chosen among those to come", args.output_dir
        )
        progress["best"] = None
    return progress


def _fixed(args: LoopArguments, accelerator: Accelerator, num_images: int) -> dict[str, Any]:
    """What the numbers of a run depend on: it can only be resumed with the same."""
    fixed = {name: value for name, value in asdict(args).items() if name not in FREE_ARGUMENTS}
    # accelerate writes the weights of several processes under other names than those of one.
    return {**fixed, "num_processes": accelerator.num_processes, "training_images": num_images}


def create_repository(args: LoopArguments) -> str:
    """The repository of a run on the Hub, made where there is none: first, so that a wrong token shows at once."""
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    return HfApi(token=args.hub_token).create_repo(name, exist_ok=True).repo_id


def push(args: LoopArguments, output_dir: Path) -> None:
    """Uploads the best model; checkpoints, the last model, replayed values and the trackers' files stay here."""
    HfApi(token=args.hub_token).upload_folder(
        repo_id=create_repository(args),
        folder_path=output_dir,
        commit_message="Best model of the run",
        ignore_patterns=["step_*", "last/*", f"{TRACKER_LOGS}/*", REPLAY_FILE],
    )
