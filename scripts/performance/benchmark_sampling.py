"""How much the gradient of a training step varies with the subsets drawn, for several ways of drawing them.

For fixed images and a fixed explainer, the gradient of the head's parameters is computed for many independent draws of
the subsets. The script prints its total variance (summed over parameters), as a multiple of that of the first way in
the family. All ways ask the classifier equally often, so half the variance is worth twice the subsets. The ways of a
family estimate the same gradient; families differ in the distribution of the subsets, and so in the gradient.
"""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from measuring import DEVICE, MeasurementArguments, batch_of, choose, load
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from salvage_hf import SalvageModel, subsets
from salvage_hf.arguments import AtLeast, arg
from salvage_hf.attribution_methods.trained import load_explainer
from salvage_hf.files import check_writable, write_json
from salvage_hf.objectives import OBJECTIVES, SubsetValues
from salvage_hf.subsets import LAWS
from salvage_hf.targets import target_attributions


@dataclass
class SamplingBenchmarkArguments(MeasurementArguments):
    """Arguments of scripts/performance/benchmark_sampling.py."""

    explainer: str | None = arg(
        None, "The Salvage model at whose parameters gradients are computed; a new one when not given."
    )
    num_images: Annotated[int, AtLeast(1)] = arg(16, "Images per step.")
    num_subsets: Annotated[int, AtLeast(2)] = arg(8, "Subsets per image, an even number: some ways draw pairs.")
    draws: Annotated[int, AtLeast(2)] = arg(32, "Independent draws of the whole step.")
    seed: int = arg(0, "The seed of everything random.")
    output_dir: str = arg("outputs/benchmark_sampling", "The folder for results.json.")

    def __post_init__(self):
        super().__post_init__()
        if self.num_subsets % 2:
            raise ValueError(f"num_subsets must be even, for the ways that draw pairs, got {self.num_subsets}")


# Ways of drawing: scores [B, N], M and a torch.Generator -> bool [B, M, N].


def independent(scores: torch.Tensor, num_subsets: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform subsets; each draws its own size."""
    return subsets.uniform(len(scores), num_subsets, scores.shape[1], generator=generator)


def shared(scores: torch.Tensor, num_subsets: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform subsets; slot m has one size for all images."""
    sizes = subsets.uniform_sizes(1, num_subsets, scores.shape[1], generator=generator)[0]
    return subsets.uniform(len(scores), num_subsets, scores.shape[1], generator=generator, sizes=sizes)


def stratified_per_image(scores: torch.Tensor, num_subsets: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform subsets; every image has sizes of its own, stratified over the slots."""
    sizes = subsets.stratified_sizes(len(scores), num_subsets, scores.shape[1], generator=generator)
    return subsets.uniform(len(scores), num_subsets, scores.shape[1], generator=generator, sizes=sizes)


def stratified_paired(scores: torch.Tensor, num_subsets: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform subsets in pairs: the first s patches of an order, and its last N + 1 - s.

    The second is the complement of the first plus one patch, so that its size is uniform on 1..N too.
    """
    sizes = subsets.stratified_sizes(1, num_subsets // 2, scores.shape[1], generator=generator)[0][:, None]
    orders = subsets.weighted_orders(torch.ones_like(scores), num_subsets // 2, generator=generator)
    places = subsets.positions(orders)
    return torch.cat([places < sizes, places >= sizes - 1], dim=1)


def complement(scores: torch.Tensor, num_subsets: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform subsets and their complements, whose sizes are 0..N-1: together not the uniform law."""
    batch_size, num_patches = scores.shape
    sizes = subsets.stratified_sizes(1, num_subsets // 2, num_patches, generator=generator)[0]
    half = subsets.uniform(batch_size, num_subsets // 2, num_patches, generator=generator, sizes=sizes)
    return torch.cat([half, ~half], dim=1)


def guided_shared(scores: torch.Tensor, num_subsets: int, generator: torch.Generator) -> torch.Tensor:
    """Algorithm 3; slot m has one size for all images."""
    sizes = subsets.uniform_sizes(1, num_subsets, scores.shape[1], generator=generator)[0]
    return subsets.attribution_guided(scores, num_subsets, generator=generator, sizes=sizes)


def as_in_training(law: str) -> Callable[..., torch.Tensor]:
    """The way in which training draws from a law: slot m has one size for all images, stratified over the slots."""

    def draw(scores: torch.Tensor, num_subsets: int, generator: torch.Generator) -> torch.Tensor:
        sizes = LAWS[law].shared_sizes(num_subsets, scores.shape[1], generator)
        return LAWS[law].draw(scores, num_subsets, generator, sizes)

    return draw


#: Families of ways that estimate the same gradient; the variance of the first way is the family's unit.
FAMILIES: tuple[dict[str, Callable[..., torch.Tensor]], ...] = (
    {
        "independent": independent,
        "shared": shared,
        "stratified": as_in_training("uniform"),
        "stratified_per_image": stratified_per_image,
        "stratified_paired": stratified_paired,
    },
    {"complement": complement},
    {"guided_shared": guided_shared, "guided_stratified": as_in_training("guided")},
)


def main() -> None:
    args = HfArgumentParser(SamplingBenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    v, images = load(args)
    torch.manual_seed(args.seed)
    model = load_explainer(args.explainer or SalvageModel.from_classifier(v.classifier), "salvage", v)
    model.backbone.requires_grad_(False)
    pixel_values, targets = batch_of(images, choose(images, args.num_images, args.seed))
    with torch.no_grad():
        embedded, features = v.embed(pixel_values), model.patch_features(pixel_values)

    def gradient(draw: Callable[..., torch.Tensor], number: int) -> torch.Tensor:
        """The gradient of the head's parameters, one vector, for one draw of the subsets."""
        generator = torch.Generator(device=DEVICE).manual_seed(args.seed * 100_000 + number)
        output = model(patch_features=features)
        drawn = draw(target_attributions(output.attributions.detach(), targets), args.num_subsets, generator)
        with torch.no_grad():
            values = SubsetValues(v.logits_of(embedded, drawn))
        loss = OBJECTIVES["salvage"].loss(model, output, drawn, values).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.head.parameters()))])

    variances = {}
    for family in FAMILIES:
        unit = None
        for name, draw in family.items():
            variances[name] = total_variance(functools.partial(gradient, draw), args.draws, name)
            unit = unit or variances[name]
            print(f"{name:22} {variances[name] / unit:6.3f}   ({variances[name]:.3e})", flush=True)
    write_json(Path(args.output_dir, "results.json"), {"arguments": asdict(args), "variance": variances})


def total_variance(sample: Callable[[int], torch.Tensor], num_samples: int, title: str) -> float:
    """The variance of a vector, summed over its entries: an unbiased estimate from sample(0), sample(1), ..."""
    mean, squares = torch.zeros(()), 0.0
    for number in tqdm(range(num_samples), desc=title, leave=False):
        vector = sample(number).double()
        mean, squares = mean + vector / num_samples, squares + vector.square().sum().item() / num_samples
    return (squares - mean.square().sum().item()) * num_samples / (num_samples - 1)


if __name__ == "__main__":
    main()
