"""Measures how far an explainer's maps can be trusted, for their refinement (`refinement.calibrate`)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..arguments import AtLeast, ImageArguments, arg, check_arguments
from ..attribution_methods.trained import load_explainer
from ..files import locked, write_json
from ..masking import STRATEGIES, MaskedClassifier
from ..refinement import LEAST_BUDGET, calibrate
from .loading import load_labelled_images


@dataclass
class CalibrationArguments(ImageArguments):
    """Arguments of scripts/calibrate.py."""

    model_name_or_path: str = arg("", "The classifier: a name on the Hub or a folder.")
    explainer: str = arg("", "The folder of a Salvage explainer of it, whose config is changed.")
    masking: Literal[tuple(STRATEGIES)] = arg("drop", "How patches are hidden from the classifier.")  # type: ignore[valid-type]
    dataset_split: str = arg("validation", "The split of the data set on the Hub.")
    budget: Annotated[int, AtLeast(2 * LEAST_BUDGET)] = arg(256, "Forwards of the classifier per image.")
    max_eval_samples: Annotated[int, AtLeast(1)] = arg(64, "Use only this many of the images, chosen at random.")
    per_device_eval_batch_size: Annotated[int, AtLeast(1)] = arg(32, "Images per batch.")
    allow_other_classifier: bool = arg(
        False, "Go on, with a warning, where the explainer states that it was trained for another classifier."
    )

    def __post_init__(self):
        check_arguments(self)
        for name in ("model_name_or_path", "explainer"):
            if not getattr(self, name):
                raise ValueError(f"{name} is needed")
        if not Path(self.explainer).is_dir():
            raise ValueError(f"explainer={self.explainer!r} is no folder, so its config cannot be changed")


def run_calibration(args: CalibrationArguments) -> dict[str, Any]:
    """Measures an explainer's calibration on images that it was not trained on, and writes it into its config.

    Returns:
        What `refinement.calibrate` returns.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    v = MaskedClassifier.from_pretrained(args.model_name_or_path, masking=args.masking).to(device)
    explainer = load_explainer(args.explainer, "salvage", v, args.allow_other_classifier)
    data = load_labelled_images(args, args.dataset_split, v, seed=0)
    loader = DataLoader(Subset(data.images, data.chosen), batch_size=args.per_device_eval_batch_size)
    batches = (
        {name: values.to(device) for name, values in batch.items()} for batch in tqdm(loader, desc="Calibrating")
    )
    path = Path(args.explainer, "config.json")
    with locked(args.explainer, "scripts/calibrate.py"):
        calibration = calibrate(v, explainer, batches, args.budget)
        # All else in the file stays as it is: transformers would write the types of the weights in memory.
        write_json(path, {**json.loads(path.read_text()), "calibration": calibration})
    return calibration
