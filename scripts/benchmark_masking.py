"""Times v(S) by token dropping against the same classifier run densely with an attention mask.

The dense side is how ViT-Shapley evaluates subsets: the pixels are repeated for every subset, all tokens pass through
all layers, and hidden ones are masked in every attention. Both run side by side, round by round, on the same images and
subsets of sizes 1..N. Prints the ratio of their times and the largest difference of their logits, and writes JSON.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import Dinov2Config, Dinov2ForImageClassification

from salvage_hf import MaskedClassifier, subsets


def dense_logits(v: MaskedClassifier, pixel_values: torch.Tensor, drawn: torch.Tensor, rows: int) -> torch.Tensor:
    """v(S) with attention masks, [B, M, K]; pooling counts visible patches only, as in the dropping side."""
    batch_size, num_subsets, _ = drawn.shape
    classifier, num_prefix = v.classifier, v.num_prefix_tokens
    repeated = pixel_values.repeat_interleave(num_subsets, dim=0)
    flat = drawn.flatten(0, 1)
    outputs = []
    for pixels, visible in zip(repeated.split(rows), flat.split(rows), strict=True):
        attention_mask = torch.nn.functional.pad(visible, (num_prefix, 0), value=True)
        hidden = classifier.base_model(pixels, attention_mask=attention_mask).last_hidden_state
        patches = (hidden[:, num_prefix:] * visible[..., None]).sum(dim=1) / visible.sum(dim=1, keepdim=True)
        outputs.append(classifier.classifier(torch.cat([hidden[:, 0], patches], dim=-1)))
    return torch.cat(outputs).view(batch_size, num_subsets, -1)


def synchronised_seconds(function, device: torch.device) -> tuple[float, torch.Tensor]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


@torch.no_grad()
def compare(v: MaskedClassifier, side: int, rows_per_size: int, rounds: int, dtype: torch.dtype) -> dict:
    generator = torch.Generator().manual_seed(0)
    num_patches = side * side
    pixel_values = torch.randn(rows_per_size, 3, side * v.patch_size, side * v.patch_size, generator=generator)
    sizes = torch.arange(1, num_patches + 1)
    drawn = subsets.uniform(rows_per_size, num_patches, num_patches, generator=generator, sizes=sizes)
    pixel_values, drawn = pixel_values.to(v.device, dtype), drawn.to(v.device)
    rows = max(1, v.chunk_size // (num_patches + 1))  # as many tokens in a forward as the dropping side

    sides = {
        "dropping": lambda: v.logits(pixel_values, drawn),
        "dense": lambda: dense_logits(v, pixel_values, drawn, rows),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    logits = {}
    for _ in tqdm(range(rounds), desc=f"{num_patches} patches"):
        for name, function in sides.items():
            elapsed, logits[name] = synchronised_seconds(function, v.device)
            seconds[name].append(elapsed)
    ratios = [slow / fast for slow, fast in zip(seconds["dense"], seconds["dropping"], strict=True)]
    return {
        "patches": num_patches,
        "forwards": rows_per_size * num_patches,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "seconds": seconds,
        "largest_difference": (logits["dropping"] - logits["dense"]).abs().max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="a DINOv2 classifier; ViT-S/14 with random weights when not given")
    parser.add_argument("--grids", type=int, nargs="+", default=[8, 16], help="patches along a side")
    parser.add_argument("--rows_per_size", type=int, nargs="+", default=[32, 8], help="images, for each of the grids")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output_dir", default="outputs/benchmark_masking")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype)
    if args.model_name_or_path:
        v = MaskedClassifier.from_pretrained(args.model_name_or_path, dtype=dtype)
    else:
        torch.manual_seed(0)
        config = Dinov2Config(hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518, num_labels=10)
        v = MaskedClassifier(Dinov2ForImageClassification(config).to(dtype).requires_grad_(False))
    v.to(device)
    results = []
    for side, rows_per_size in zip(args.grids, args.rows_per_size, strict=True):
        results.append(compare(v, side, rows_per_size, args.rounds, dtype))
        last = results[-1]
        print(
            f"{last['patches']} patches, {device.type} {args.dtype}, {last['forwards']} subsets of sizes 1..N: "
            f"dense masks take {last['ratio']:.2f} times as long as dropping "
            f"(rounds: {', '.join(f'{ratio:.2f}' for ratio in last['ratios'])}); "
            f"largest difference of the logits {last['largest_difference']:.1e}",
            flush=True,
        )
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
