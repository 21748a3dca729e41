"""What a run does before its first step: accelerator, folders, and a batch size that fits into memory."""

import atexit
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, find_executable_batch_size, set_seed

from ..files import locked
from ..hub.publishing import create_repository, repository_name
from ..logs import show_log
from .arguments import LoopArguments
from .checkpoints import checkpoint_to_resume, clean_up, read_checkpoint

logger = logging.getLogger(__name__)

#: The folder in output_dir for trackers that write files.
TRACKER_LOGS = "logs"

#: How long a process waits for the others before it fails: longer than the first one takes to read all images, or to
#: upload a model, while they wait.
PROCESS_TIMEOUT = timedelta(hours=1)


def make_accelerator(args: LoopArguments) -> Accelerator:
    """The accelerator of a run; device, precision and processes come from `accelerate launch`."""
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,  # otherwise it is stepped once per process
        log_with=args.report_to if args.with_tracking else None,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir) / TRACKER_LOGS)),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed, non_blocking=True),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)],
    )
    # At exit, and not by `end_training`, because another run may follow in the same processes.
    atexit.register(accelerator.state.destroy_process_group)
    show_log(accelerator.is_main_process)
    set_seed(args.seed)
    return accelerator


@contextmanager
def output_folder(args: LoopArguments, accelerator: Accelerator) -> Iterator[None]:
    """The output folder of a run, which no other process writes to: without what a killed run left half-written.

    Raises:
        ValueError: in all processes, where another run writes to the folder, or it is not writable.
        RuntimeError: where another process of the run has not answered for `PROCESS_TIMEOUT`.
    """
    with locked(args.output_dir, "training"):
        if accelerator.is_main_process:
            clean_up(Path(args.output_dir))
            if args.push_to_hub:
                name = repository_name(args.hub_model_id, args.output_dir)
                create_repository(name, args.hub_token, private=args.private)
        try:
            yield
        except RuntimeError as error:
            if "Timed out waiting" not in str(error):  # the words of torch's process group
                raise
            raise RuntimeError(
                f"another process of this run has not answered for {PROCESS_TIMEOUT.total_seconds():g} seconds: it was "
                "stopped or hangs; end all processes, and resume with --resume_from_checkpoint latest"
            ) from error


def with_found_batch_size(train: Callable[[LoopArguments], dict[str, Any]], args: LoopArguments) -> dict[str, Any]:
    """Calls a training function, with --auto_find_batch_size by accelerate's own finder.

    Smaller batch sizes divide the requested one, so that accumulation makes up for them exactly. The run starts again.
    """
    if not args.auto_find_batch_size:
        return train(args)
    largest = first = args.per_device_train_batch_size
    if folder := checkpoint_to_resume(args):  # start with the batch size that was found before
        first = read_checkpoint(folder)["arguments"]["per_device_train_batch_size"]
        first = first if largest % first == 0 else largest
    else:  # 'latest' would find the checkpoints of the first attempt in the second one
        args = replace(args, resume_from_checkpoint=None)
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
        return train(fitting)

    return find_executable_batch_size(attempt, first, lambda: next(smaller))()
