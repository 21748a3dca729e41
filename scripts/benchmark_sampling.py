"""How much the gradient of a training step varies with the subsets drawn, one way of drawing beside the other.

For fixed images and a fixed explainer, the gradient of the head's parameters is taken for many independent draws of the
subsets; printed is its total variance (summed over parameters) in units of that of independent sizes for every image.
Every way spends the same number of classifier forwards, so the ratio is one of forwards at equal variance. Ways that
estimate the gradient of another distribution of subsets stand in a table of their own.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel, HfArgumentParser

from salvage_hf import MaskedClassifier, SalvageModel, subsets
from salvage_hf.data import ProcessedImages, load_images
from salvage_hf.masking import target_attributions
from salvage_hf.objectives import jensen_shannon
from salvage_hf.training import arg, check_writable


@dataclass
class SamplingBenchmarkArguments:
    """Arguments of scripts/benchmark_sampling.py."""

    model_name_or_path: str = arg("", "The frozen classifier: a name on the Hub or a folder.")
    explainer: str | None = arg(None, "The Salvage model at whose parameters gradients are taken; else a fresh one.")
    validation_dir: str = arg("", "A folder of images, one sub-folder a class.")
    num_images: int = arg(16, "Images of the step.")
    num_subsets: int = arg(8, "Subsets an image.")
    draws: int = arg(32, "Independent draws of the whole step.")
    seed: int = arg(0, "Seed of everything random.")
    output_dir: str = arg("outputs/benchmark_sampling", "Where results.json is written.")


def independent(scores, num_subsets, generator):
    return subsets.uniform(*_shape(scores, num_subsets), generator=generator)


def shared(scores, num_subsets, generator):
    sizes = subsets.uniform_sizes(1, num_subsets, scores.shape[1], generator=generator)[0]
    return subsets.uniform(*_shape(scores, num_subsets), generator=generator, sizes=sizes)


def stratified(scores, num_subsets, generator):
    sizes = subsets.stratified_sizes(1, num_subsets, scores.shape[1], generator=generator)[0]
    return subsets.uniform(*_shape(scores, num_subsets), generator=generator, sizes=sizes)


def stratified_per_image(scores, num_subsets, generator):
    sizes = subsets.stratified_sizes(len(scores), num_subsets, scores.shape[1], generator=generator)
    return subsets.uniform(*_shape(scores, num_subsets), generator=generator, sizes=sizes)


def stratified_paired(scores, num_subsets, generator):
    """The first s patches of an order, and its last N + 1 - s: the complement and one patch more, of the same law."""
    sizes = subsets.stratified_sizes(1, num_subsets // 2, scores.shape[1], generator=generator)[0][:, None]
    orders = subsets.weighted_orders(torch.ones_like(scores), num_subsets // 2, generator=generator)
    places = subsets.positions(orders)
    return torch.cat([places < sizes, places >= sizes - 1], dim=1)


def complement(scores, num_subsets, generator):
    """A subset and its complement: sizes 0..N, so not the uniform law."""
    batch_size, num_patches = scores.shape
    sizes = subsets.stratified_sizes(1, num_subsets // 2, num_patches, generator=generator)[0]
    half = subsets.uniform(batch_size, num_subsets // 2, num_patches, generator=generator, sizes=sizes)
    return torch.cat([half, ~half], dim=1)


def guided_shared(scores, num_subsets, generator):
    sizes = subsets.uniform_sizes(1, num_subsets, scores.shape[1], generator=generator)[0]
    return subsets.attribution_guided(scores, num_subsets, generator=generator, sizes=sizes)


def guided_stratified(scores, num_subsets, generator):
    half = (num_subsets + 1) // 2
    sizes = [
        subsets.stratified_sizes(1, number, scores.shape[1], generator=generator)[0]
        for number in (half, num_subsets - half)
    ]
    return subsets.attribution_guided(scores, num_subsets, generator=generator, sizes=torch.cat(sizes))


def _shape(scores: torch.Tensor, num_subsets: int) -> tuple[int, int, int]:
    return len(scores), num_subsets, scores.shape[1]


#: Ways of drawing that estimate the same gradient, the first the unit.
FAMILIES: tuple[tuple[Callable, ...], ...] = (
    (independent, shared, stratified, stratified_per_image, stratified_paired),
    (complement,),
    (guided_shared, guided_stratified),
)


def main() -> None:
    args = HfArgumentParser(SamplingBenchmarkArguments).parse_args_into_dataclasses()[0]
    if args.num_subsets < 2 or args.num_subsets % 2:
        sys.exit(f"--num_subsets must be even, for the pairs; got {args.num_subsets}")
    check_writable(args.output_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    v = MaskedClassifier.from_pretrained(args.model_name_or_path).to(device)
    if args.explainer:
        model = AutoModel.from_pretrained(args.explainer, dtype=torch.float32).to(device)
    else:
        torch.manual_seed(args.seed)
        model = SalvageModel.from_classifier(v.classifier).to(device)
    model.backbone.requires_grad_(False)
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    images = ProcessedImages(load_images(folder=args.validation_dir), processor, v.config)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[: args.num_images]
    items = images.__getitems__(chosen.tolist())
    pixel_values = torch.stack([item["pixel_values"] for item in items]).to(device)
    targets = torch.tensor([item["labels"] for item in items], device=device)
    with torch.no_grad():
        embedded, features = v.embed(pixel_values), model.patch_features(pixel_values)

    results = {}
    for family in FAMILIES:
        unit = None
        for draw in family:
            results[draw.__name__] = variance = gradient_variance(args, draw, model, v, embedded, features, targets)
            unit = unit or variance
            print(f"{draw.__name__:22} {variance / unit:6.3f}   ({variance:.3e})", flush=True)
    Path(args.output_dir, "results.json").write_text(json.dumps({"arguments": vars(args), "variance": results}) + "\n")


def gradient_variance(args, draw, model, v, embedded, features, targets) -> float:
    """Total variance of the gradient over draws of the subsets."""
    parameters = list(model.head.parameters())
    mean, squares = 0, 0.0
    for index in tqdm(range(args.draws), desc=draw.__name__, leave=False):
        generator = torch.Generator(device=targets.device).manual_seed(args.seed * 100_000 + index)
        output = model(patch_features=features)
        drawn = draw(target_attributions(output.attributions.detach(), targets), args.num_subsets, generator)
        with torch.no_grad():
            target_logits = v.logits_of(embedded, drawn)
        loss = jensen_shannon(model.subset_logits(output, drawn), target_logits).mean()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()
        mean, squares = mean + gradient / args.draws, squares + gradient.square().sum().item() / args.draws
    return (squares - mean.square().sum().item()) * args.draws / (args.draws - 1)


if __name__ == "__main__":
    main()
