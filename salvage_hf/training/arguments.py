"""Arguments of every training script, named as in transformers' no-trainer examples."""

from dataclasses import dataclass
from typing import Annotated

from ..arguments import MAY_CHANGE, NOT_IN_RECIPE, PRIVATE, AtLeast, ImageArguments, arg


@dataclass
class LoopArguments(ImageArguments):
    """What the loop needs to know: images, batches, optimizer, checkpoints, trackers, Hub."""

    output_dir: Annotated[str, MAY_CHANGE, PRIVATE] = arg(
        "outputs", "The folder for the best model, the last one (last/) and checkpoints (step_N/)."
    )
    train_dir: Annotated[str | None, PRIVATE] = arg(None, "A folder of training images, one sub-folder per class.")
    train_split_name: str = arg("train", "The split of the data set that trains.")
    train_val_split: float = arg(
        0.05,
        "The share of the training images that validates, where there is neither --validation_dir nor a validation "
        "split.",
    )
    max_train_samples: Annotated[int | None, AtLeast(1)] = arg(
        None, "Use only this many of the training images, chosen at random."
    )
    per_device_train_batch_size: Annotated[int, AtLeast(1)] = arg(64, "Images per batch and process.")
    per_device_eval_batch_size: Annotated[int, AtLeast(1), MAY_CHANGE] = arg(
        64, "Images per validation batch and process."
    )
    gradient_accumulation_steps: Annotated[int, AtLeast(1)] = arg(1, "Batches per optimizer step.")
    learning_rate: float | None = arg(1e-5, "The highest learning rate of AdamW.")
    weight_decay: float = arg(1e-5, "The weight decay of AdamW.")
    num_train_epochs: Annotated[int, AtLeast(1), MAY_CHANGE] = arg(50, "Passes over the training images.")
    max_train_steps: Annotated[int | None, AtLeast(1), MAY_CHANGE] = arg(None, "Optimizer steps, in place of epochs.")
    lr_scheduler_type: str = arg("linear", "The schedule of the learning rate, as in transformers.get_scheduler.")
    num_warmup_steps: int = arg(0, "Optimizer steps in which the learning rate rises from 0.")
    max_grad_norm: float = arg(1.0, "Gradients with a larger norm are scaled down to it.")
    validation_steps: Annotated[int, AtLeast(1), MAY_CHANGE] = arg(500, "Optimizer steps between validations.")
    checkpointing_steps: Annotated[int | str | None, AtLeast(1), MAY_CHANGE] = arg(
        500, "Optimizer steps between checkpoints, or 'epoch'; the last step always writes one."
    )
    checkpoints_total_limit: Annotated[int, AtLeast(1), MAY_CHANGE] = arg(2, "How many checkpoints are kept.")
    resume_from_checkpoint: Annotated[str | None, MAY_CHANGE, PRIVATE, NOT_IN_RECIPE] = arg(
        None,
        "Continue from this checkpoint folder, or from the 'latest' one in --output_dir, where there is one: otherwise "
        "the run begins anew.",
    )
    auto_find_batch_size: Annotated[bool, MAY_CHANGE] = arg(
        False,
        "If memory runs out, start again with smaller batches, and accumulate more of them, so that an optimizer step "
        "sees as many images as before.",
    )
    dataloader_num_workers: Annotated[int, MAY_CHANGE] = arg(0, "Processes that load images.")
    cache_images: Annotated[bool, MAY_CHANGE] = arg(
        False,
        "Read and process each image once and keep it, as 8 bits per channel: on the GPU where all take at most a "
        "quarter of its free memory, else in half of the memory available.",
    )
    seed: int = arg(0, "The seed of everything random.")
    with_tracking: Annotated[bool, MAY_CHANGE] = arg(False, "Log to experiment trackers.")
    report_to: Annotated[str, MAY_CHANGE] = arg("all", "Which trackers to log to, with --with_tracking.")
    push_to_hub: Annotated[bool, MAY_CHANGE] = arg(False, "Upload the best model to the Hub.")
    hub_model_id: Annotated[str | None, MAY_CHANGE] = arg(
        None, "The repository to upload to; named like --output_dir when not given."
    )
    private: Annotated[bool, MAY_CHANGE] = arg(False, "Make the repository a private one, where there is none yet.")
    hub_token: Annotated[str | None, MAY_CHANGE, PRIVATE, NOT_IN_RECIPE] = arg(None, "The token for the upload.")

    def __post_init__(self):
        steps = self.checkpointing_steps
        if isinstance(steps, str) and steps != "epoch":
            if not steps.isdigit():
                raise ValueError(f"checkpointing_steps={steps!r} is neither a number of steps nor 'epoch'")
            self.checkpointing_steps = int(steps)
        super().__post_init__()
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"train_val_split must lie between 0 and 1, got {self.train_val_split}")
