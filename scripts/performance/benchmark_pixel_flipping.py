"""Seconds to score maps by deletion: `rank_scores` (insertion and deletion) compared with Quantus' PixelFlipping.

Needs `pip install quantus`. Quantus takes maps of pixels, blackens pixels and reads one curve. It counts every channel
of a pixel as a feature, and its steps must divide the number of features: the finest step here is one patch in one
channel, so that a curve takes three dense forwards per patch. `rank_scores` computes both curves with two forwards per
patch, and drops tokens.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import quantus
import torch
from measuring import DEVICE, MeasurementArguments, batch_of, choose, load, now
from transformers import HfArgumentParser

from salvage_hf.arguments import AtLeast, arg
from salvage_hf.faithfulness import rank_scores
from salvage_hf.files import check_writable, write_json
from salvage_hf.localization import upsample


@dataclass
class FlippingBenchmarkArguments(MeasurementArguments):
    """Arguments of scripts/performance/benchmark_pixel_flipping.py."""

    num_images: Annotated[int, AtLeast(1)] = arg(16, "Images per round, one batch.")
    rounds: Annotated[int, AtLeast(1)] = arg(3, "Rounds, in each of which both score the same images.")
    output_dir: str = arg("outputs/benchmark_pixel_flipping", "The folder for results.json.")


class Logits(torch.nn.Module):
    """A classifier in the form that Quantus takes: pixels to logits."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values):
        return self.classifier(pixel_values).logits


def main() -> None:
    args = HfArgumentParser(FlippingBenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    v, images = load(args)
    chosen = choose(images, (args.rounds + 1) * args.num_images, seed=0)
    flipping = quantus.PixelFlipping(
        features_in_step=v.patch_size**2, normalise=False, abs=False, disable_warnings=True
    )
    model = Logits(v.classifier).eval()
    seconds: dict[str, list[float]] = {"salvage_hf": [], "quantus": []}
    for number, part in enumerate(chosen.split(args.num_images)):
        pixel_values, targets = batch_of(images, part)
        attributions = torch.rand(len(part), v.num_patches, generator=torch.Generator().manual_seed(number))
        on_pixels = upsample(attributions, v.grid_size, tuple(pixel_values.shape[-2:]), mode="nearest")[:, None]
        arrays = [tensor.cpu().numpy() for tensor in (pixel_values, targets, on_pixels)]
        start = now()
        rank_scores(v, pixel_values, attributions.to(DEVICE), targets)
        between = now()
        curves = flipping(model, *arrays, batch_size=len(part), device=str(DEVICE))
        end = now()
        if number:  # the first round warms up
            seconds["salvage_hf"].append(between - start)
            seconds["quantus"].append(end - between)
    own, other = (statistics.median(measured) for measured in seconds.values())
    print(
        f"{args.num_images} images of {v.num_patches} patches: salvage_hf {own:.2f} s for both curves, Quantus "
        f"{other:.2f} s for one of {len(curves[0])} steps ({other / own:.2f} times)"
    )
    write_json(Path(args.output_dir, "results.json"), seconds)


if __name__ == "__main__":
    main()
