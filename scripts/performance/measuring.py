"""What the scripts of this folder share: arguments, a classifier with images for it, and a clock."""

import time
from dataclasses import dataclass

import torch
from transformers import AutoImageProcessor

from salvage_hf import MaskedClassifier
from salvage_hf.arguments import arg, check_arguments
from salvage_hf.data.images import ProcessedImages
from salvage_hf.data.loading import load_images

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class MeasurementArguments:
    """Arguments of every measurement that explains images of a folder."""

    model_name_or_path: str = arg("", "The frozen classifier: a name on the Hub or a folder.")
    validation_dir: str = arg("", "A folder of images, one sub-folder per class.")
    output_dir: str = arg("outputs/performance", "The folder for results.json.")

    def __post_init__(self):
        check_arguments(self)
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is needed: the classifier")
        if not self.validation_dir:
            raise ValueError("validation_dir is needed: a folder of images, one sub-folder per class")


def now() -> float:
    """The time in seconds; waits for the GPU first, because its calls return before their work is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def load(args: MeasurementArguments) -> tuple[MaskedClassifier, ProcessedImages]:
    """The classifier, on the GPU where there is one, and all images, processed for it."""
    v = MaskedClassifier.from_pretrained(args.model_name_or_path).to(DEVICE)
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    return v, ProcessedImages(load_images(folder=args.validation_dir), processor, v.config)


def choose(images: ProcessedImages, number: int, seed: int) -> torch.Tensor:
    """The indices of some images, chosen at random: int64 [number]."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:number]


def batch_of(images: ProcessedImages, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels [B, C, H, W] and labels int64 [B] of the images at these indices."""
    items = images.__getitems__(indices.tolist())
    pixel_values = torch.stack([item["pixel_values"] for item in items])
    return pixel_values.to(DEVICE), torch.tensor([item["labels"] for item in items], device=DEVICE)
