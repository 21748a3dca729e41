"""Peak memory of v(S) and of the metrics above the loaded model, as the subsets of an image grow.

Every figure is taken in a process of its own, after a first call of all sizes, inputs and outputs left out: on a GPU
from the allocator's record, on a CPU from the resident memory, watched every few milliseconds. Without a model it is
one layer of a ViT-S/14 with random weights: a forward without gradients holds the activations of one layer at a time.
"""

import argparse
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Dinov2Config, Dinov2ForImageClassification

from salvage_hf import MaskedClassifier, subsets
from salvage_hf.faithfulness import rank_scores, relative_scores


def v_of_subsets(v, pixel_values, num_subsets):
    """Sizes shared by the images, as in training: a size is as many rows as there are images, whatever the column."""
    generator, num_patches = torch.Generator().manual_seed(0), _num_patches(v, pixel_values)
    sizes = subsets.stratified_sizes(1, num_subsets, num_patches, generator=generator)[0]
    drawn = subsets.uniform(len(pixel_values), num_subsets, num_patches, generator=generator, sizes=sizes)
    drawn = drawn.to(v.device)
    outputs = drawn.numel() + 4 * len(pixel_values) * num_subsets * v.num_labels
    return lambda: v.logits(pixel_values, drawn), outputs


def relative(v, pixel_values, num_subsets):
    maps, targets = _maps(v, pixel_values)
    return lambda: relative_scores(v, pixel_values, maps, targets, budget=num_subsets), 0


def relative_protocol(v, pixel_values, num_subsets):
    """n_masks is a 32nd of the column's number."""
    maps, targets = _maps(v, pixel_values)
    return lambda: relative_scores(v, pixel_values, maps, targets, n_masks=max(1, num_subsets // 32)), 0


def rank(v, pixel_values, num_subsets):
    """Its 2N - 1 subsets are given by the grid: every column is the same call."""
    maps, targets = _maps(v, pixel_values)
    return lambda: rank_scores(v, pixel_values, maps, targets), 0


MEASURED: dict[str, Callable] = {
    "v(S)": v_of_subsets,
    "R-SRG, budget": relative,
    "R-SRG, n_masks x 32": relative_protocol,
    "SRG": rank,
}


def _num_patches(v, pixel_values) -> int:
    rows, columns = v.patch_grid(pixel_values)
    return rows * columns


def _maps(v, pixel_values) -> tuple[torch.Tensor, torch.Tensor]:
    maps = torch.rand(len(pixel_values), _num_patches(v, pixel_values), generator=torch.Generator().manual_seed(0))
    return maps.to(v.device), torch.zeros(len(pixel_values), dtype=torch.int64, device=v.device)


class Peak:
    """Most bytes held at once within the `with` block, above those held when it began."""

    def __enter__(self):
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        self.before = self.most = resident_bytes()
        self.done = threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def _watch(self):
        while not self.done.is_set():
            self.most = max(self.most, resident_bytes())
            time.sleep(0.002)

    def __exit__(self, *exception):
        if self.cuda:
            self.most = torch.cuda.max_memory_allocated()
        else:
            self.done.set()
            self.watcher.join()
        self.bytes = self.most - self.before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(arguments: tuple) -> int:
    name, num_subsets, model_name_or_path, side, num_images, chunk_size = arguments
    if model_name_or_path:
        v = MaskedClassifier.from_pretrained(model_name_or_path)
    else:
        config = Dinov2Config(
            hidden_size=384, num_attention_heads=6, num_hidden_layers=1, patch_size=14, image_size=518, num_labels=10
        )
        v = MaskedClassifier(Dinov2ForImageClassification(config).requires_grad_(False))
    v.chunk_size = chunk_size
    v.to("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(num_images, 3, side * v.patch_size, side * v.patch_size, generator=generator)
    pixel_values = pixel_values.to(v.device)
    # Every size once: libraries keep kernels and buffers for each shape they have met.
    num_patches = side * side
    v.logits(pixel_values[:1], torch.arange(num_patches).lt(torch.arange(1, num_patches + 1)[:, None])[None])
    call, outputs = MEASURED[name](v, pixel_values, num_subsets)
    with Peak() as peak:
        call()
    return peak.bytes - outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="a classifier")
    parser.add_argument("--grid", type=int, default=8, help="patches along a side")
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--num_subsets", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--chunk_size", type=int, default=4096, help="tokens a forward may hold")
    parser.add_argument("--output_dir", default="outputs/benchmark_memory")
    args = parser.parse_args()
    # glibc then gives freed tensors back to the system, instead of keeping them resident for later ones.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    results = {}
    for name in MEASURED:
        results[name] = {}
        for num_subsets in args.num_subsets:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                settings = args.model_name_or_path, args.grid, args.num_images, args.chunk_size
                results[name][num_subsets] = pool.map(measure, [(name, num_subsets, *settings)])[0]
        megabytes = ", ".join(f"{number}: {size / 2**20:.0f} MiB" for number, size in results[name].items())
        print(f"{name:20} subsets an image {megabytes}", flush=True)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    Path(args.output_dir, "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
