"""What R-SRG costs: the estimate with a budget, compared with the paper's protocol and with independent draws.

1. Over many images: the total standard error of the mean R-SRG with a budget, compared with that of the paper's
   protocol. The latter is computed from the variance between images (from the run with a budget) and the variance of
   the protocol's draws (from two draws at every size). The same draws show what the explainer's u(S) would save as a
   control variate: the variance of v(S) - u(S) as a multiple of that of v(S).
2. Of single images: the error with a budget, compared with that of as many independent draws (a size ~ U{1..N}, then a
   weighted subset of that size). Both are standard deviations over repetitions with other seeds.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from measuring import MeasurementArguments, batch_of, choose, load
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from salvage_hf import MaskedClassifier, attribution_methods, subsets
from salvage_hf.arguments import AtLeast, arg
from salvage_hf.attribution_methods.trained import load_explainer
from salvage_hf.data.images import ProcessedImages
from salvage_hf.faithfulness import mean_and_stderr, relative_scores
from salvage_hf.files import check_writable, write_json
from salvage_hf.masking import value_at
from salvage_hf.targets import activation, target_probability

PROTOCOL_MASKS = 128


@dataclass
class MetricBenchmarkArguments(MeasurementArguments):
    """Arguments of scripts/performance/benchmark_metrics.py."""

    explainer: str = arg("", "The Salvage model whose maps are scored: a name on the Hub or a folder.")
    num_images: Annotated[int, AtLeast(2)] = arg(100, "Images of the first part.")
    num_single_images: Annotated[int, AtLeast(1)] = arg(10, "Images of the second part.")
    repeats: Annotated[int, AtLeast(2)] = arg(8, "Repetitions of the second part.")
    budget: Annotated[int, AtLeast(5)] = arg(
        161, "Forwards of the classifier per image; with 64 patches, 161 are a hundredth of the protocol's."
    )
    batch_size: Annotated[int, AtLeast(1)] = arg(20, "Images at a time.")
    seed: int = arg(0, "The seed of everything random.")
    output_dir: str = arg("outputs/benchmark_metrics", "The folder for results.json.")

    def __post_init__(self):
        super().__post_init__()
        if not self.explainer:
            raise ValueError("explainer is needed: the Salvage model whose maps are scored")


def independent_scores(v, pixel_values, attributions, targets, budget: int, seed: int) -> torch.Tensor:
    """R-SRG [B] from independent draws: half of the budget for each direction."""
    weights = subsets.min_max_weights(attributions)
    generator = torch.Generator(device=attributions.device).manual_seed(seed)
    value, means = value_at(v, pixel_values), []
    for direction in (weights, 1 - weights):
        shape = len(weights), budget // 2, weights.shape[1]
        sizes = subsets.uniform_sizes(*shape, generator=generator)
        orders = subsets.weighted_orders(direction, budget // 2, generator=generator)
        drawn = subsets.positions(orders) < sizes[..., None]
        means.append(target_probability(value(drawn), targets).mean(dim=1))
    return means[0] - means[1]


@torch.no_grad()
def protocol_draw_variances(v, explainer, pixel_values, attributions, targets, seed: int) -> torch.Tensor:
    """How much R-SRG by the paper's protocol varies with its draws, from two independent draws at every size.

    Returns:
        [B, 2]: the variance of R-SRG, and of R-SRG with v(S) - u(S) in place of v(S).
    """
    num_patches = attributions.shape[1]
    weights = subsets.min_max_weights(attributions)
    generator = torch.Generator(device=attributions.device).manual_seed(seed)
    sizes = torch.arange(1, num_patches, device=attributions.device).repeat(2)
    value, variances = value_at(v, pixel_values), torch.zeros(len(weights), 2, device=attributions.device)
    output = explainer(pixel_values)
    for direction in (weights, 1 - weights):
        orders = subsets.weighted_orders(direction, len(sizes), generator=generator)
        drawn = subsets.positions(orders) < sizes[:, None]
        predictions = target_probability(value(drawn), targets)
        explained = target_probability(activation(explainer.subset_logits(output, drawn)), targets)
        both = torch.stack([predictions, predictions - explained], dim=1).unflatten(2, (2, -1))  # [B, 2, 2, N - 1]
        variances += both.var(dim=2).sum(dim=2) / num_patches**2 / PROTOCOL_MASKS
    return variances


def over_many_images(args, v: MaskedClassifier, explainer, method, images: ProcessedImages, chosen) -> dict:
    """The first part: prints and returns its figures."""
    scores, draw_variances = [], []
    for part in tqdm(chosen.split(args.batch_size), desc="Over images"):
        pixel_values, targets = batch_of(images, part)
        maps, ids = method(pixel_values, targets), part.to(v.device)
        scores.append(relative_scores(v, pixel_values, maps, targets, budget=args.budget, seed=args.seed, ids=ids))
        draw_variances.append(protocol_draw_variances(v, explainer, pixel_values, maps, targets, args.seed))
    r_srg = torch.cat([part.r_srg for part in scores])
    mean, stderr = mean_and_stderr(r_srg)
    variance_of_draws = torch.cat([part.r_srg_stderr for part in scores]).square().mean().item()
    variance_between_images = max(0.0, r_srg.var().item() - variance_of_draws)
    protocol_variance, residual_variance = torch.cat(draw_variances).mean(dim=0).tolist()
    protocol_stderr = ((variance_between_images + protocol_variance) / len(r_srg)) ** 0.5
    protocol_forwards = 2 * PROTOCOL_MASKS * (v.num_patches - 1) + 1
    forwards = int(scores[0].num_forwards[0])
    print(
        f"{len(r_srg)} images: R-SRG {mean:.4f} with a total standard error of {stderr:.4f} from {forwards} forwards "
        f"per image; the protocol's {protocol_forwards} would give {protocol_stderr:.4f} (ratio of the errors "
        f"{stderr / protocol_stderr:.3f}, of the forwards {forwards / protocol_forwards:.4f})\n"
        f"variance of v - u as a multiple of that of v: {residual_variance / protocol_variance:.3f}"
    )
    return {
        "r_srg": mean,
        "stderr": stderr,
        "protocol_stderr": protocol_stderr,
        "forwards": forwards,
        "protocol_forwards": protocol_forwards,
        "control_variate_ratio": residual_variance / protocol_variance,
    }


def of_single_images(args, v: MaskedClassifier, method, images: ProcessedImages, chosen) -> dict:
    """The second part: prints and returns its figures."""
    pixel_values, targets = batch_of(images, chosen)
    maps = method(pixel_values, targets)
    budgeted, independent = [], []
    for seed in tqdm(range(args.seed + 1, args.seed + 1 + args.repeats), desc="Single images"):
        budgeted.append(relative_scores(v, pixel_values, maps, targets, budget=args.budget, seed=seed).r_srg)
        independent.append(independent_scores(v, pixel_values, maps, targets, args.budget, seed))
    budgeted_error, independent_error = (
        torch.stack(estimates).var(dim=0).mean().sqrt().item() for estimates in (budgeted, independent)
    )
    print(
        f"{len(chosen)} single images, {args.budget} forwards each: error {budgeted_error:.4f} with a budget, "
        f"{independent_error:.4f} with independent draws (ratio {budgeted_error / independent_error:.3f})"
    )
    return {"budgeted_error": budgeted_error, "independent_error": independent_error}


def main() -> None:
    args = HfArgumentParser(MetricBenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    v, images = load(args)
    explainer = load_explainer(args.explainer, "salvage", v)
    method = attribution_methods.load("salvage", classifier=v, explainer=explainer)
    chosen = choose(images, args.num_images, args.seed)
    results = {
        "arguments": asdict(args),
        "many_images": over_many_images(args, v, explainer, method, images, chosen),
        "single_images": of_single_images(args, v, method, images, chosen[: args.num_single_images]),
    }
    write_json(Path(args.output_dir, "results.json"), results)


if __name__ == "__main__":
    main()
