"""Seconds to explain one image: Salvage's one forward beside methods that ask the classifier, all in one run.

Salvage explains all classes at once; the others, the predicted class. Each sampling method gets as many calls of the
classifier as `--budget` says, RISE's in the paper. captum sees the classifier as its users call it, on pixels; shapiq
and the bare masked forwards go through v(S) with dropped tokens.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapiq
import torch
from captum.attr import FeatureAblation, IntegratedGradients, KernelShap, ShapleyValueSampling
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel, HfArgumentParser

from salvage_hf import MaskedClassifier, subsets
from salvage_hf.data import ProcessedImages, load_images
from salvage_hf.masking import predicted_targets, target_probability, value_at
from salvage_hf.training import arg, check_writable


@dataclass
class ExplainingBenchmarkArguments:
    """Arguments of scripts/benchmark_explaining.py."""

    model_name_or_path: str = arg("", "The classifier: a name on the Hub or a folder.")
    explainer: str = arg("", "The Salvage model.")
    validation_dir: str = arg("", "A folder of images, one sub-folder a class.")
    budget: int = arg(2000, "Calls of the classifier.")
    rounds: int = arg(3, "Images, each explained by every method in turn.")
    seed: int = arg(0, "Seed of everything random.")
    output_dir: str = arg("outputs/benchmark_explaining", "Where results.json is written.")


def main() -> None:
    args = HfArgumentParser(ExplainingBenchmarkArguments).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    v = MaskedClassifier.from_pretrained(args.model_name_or_path).to(device)
    explainer = AutoModel.from_pretrained(args.explainer, dtype=torch.float32).to(device).eval()
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    images = ProcessedImages(load_images(folder=args.validation_dir), processor, v.config)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[: args.rounds + 1]
    num_patches = v.num_patches
    rows, columns = v.grid_size
    segments = torch.arange(num_patches, device=device).view(1, 1, rows, columns)
    segments = segments.repeat_interleave(v.patch_size, -2).repeat_interleave(v.patch_size, -1)

    def predict(pixel_values):
        return v.classifier(pixel_values).logits.softmax(dim=-1)

    def salvage(pixel_values, target):
        with torch.inference_mode():
            explainer(pixel_values)

    def masked_forwards(pixel_values, target):
        generator = torch.Generator(device=device).manual_seed(args.seed)
        value_at(v, pixel_values)(subsets.uniform(1, args.budget, num_patches, generator=generator))

    def shapiq_kernel_shap(pixel_values, target):
        value = value_at(v, pixel_values)

        def game(coalitions: np.ndarray) -> np.ndarray:
            visible = torch.from_numpy(np.asarray(coalitions, dtype=bool))[None].to(device)
            return target_probability(value(visible), target)[0].cpu().numpy()

        shapiq.KernelSHAP(n=num_patches, random_state=args.seed).approximate(args.budget, game)

    with_mask = {"feature_mask": segments, "perturbations_per_eval": 50}
    methods = {
        "Salvage, all classes": salvage,
        f"{args.budget} masked forwards (RISE's cost)": masked_forwards,
        "shapiq KernelSHAP": shapiq_kernel_shap,
        "captum KernelShap": lambda x, t: KernelShap(predict).attribute(
            x, target=t, n_samples=args.budget, **with_mask
        ),
        "captum ShapleyValueSampling": lambda x, t: ShapleyValueSampling(predict).attribute(
            x, target=t, n_samples=max(1, args.budget // num_patches), **with_mask
        ),
        f"captum FeatureAblation ({num_patches} calls)": lambda x, t: FeatureAblation(predict).attribute(
            x, target=t, **with_mask
        ),
        "captum IntegratedGradients (50 steps)": lambda x, t: IntegratedGradients(predict).attribute(
            x, target=t, n_steps=50, internal_batch_size=50
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_index, index in enumerate(tqdm(chosen.tolist(), desc="Images")):
        pixel_values = images[index]["pixel_values"][None].to(device)
        target = predicted_targets(predict(pixel_values).detach())
        for name, method in methods.items():
            if round_index == 0 and name != "Salvage, all classes":
                continue  # the first image warms up what is fast
            start = time.perf_counter()
            method(pixel_values, target)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_index:
                seconds[name].append(time.perf_counter() - start)
    own = statistics.median(seconds["Salvage, all classes"])
    for name, measured in seconds.items():
        print(f"{name:40} {statistics.median(measured):9.3f} s  {statistics.median(measured) / own:9.1f} x")
    Path(args.output_dir, "results.json").write_text(json.dumps(seconds, indent=1) + "\n")


if __name__ == "__main__":
    main()
