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
from ..files import write_bytes
from .arguments import LoopArguments
from .task import Task

logger = logging.getLogger(__name__)

#: The suffix of folders that are being written or removed. After a kill, `clean_up` finishes or removes them.
PARTIAL = ".partial"

#: The last file written to a checkpoint, which says that it is complete: how far the run had come, and what made it.
RECORD = "progress.json"

#: What the record holds.
RECORD_KEYS = {"step", "best", "history", "arguments", "files", "time"}

#: The last file written to the partial folder of the best model, which says that the model is complete.
COMPLETE = ".complete"


def save_checkpoint(
    args: LoopArguments, accelerator: Accelerator, progress: dict[str, Any], made_with: dict[str, str]
) -> None:
    """Writes step_N whole or not at all, then removes the oldest checkpoints beyond the limit."""
    output_dir = Path(args.output_dir)
    final = output_dir / f"step_{progress['step']}"
    partial = output_dir / f"{final.name}{PARTIAL}"
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
            record = {
                **progress,
                "arguments": _fixed_arguments(args, accelerator, made_with),
                "files": files,
                "time": time.time(),
            }
            write_bytes(partial / RECORD, (json.dumps(record, indent=2) + "\n").encode())
            _put_in_place(partial, final)
            for old in checkpoints(output_dir)[: -args.checkpoints_total_limit]:
                _remove(old)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RuntimeError(
            f"checkpoint {str(final)!r} could not be written ({error}; is the disk full?); earlier ones are intact"
        ) from error
    accelerator.wait_for_everyone()


def _put_in_place(partial: Path, final: Path) -> None:
    """Gives a complete folder its name, in place of an earlier one."""
    if final.exists():
        _remove(final)
    partial.rename(final)


def _remove(folder: Path) -> None:
    """Removes a folder under another name first, so that a kill does not leave half of it under its own."""
    partial = folder.with_name(f"{folder.name}.old{PARTIAL}")
    folder.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def clean_up(output_dir: Path) -> None:
    """Cleans up after a run that was killed while it wrote: finishes what is complete, and removes the rest."""
    best = output_dir / f"best{PARTIAL}"
    if (best / COMPLETE).exists():
        publish(best, output_dir)
    for folder in (best, *output_dir.glob(f"last*{PARTIAL}"), *output_dir.glob(f"step_*{PARTIAL}")):
        final = folder.with_suffix("")
        if _is_checkpoint(final) and (folder / RECORD).exists():
            _put_in_place(folder, final)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _is_checkpoint(folder: Path) -> bool:
    return folder.name.startswith("step_") and folder.name.removeprefix("step_").isdecimal()


def checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints of a run, in the order they were written.

    Step numbers do not give this order: older checkpoints may be of later steps, from an earlier run in the same folder
    or from before this run was resumed at an earlier checkpoint.
    """

    def written(folder: Path) -> tuple[float, int]:
        try:
            time_written = json.loads((folder / RECORD).read_text()).get("time", 0.0)
        except (OSError, ValueError, AttributeError):  # no record, or a damaged one
            time_written = 0.0
        return time_written, int(folder.name.removeprefix("step_"))

    return sorted(filter(_is_checkpoint, output_dir.glob("step_*")), key=written)


def checkpoint_to_resume(args: LoopArguments) -> Path | None:
    """The folder of the checkpoint that a run goes on from; None where it begins anew.

    It does so with 'latest' where there is no checkpoint yet, so that one command starts a run and starts it again.
    """
    if args.resume_from_checkpoint != "latest":
        return Path(args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    found = checkpoints(Path(args.output_dir))
    if not found:
        logger.warning(
            "resume_from_checkpoint='latest': %r has no checkpoint step_N yet, so the run begins anew", args.output_dir
        )
    return found[-1] if found else None


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint; raises ValueError where the checkpoint is not complete."""
    file = folder / RECORD
    if not file.is_file():
        raise ValueError(f"checkpoint {str(folder)!r} is not complete: it has no {RECORD}")
    try:
        record = json.loads(file.read_text())
        lacking = sorted(RECORD_KEYS - record.keys())
        sizes = {} if lacking else {folder / name: size for name, size in record["files"].items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"checkpoint {str(folder)!r} is not complete: {RECORD} is cut short or damaged") from error
    if lacking:
        raise ValueError(f"checkpoint {str(folder)!r} is not complete: {RECORD} lacks {', '.join(lacking)}")
    for path, size in sizes.items():
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(
                f"checkpoint {str(folder)!r} is not complete: {path.relative_to(folder)} is missing or cut short"
            )
    return record


def load_checkpoint(
    folder: Path, args: LoopArguments, accelerator: Accelerator, made_with: dict[str, str]
) -> dict[str, Any]:
    """Restores a run and returns its progress; raises ValueError where it was made with something else."""
    record = read_checkpoint(folder)
    before, now = record["arguments"], _fixed_arguments(args, accelerator, made_with)
    differ = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if changed := {name: (before.get(name), now.get(name)) for name in differ}:
        raise ValueError(
            f"checkpoint {str(folder)!r} was written with other arguments or contents (before, now): {changed}; "
            "resume with the same, or begin anew in another output_dir"
        )
    try:
        accelerator.load_state(str(folder))
    except Exception as error:  # torch, pickle and safetensors raise many types
        raise ValueError(f"checkpoint {str(folder)!r} cannot be loaded: {error}") from error
    progress = {name: record[name] for name in ("step", "best", "history")}
    if progress["best"] and not has_model(Path(args.output_dir)):
        logger.warning(
            "%s has no best model of the earlier steps: the best is chosen among the steps to come", args.output_dir
        )
        progress["best"] = None
    return progress


def _fixed_arguments(args: LoopArguments, accelerator: Accelerator, made_with: dict[str, str]) -> dict[str, Any]:
    """What the numbers of a run depend on: a run can be resumed only with the same."""
    may_change = names_with(args, MAY_CHANGE)
    fixed = {name: value for name, value in asdict(args).items() if name not in may_change}
    # accelerate names the files of a checkpoint otherwise with several processes than with one.
    return {**fixed, "num_processes": accelerator.num_processes, **made_with}


def has_model(folder: Path) -> bool:
    """Whether a folder holds a model's config and weights."""
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


def save_best(task: Task, model: torch.nn.Module, output_dir: Path, measured: dict[str, Any]) -> None:
    """Writes the best model so far; where the disk is full or the run is killed meanwhile, the previous one stays."""
    partial = output_dir / f"best{PARTIAL}"
    _save_model(task, model, partial, {**measured, "chosen": True})
    (partial / COMPLETE).touch()
    publish(partial, output_dir)


def publish(partial: Path, output_dir: Path) -> None:
    """Moves a complete model to its place; also finishes a move that was killed half-way."""
    for file in partial.iterdir():
        if file.name != COMPLETE:
            file.replace(output_dir / file.name)
    shutil.rmtree(partial)


def save_last(task: Task, model: torch.nn.Module, output_dir: Path, measured: dict[str, Any]) -> None:
    """Writes the model of the last step, whole or not at all."""
    partial = output_dir / f"last{PARTIAL}"
    _save_model(task, model, partial, {**measured, "chosen": False})
    _put_in_place(partial, output_dir / "last")


def _save_model(task: Task, model: torch.nn.Module, partial: Path, results: dict[str, Any]) -> None:
    """Writes a model to a partial folder, and removes it again where that fails."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        task.save(model, partial, results)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RuntimeError(
            f"the {partial.stem} model of step {results['step']} could not be written ({error}); checkpoints are intact"
        ) from error
