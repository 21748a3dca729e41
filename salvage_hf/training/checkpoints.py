"""What a run keeps on disk: checkpoints that it can be resumed from, and its best model.

The states are accelerate's (`save_state`, `load_state`). Its automatic naming and `total_limit` are not used: they
remove the oldest checkpoint before the new one is written, so that a full disk or a kill loses both; they write in
place, so that half a checkpoint looks like a whole one; and they order checkpoints by step, which is wrong where an
earlier, longer run has used the same folder.
"""

import json
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..arguments import MAY_CHANGE, names_with
from .arguments import LoopArguments
from .task import Task

logger = logging.getLogger(__name__)

#: The folder in output_dir to which the best model is written, before it is moved to output_dir itself.
BEST_PARTIAL = "best.partial"

#: The last file written to that folder, which says that the model is complete.
COMPLETE = ".complete"


def save_checkpoint(args: LoopArguments, accelerator: Accelerator, progress: dict[str, Any], num_images: int) -> None:
    """Writes step_N whole or not at all, then removes the oldest checkpoints beyond the limit."""
    output_dir = Path(args.output_dir)
    final = output_dir / f"step_{progress['step']}"
    partial = output_dir / f"step_{progress['step']}.partial"
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
            record = {
                **progress,
                "arguments": _fixed_arguments(args, accelerator, num_images),
                "files": files,
                "time": time.time(),
            }
            (partial / "progress.json").write_text(json.dumps(record, indent=2) + "\n")
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

    Step numbers do not give this order: older checkpoints may be of later steps, from an earlier run in the same folder
    or from before this run was resumed at an earlier checkpoint.
    """

    def written(folder: Path) -> tuple[float, int]:
        try:
            time_written = json.loads((folder / "progress.json").read_text()).get("time", 0.0)
        except (OSError, ValueError):
            time_written = 0.0
        return time_written, int(folder.name.removeprefix("step_"))

    return sorted((p for p in output_dir.glob("step_*") if p.name.removeprefix("step_").isdigit()), key=written)


def read_checkpoint(args: LoopArguments) -> tuple[Path, dict[str, Any]]:
    """The checkpoint folder to resume from, and its record of the run; raises ValueError where it is incomplete."""
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
    """Restores a run and returns its progress; raises ValueError where its arguments were others."""
    folder, progress = read_checkpoint(args)
    before, now = progress.pop("arguments"), _fixed_arguments(args, accelerator, num_images)
    differ = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if changed := {name: (before.get(name), now.get(name)) for name in differ}:
        raise ValueError(f"checkpoint {str(folder)!r} was written with other arguments (before, now): {changed}")
    accelerator.load_state(str(folder))
    if progress["best"] and not Path(args.output_dir, "config.json").is_file():
        logger.warning(
            "%s has no best model of the earlier steps: the best is chosen among the steps to come", args.output_dir
        )
        progress["best"] = None
    return progress


def _fixed_arguments(args: LoopArguments, accelerator: Accelerator, num_images: int) -> dict[str, Any]:
    """What the numbers of a run depend on: a run can be resumed only with the same."""
    may_change = names_with(args, MAY_CHANGE)
    fixed = {name: value for name, value in asdict(args).items() if name not in may_change}
    # accelerate names the files of a checkpoint otherwise with several processes than with one.
    return {**fixed, "num_processes": accelerator.num_processes, "training_images": num_images}


def save_best(task: Task, model: torch.nn.Module, output_dir: Path, measured: dict[str, Any]) -> None:
    """Writes the best model so far; where the disk is full or the run is killed meanwhile, the previous one stays."""
    partial = output_dir / BEST_PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        task.save(model, partial, {**measured, "chosen": True})
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RuntimeError(f"the best model of step {measured['step']} could not be written ({error})") from error
    (partial / COMPLETE).touch()
    publish(partial, output_dir)


def publish(partial: Path, output_dir: Path) -> None:
    """Moves a complete model to its place; also finishes a move that was killed half-way."""
    for file in partial.iterdir():
        if file.name != COMPLETE:
            file.replace(output_dir / file.name)
    shutil.rmtree(partial)
