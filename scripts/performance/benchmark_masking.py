"""Times v(S) by token dropping against dropping without packing, and against the classifier with attention masks.

Without packing a forward takes subsets of one size only. The dense side is how ViT-Shapley evaluates subsets: the
pixels are repeated for every subset, all tokens pass through all layers, and hidden ones are masked in every attention.
All run side by side, round by round, on the same images and subsets of sizes 1..N. Prints the ratios of their times and
the largest differences of their logits.
"""

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from measuring import DEVICE, now
from tqdm.auto import tqdm
from transformers import Dinov2Config, Dinov2ForImageClassification, HfArgumentParser

from salvage_hf import MaskedClassifier, subsets
from salvage_hf.arguments import AtLeast, arg, check_arguments
from salvage_hf.files import check_writable, write_json


@dataclass
class MaskingBenchmarkArguments:
    """Arguments of scripts/performance/benchmark_masking.py."""

    model_name_or_path: str | None = arg(None, "A DINOv2 classifier; a ViT-S/14 with random weights when not given.")
    grids: list[int] = arg([8, 16], "Numbers of patches along a side of the images, one measurement each.")
    rows_per_size: list[int] = arg([32, 8], "Images for each of --grids; an image gets one subset of every size.")
    rounds: Annotated[int, AtLeast(1)] = arg(3, "How often both sides run in turn.")
    dtype: Literal["float32", "bfloat16"] = arg("float32", "The type of the classifier's weights and of the images.")
    output_dir: str = arg("outputs/benchmark_masking", "The folder for results.json.")

    def __post_init__(self):
        check_arguments(self)
        if len(self.grids) != len(self.rows_per_size):
            raise ValueError(f"rows_per_size={self.rows_per_size} must hold a number for each of grids={self.grids}")


def dense_logits(v: MaskedClassifier, pixel_values: torch.Tensor, drawn: torch.Tensor, rows: int) -> torch.Tensor:
    """v(S) by attention masks.

    Args:
        v: the classifier, a DINOv2.
        pixel_values: [B, C, H, W].
        drawn: the subsets, bool [B, M, N].
        rows: subsets per forward.

    Returns:
        logits [B, M, K]; pooling counts visible patches only, as it does on the dropping side.
    """
    classifier, num_prefix = v.classifier, v.num_prefix_tokens
    repeated = pixel_values.repeat_interleave(drawn.shape[1], dim=0)
    outputs = []
    for pixels, visible in zip(repeated.split(rows), drawn.flatten(0, 1).split(rows), strict=True):
        attention_mask = torch.nn.functional.pad(visible, (num_prefix, 0), value=True)
        hidden = classifier.base_model(pixels, attention_mask=attention_mask).last_hidden_state
        patches = (hidden[:, num_prefix:] * visible[..., None]).sum(dim=1) / visible.sum(dim=1, keepdim=True)
        outputs.append(classifier.classifier(torch.cat([hidden[:, 0], patches], dim=-1)))
    return torch.cat(outputs).view(*drawn.shape[:2], -1)


def unpacked_logits(v: MaskedClassifier, pixel_values: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """v(S) with one size of subsets per forward, logits [B, M, K]: a hook, as it may look at rows, prevents packing."""
    handle = v.token_family().block_list(v.classifier)[0].register_forward_hook(lambda *_: None)
    try:
        return v.logits(pixel_values, drawn)
    finally:
        handle.remove()


@torch.no_grad()
def compare(v: MaskedClassifier, side: int, rows_per_size: int, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """Times all sides on images of side x side patches, with `rows_per_size` subsets of every size 1..N."""
    generator = torch.Generator().manual_seed(0)
    num_patches = side * side
    pixel_values = torch.randn(rows_per_size, 3, side * v.patch_size, side * v.patch_size, generator=generator)
    sizes = torch.arange(1, num_patches + 1)
    drawn = subsets.uniform(rows_per_size, num_patches, num_patches, generator=generator, sizes=sizes)
    pixel_values, drawn = pixel_values.to(DEVICE, dtype), drawn.to(DEVICE)
    rows = max(1, v.chunk_size // (num_patches + 1))  # so that a forward has as many tokens as on the dropping side

    sides = {
        "dropping": lambda: v.logits(pixel_values, drawn),
        "unpacked": lambda: unpacked_logits(v, pixel_values, drawn),
        "dense": lambda: dense_logits(v, pixel_values, drawn, rows),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    logits = {}
    for _ in tqdm(range(rounds), desc=f"{num_patches} patches"):
        for name, function in sides.items():
            start = now()
            logits[name] = function()
            seconds[name].append(now() - start)
    others = [name for name in sides if name != "dropping"]
    ratios = {
        name: [slow / fast for slow, fast in zip(seconds[name], seconds["dropping"], strict=True)] for name in others
    }
    return {
        "patches": num_patches,
        "forwards": rows_per_size * num_patches,
        "forwards_per_second": rows_per_size * num_patches / statistics.median(seconds["dropping"]),
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratios": ratios,
        "seconds": seconds,
        "largest_difference": {name: (logits["dropping"] - logits[name]).abs().max().item() for name in others},
    }


def load_classifier(args: MaskingBenchmarkArguments, dtype: torch.dtype) -> MaskedClassifier:
    """The classifier of the arguments, or one with random weights."""
    if args.model_name_or_path:
        return MaskedClassifier.from_pretrained(args.model_name_or_path, dtype=dtype).to(DEVICE)
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518, num_labels=10)
    return MaskedClassifier(Dinov2ForImageClassification(config).to(dtype).requires_grad_(False)).to(DEVICE)


def main() -> None:
    args = HfArgumentParser(MaskingBenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    dtype = getattr(torch, args.dtype)
    v = load_classifier(args, dtype)
    results = []
    for side, rows_per_size in zip(args.grids, args.rows_per_size, strict=True):
        result = compare(v, side, rows_per_size, args.rounds, dtype)
        results.append(result)
        print(
            f"{result['patches']} patches, {DEVICE.type} {args.dtype}, {result['forwards']} subsets of sizes 1..N: "
            f"{result['forwards_per_second']:.0f} a second"
        )
        for name, ratio in result["ratio"].items():
            rounds = ", ".join(f"{value:.2f}" for value in result["ratios"][name])
            print(
                f"    {name} takes {ratio:.2f} times as long (rounds: {rounds}); largest difference of the logits "
                f"{result['largest_difference'][name]:.1e}",
                flush=True,
            )
    write_json(Path(args.output_dir, "results.json"), {"arguments": asdict(args), "grids": results})


if __name__ == "__main__":
    main()
