"""What a run does before its first step: accelerator, folders, and a batch size that fits into memory."""

import atexit
import functools
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import ProjectConfiguration, find_executable_batch_size, set_seed

from ..files import check_writable
from ..hub.publishing import create_repository, repository_name
from .arguments import LoopArguments
from .checkpoints import BEST_PARTIAL, COMPLETE, publish, read_checkpoint

logger = logging.getLogger(__name__)

#: The folder in output_dir for trackers that write files.
TRACKER_LOGS = "logs"


def make_accelerator(args: LoopArguments) -> Accelerator:
    """The accelerator of a run; device, precision and processes come from `accelerate launch`."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to if args.with_tracking else None,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir) / TRACKER_LOGS)),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed, non_blocking=True),
    )
    # At exit, and not by `end_training`, because another run may follow in the same processes.
    atexit.register(accelerator.state.destroy_process_group)
    logging.getLogger("salvage_hf").setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    set_seed(args.seed)
    check_writable(args.output_dir)
    if accelerator.is_main_process:
        _clean_up(Path(args.output_dir))
        if args.push_to_hub:
            create_repository(repository_name(args.hub_model_id, args.output_dir), args.hub_token)
    return accelerator


def _clean_up(output_dir: Path) -> None:
    """Cleans up after a run that was killed while it wrote: finishes a complete best model, removes the rest."""
    best = output_dir / BEST_PARTIAL
    if (best / COMPLETE).exists():
        publish(best, output_dir)
    for folder in (*output_dir.glob("step_*.partial"), best):
        shutil.rmtree(folder, ignore_errors=True)


def with_found_batch_size(train: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Decorator that gives a training function --auto_find_batch_size, by accelerate's own finder.

    Smaller batch sizes divide the requested one, so that accumulation makes up for them exactly. The run starts again.
    """

    @functools.wraps(train)
    def run(args: LoopArguments, **options: Any) -> dict[str, Any]:
        if not args.auto_find_batch_size:
            return train(args, **options)
        largest = first = args.per_device_train_batch_size
        if args.resume_from_checkpoint:  # start with the batch size that was found before
            first = read_checkpoint(args)[1]["arguments"]["per_device_train_batch_size"]
            first = first if largest % first == 0 else largest
        smaller = iter([size for size in range(first - 1, 0, -1) if largest % size == 0] + [0])

        def attempt(batch_size: int) -> dict[str, Any]:
            if batch_size < largest:
                logger.warning("Memory is short: per_device_train_batch_size=%d", batch_size)
            fitting = replace(
                args,
                per_device_train_batch_size=batch_size,
                per_device_eval_batch_size=min(batch_size, args.per_device_eval_batch_size),
                gradient_accumulation_steps=args.gradient_accumulation_steps * (largest // batch_size),
            )
            return train(fitting, **options)

        return find_executable_batch_size(attempt, first, lambda: next(smaller))()

    return run
