"""Seconds to score maps by deletion: `rank_scores` (insertion and deletion) beside Quantus' PixelFlipping.

Needs `pip install quantus`. Quantus takes maps of pixels, hides with black, and reads one curve; every channel of a
pixel is a feature of its own there, so that its finest step that divides the image is a patch in one channel, and a
curve takes three dense forwards a patch. `rank_scores` reads both with two forwards a patch, and drops tokens.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import quantus
import torch
from transformers import AutoImageProcessor, HfArgumentParser

from salvage_hf import MaskedClassifier
from salvage_hf.data import ProcessedImages, load_images
from salvage_hf.faithfulness import rank_scores
from salvage_hf.localization import upsample
from salvage_hf.training import arg, check_writable


@dataclass
class FlippingBenchmarkArguments:
    """Arguments of scripts/benchmark_pixel_flipping.py."""

    model_name_or_path: str = arg("", "The classifier: a name on the Hub or a folder.")
    validation_dir: str = arg("", "A folder of images, one sub-folder a class.")
    num_images: int = arg(16, "Images of a round, one batch.")
    rounds: int = arg(3, "Rounds, each with both.")
    output_dir: str = arg("outputs/benchmark_pixel_flipping", "Where results.json is written.")


class Logits(torch.nn.Module):
    """A classifier as Quantus takes it: pixels to logits."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values):
        return self.classifier(pixel_values).logits


def main() -> None:
    args = HfArgumentParser(FlippingBenchmarkArguments).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    v = MaskedClassifier.from_pretrained(args.model_name_or_path).to(device)
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    images = ProcessedImages(load_images(folder=args.validation_dir), processor, v.config)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    items = images.__getitems__(chosen[: (args.rounds + 1) * args.num_images].tolist())
    flipping = quantus.PixelFlipping(
        features_in_step=v.patch_size**2, normalise=False, abs=False, disable_warnings=True
    )
    model = Logits(v.classifier).eval()
    seconds: dict[str, list[float]] = {"salvage_hf": [], "quantus": []}
    for number in range(args.rounds + 1):
        part = items[number * args.num_images : (number + 1) * args.num_images]
        pixel_values = torch.stack([item["pixel_values"] for item in part])
        targets = torch.tensor([item["labels"] for item in part])
        attributions = torch.rand(len(part), v.num_patches, generator=torch.Generator().manual_seed(number))
        on_pixels = upsample(attributions, v.grid_size, tuple(pixel_values.shape[-2:]), mode="nearest")[:, None]
        arrays = [tensor.numpy() for tensor in (pixel_values, targets, on_pixels)]
        start = time.perf_counter()
        rank_scores(v, pixel_values.to(device), attributions.to(device), targets.to(device))
        between = time.perf_counter()
        curves = flipping(model, *arrays, batch_size=len(part), device=device)
        end = time.perf_counter()
        if number:  # the first round warms up
            seconds["salvage_hf"].append(between - start)
            seconds["quantus"].append(end - between)
    own, other = (statistics.median(measured) for measured in seconds.values())
    print(
        f"{args.num_images} images of {v.num_patches} patches: salvage_hf {own:.2f} s for both curves, Quantus "
        f"{other:.2f} s for one of {len(curves[0])} steps ({other / own:.2f} times)"
    )
    Path(args.output_dir, "results.json").write_text(json.dumps(seconds, indent=1) + "\n")


if __name__ == "__main__":
    main()
