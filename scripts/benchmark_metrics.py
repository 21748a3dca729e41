"""What R-SRG costs: the budgeted estimator beside the paper's protocol and beside independent draws.

1. Over many images: the total standard error of the mean R-SRG with a budget, beside that of the paper's protocol, of
   which the part between images is taken from the budgeted run and the part of the draws from two draws at every size.
   From the same draws: what the explainer's u(S) would save as a control variate, the variance of v(S) - u(S) in units
   of that of v(S).
2. Of single images: the error with a budget beside that of as many independent draws (a size ~ U{1..N}, then a weighted
   subset of that size), both as standard deviations over repetitions with other seeds.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel, HfArgumentParser

from salvage_hf import MaskedClassifier, attribution_methods, subsets
from salvage_hf.data import ProcessedImages, load_images
from salvage_hf.faithfulness import mean_and_stderr, relative_scores
from salvage_hf.masking import activation, target_probability, value_at
from salvage_hf.training import arg, check_writable

PROTOCOL_MASKS = 128


@dataclass
class MetricBenchmarkArguments:
    """Arguments of scripts/benchmark_metrics.py."""

    model_name_or_path: str = arg("", "The classifier: a name on the Hub or a folder.")
    explainer: str = arg("", "The Salvage model whose maps are scored.")
    validation_dir: str = arg("", "A folder of images, one sub-folder a class.")
    num_images: int = arg(100, "Images of the first part.")
    num_single_images: int = arg(10, "Images of the second part.")
    repeats: int = arg(8, "Repetitions of the second part.")
    budget: int = arg(161, "Forwards an image; with 64 patches 161 is a hundredth of the protocol.")
    batch_size: int = arg(20, "Images at a time.")
    seed: int = arg(0, "Seed of everything random.")
    output_dir: str = arg("outputs/benchmark_metrics", "Where results.json is written.")


def independent_scores(v, pixel_values, attributions, targets, budget, seed) -> torch.Tensor:
    """R-SRG [B] from independent draws: half the budget for each direction."""
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


def protocol_draw_variance(v, explainer, pixel_values, attributions, targets, seed) -> torch.Tensor:
    """Variance [B, 2] of R-SRG by Algorithm 2, independent draws at every size, from two of them: of v and of v - u."""
    num_patches = attributions.shape[1]
    weights = subsets.min_max_weights(attributions)
    generator = torch.Generator(device=attributions.device).manual_seed(seed)
    sizes = torch.arange(1, num_patches, device=attributions.device).repeat(2)
    value, variance = value_at(v, pixel_values), torch.zeros(len(weights), 2, device=attributions.device)
    output = explainer(pixel_values)
    for direction in (weights, 1 - weights):
        orders = subsets.weighted_orders(direction, len(sizes), generator=generator)
        drawn = subsets.positions(orders) < sizes[:, None]
        predictions = target_probability(value(drawn), targets)
        explained = target_probability(activation(explainer.subset_logits(output, drawn)), targets)
        both = torch.stack([predictions, predictions - explained], dim=1).unflatten(2, (2, -1))  # [B, 2, 2, N - 1]
        variance += both.var(dim=2).sum(dim=2) / num_patches**2 / PROTOCOL_MASKS
    return variance


def main() -> None:
    args = HfArgumentParser(MetricBenchmarkArguments).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    v = MaskedClassifier.from_pretrained(args.model_name_or_path).to("cuda" if torch.cuda.is_available() else "cpu")
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)
    images = ProcessedImages(load_images(folder=args.validation_dir), processor, v.config)
    explainer = AutoModel.from_pretrained(args.explainer, dtype=torch.float32).to(v.device).eval()
    method = attribution_methods.load("salvage", classifier=v, explainer=explainer)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[: args.num_images]

    scores, draw_variances = [], []
    for part in tqdm(chosen.split(args.batch_size), desc="Over images"):
        pixel_values, targets, maps = explained(images, part, method, v.device)
        scores.append(
            relative_scores(v, pixel_values, maps, targets, budget=args.budget, seed=args.seed, ids=part.to(v.device))
        )
        with torch.no_grad():
            draw_variances.append(protocol_draw_variance(v, explainer, pixel_values, maps, targets, args.seed))
    r_srg = torch.cat([part.r_srg for part in scores])
    within = torch.cat([part.r_srg_stderr for part in scores]).square().mean().item()
    mean, stderr = mean_and_stderr(r_srg)
    between = max(0.0, r_srg.var().item() - within)
    draw_variance, residual_variance = torch.cat(draw_variances).mean(dim=0).tolist()
    of_protocol = ((between + draw_variance) / len(r_srg)) ** 0.5
    num_patches = maps.shape[1]
    protocol_forwards = 2 * PROTOCOL_MASKS * (num_patches - 1) + 1
    forwards = int(scores[0].num_forwards[0])
    print(
        f"{len(r_srg)} images: R-SRG {mean:.4f} with a total standard error of {stderr:.4f} from {forwards} forwards "
        f"an image; the protocol's {protocol_forwards} would give {of_protocol:.4f} (ratio of the errors "
        f"{stderr / of_protocol:.3f}, of the forwards {forwards / protocol_forwards:.4f})\n"
        f"variance of v - u in units of that of v: {residual_variance / draw_variance:.3f}"
    )

    pixel_values, targets, maps = explained(images, chosen[: args.num_single_images], method, v.device)
    budgeted, independent = [], []
    for repeat in tqdm(range(args.repeats), desc="Single images"):
        estimate = relative_scores(v, pixel_values, maps, targets, budget=args.budget, seed=args.seed + 1 + repeat)
        budgeted.append(estimate.r_srg)
        independent.append(independent_scores(v, pixel_values, maps, targets, args.budget, args.seed + 1 + repeat))
    errors = [torch.stack(estimates).var(dim=0).mean().sqrt().item() for estimates in (budgeted, independent)]
    print(
        f"{args.num_single_images} single images, {args.budget} forwards each: error {errors[0]:.4f} with a budget, "
        f"{errors[1]:.4f} with independent draws (ratio {errors[0] / errors[1]:.3f})"
    )
    results = {
        "arguments": vars(args),
        "many_images": {
            "r_srg": mean,
            "stderr": stderr,
            "protocol_stderr": of_protocol,
            "forwards": forwards,
            "protocol_forwards": protocol_forwards,
            "control_variate_ratio": residual_variance / draw_variance,
        },
        "single_images": {"budgeted_error": errors[0], "independent_error": errors[1]},
    }
    Path(args.output_dir, "results.json").write_text(json.dumps(results, indent=1) + "\n")


def explained(images, indices, method, device):
    items = images.__getitems__(indices.tolist())
    pixel_values = torch.stack([item["pixel_values"] for item in items]).to(device)
    targets = torch.tensor([item["labels"] for item in items], device=device)
    return pixel_values, targets, method(pixel_values, targets)


if __name__ == "__main__":
    main()
