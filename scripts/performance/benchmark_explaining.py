"""Seconds to explain one image: Salvage compared with methods that ask the classifier many times, in one run.

Salvage explains all classes by one forward of the explainer; the other methods explain the predicted class. Methods
that sample may ask the classifier `--budget` times, by default as often as RISE in the paper. captum's methods work on
pixels, as their users call them. SVARM, shapiq's methods and the bare masked forwards ask v(S), which drops the tokens
of hidden patches.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import shapiq
import torch
from captum.attr import FeatureAblation, IntegratedGradients, KernelShap, ShapleyValueSampling
from measuring import DEVICE, MeasurementArguments, choose, load, now
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from salvage_hf import MaskedClassifier, attribution_methods, subsets
from salvage_hf.arguments import AtLeast, arg
from salvage_hf.attribution_methods.trained import load_explainer
from salvage_hf.data.images import ProcessedImages
from salvage_hf.files import check_writable, write_json
from salvage_hf.masking import value_at
from salvage_hf.targets import activation, predicted_targets, target_probability

#: (pixel_values [1, C, H, W], target int64 [1]) -> a result that is discarded.
Explain = Callable[[torch.Tensor, torch.Tensor], Any]

SALVAGE = "Salvage, all classes"


@dataclass
class ExplainingBenchmarkArguments(MeasurementArguments):
    """Arguments of scripts/performance/benchmark_explaining.py."""

    explainer: str = arg("", "The Salvage model: a name on the Hub or a folder.")
    budget: Annotated[int, AtLeast(2)] = arg(2000, "How often a sampling method asks the classifier per image.")
    rounds: Annotated[int, AtLeast(1)] = arg(3, "Number of images, each explained by every method in turn.")
    seed: int = arg(0, "The seed of everything random.")
    output_dir: str = arg("outputs/benchmark_explaining", "The folder for results.json.")

    def __post_init__(self):
        super().__post_init__()
        if not self.explainer:
            raise ValueError("explainer is needed: the Salvage model")


def on_tokens(args: ExplainingBenchmarkArguments, v: MaskedClassifier) -> dict[str, Explain]:
    """Salvage, and the methods that ask v(S)."""
    explainer = load_explainer(args.explainer, "salvage", v)

    def salvage(pixel_values, target):
        with torch.inference_mode():
            explainer(pixel_values)

    def masked_forwards(pixel_values, target):
        generator = torch.Generator(device=DEVICE).manual_seed(args.seed)
        value_at(v, pixel_values)(subsets.uniform(1, args.budget, v.num_patches, generator=generator))

    def by_shapiq(approximator: type) -> Explain:
        def explain(pixel_values, target):
            value = value_at(v, pixel_values)

            def game(coalitions: np.ndarray) -> np.ndarray:
                visible = torch.from_numpy(np.asarray(coalitions, dtype=bool))[None].to(DEVICE)
                return target_probability(value(visible), target)[0].cpu().numpy()

            approximator(n=v.num_patches, random_state=args.seed).approximate(args.budget, game)

        return explain

    return {
        SALVAGE: salvage,
        f"{args.budget} masked forwards (RISE's cost)": masked_forwards,
        "SVARM of this library": attribution_methods.load("svarm", v, budget=args.budget),
        "shapiq SVARM": by_shapiq(shapiq.SVARM),
        "shapiq KernelSHAP": by_shapiq(shapiq.KernelSHAP),
    }


def on_pixels(args: ExplainingBenchmarkArguments, v: MaskedClassifier) -> dict[str, Explain]:
    """captum's methods; those that remove features remove patches, as v(S) does."""
    patches = torch.arange(v.num_patches, device=DEVICE).view(1, 1, *v.grid_size)
    patches = patches.repeat_interleave(v.patch_size, -2).repeat_interleave(v.patch_size, -1)  # [1, 1, H, W]
    removing = {"feature_mask": patches, "perturbations_per_eval": 50}

    def predict(pixel_values):
        return activation(v.classifier(pixel_values).logits)

    def kernel_shap(pixel_values, target):
        KernelShap(predict).attribute(pixel_values, target=target, n_samples=args.budget, **removing)

    def shapley_value_sampling(pixel_values, target):
        orders = max(1, args.budget // v.num_patches)
        ShapleyValueSampling(predict).attribute(pixel_values, target=target, n_samples=orders, **removing)

    def feature_ablation(pixel_values, target):
        FeatureAblation(predict).attribute(pixel_values, target=target, **removing)

    def integrated_gradients(pixel_values, target):
        IntegratedGradients(predict).attribute(pixel_values, target=target, n_steps=50, internal_batch_size=50)

    return {
        "captum KernelShap": kernel_shap,
        "captum ShapleyValueSampling": shapley_value_sampling,
        f"captum FeatureAblation ({v.num_patches} calls)": feature_ablation,
        "captum IntegratedGradients (50 steps)": integrated_gradients,
    }


def measure(
    methods: dict[str, Explain], v: MaskedClassifier, images: ProcessedImages, indices: list[int]
) -> dict[str, list[float]]:
    """Seconds of every method for every image, apart from the first: it only warms up Salvage, the one fast method."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number, index in enumerate(tqdm(indices, desc="Images")):
        pixel_values = images[index]["pixel_values"][None].to(DEVICE)
        target = predicted_targets(v.classifier(pixel_values).logits.detach())
        if number == 0:
            methods[SALVAGE](pixel_values, target)
            continue
        for name, method in methods.items():
            start = now()
            method(pixel_values, target)
            seconds[name].append(now() - start)
    return seconds


def main() -> None:
    args = HfArgumentParser(ExplainingBenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    v, images = load(args)
    chosen = choose(images, args.rounds + 1, args.seed)
    seconds = measure(on_tokens(args, v) | on_pixels(args, v), v, images, chosen.tolist())
    own = statistics.median(seconds[SALVAGE])
    for name, measured in seconds.items():
        median = statistics.median(measured)
        print(f"{name:40} {median:9.3f} s  {median / own:9.1f} x")
    write_json(Path(args.output_dir, "results.json"), seconds)


if __name__ == "__main__":
    main()
