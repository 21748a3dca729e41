"""What a training run learns: the interface between tasks and the loop."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..data.images import ProcessedImages


class Task(ABC):
    """What is trained, on which images, and by which loss.

    To measure the speed of a step's parts, override them in a subclass.

    Attributes:
        model: the model; its parameters that require gradients are trained.
        train_images, eval_images: the training and the validation images.
        best_metric: the validation score, higher is better, that selects the best model.
        command: the command of `salvage` that trains it, for the run's recipe.
    """

    model: torch.nn.Module
    train_images: ProcessedImages
    eval_images: ProcessedImages
    best_metric: str
    command: str

    @abstractmethod
    def made_with(self) -> dict[str, str]:
        """Digests of the contents, beside the arguments, that the numbers of a run depend on.

        A checkpoint keeps them, and a run with others is not resumed. Called once, before the first step.
        """

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        """What is minimised: a scalar, the mean over the images of a batch.

        Args:
            model: the model as accelerate has prepared it.
            batch: items of `train_images`, stacked.
            step: the number of the batch, counted from 0 over the whole run.
        """

    @abstractmethod
    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Scores on the validation images, the same in all processes."""

    @abstractmethod
    def save(self, model: torch.nn.Module, folder: Path, results: dict[str, Any]) -> None:
        """Writes the model, with all that its users need; called in the main process alone.

        Args:
            model: the model without accelerate's wrapper.
            folder: where to write it.
            results: what was measured at its step; "chosen" says whether this selected the model.
        """

    def describe(self, folder: Path, results: dict[str, Any]) -> None:  # noqa: B027  # a task need not do it
        """Writes what readers of the best model want, when the run is finished, before it is uploaded.

        Called in all processes.

        Args:
            folder: the folder of the best model.
            results: what was measured at its step.
        """

    def why_not_finite(self, images: ProcessedImages, indices: Iterable[int]) -> str:
        """What, other than the learning rate, makes the loss of some images NaN or infinite; "" where nothing does."""
        return ""
