"""Peak memory of v(S) and of the metrics above the loaded model, as the number of subsets per image grows.

Every figure is measured in a process of its own, after a first forward of each size; inputs and outputs do not count.
On a GPU it is the allocator's peak, on a CPU the peak of the resident memory, sampled every few milliseconds. Without a
model the classifier is one layer of a ViT-S/14 with random weights, which is enough, because a forward without
gradients holds the activations of one layer at a time.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from measuring import DEVICE
from transformers import Dinov2Config, Dinov2ForImageClassification, HfArgumentParser

from salvage_hf import MaskedClassifier, subsets
from salvage_hf.arguments import AtLeast, arg, check_arguments
from salvage_hf.faithfulness import rank_scores, relative_scores
from salvage_hf.files import check_writable, write_json


@dataclass
class MemoryBenchmarkArguments:
    """Arguments of scripts/performance/benchmark_memory.py."""

    model_name_or_path: str | None = arg(None, "A classifier; one layer with random weights when not given.")
    grid: Annotated[int, AtLeast(1)] = arg(8, "Patches along a side of the images.")
    num_images: Annotated[int, AtLeast(1)] = arg(64, "Images in the batch.")
    num_subsets: list[int] = arg([8, 64, 512], "Numbers of subsets per image, one column each.")
    chunk_size: Annotated[int, AtLeast(1)] = arg(4096, "Tokens that a forward may hold.")
    output_dir: str = arg("outputs/benchmark_memory", "The folder for results.json.")

    def __post_init__(self):
        check_arguments(self)


# What is measured: (v, pixel_values [B, C, H, W], number of subsets per image M) -> the call, and the bytes of what it
# is given and returns.


def v_of_subsets(v, pixel_values, num_subsets) -> tuple[Callable, int]:
    """v(S); all images share the sizes, as in training, so that each size has B rows, however large M is."""
    generator, num_patches = torch.Generator().manual_seed(0), _num_patches(v, pixel_values)
    sizes = subsets.stratified_sizes(1, num_subsets, num_patches, generator=generator)[0]
    drawn = subsets.uniform(len(pixel_values), num_subsets, num_patches, generator=generator, sizes=sizes)
    drawn = drawn.to(v.device)
    given_and_returned = drawn.numel() + 4 * len(pixel_values) * num_subsets * v.num_labels
    return lambda: v.logits(pixel_values, drawn), given_and_returned


def relative_within_budget(v, pixel_values, num_subsets) -> tuple[Callable, int]:
    """R-SRG with a budget of M forwards per image."""
    maps, targets = _maps(v, pixel_values)
    return lambda: relative_scores(v, pixel_values, maps, targets, budget=num_subsets), 0


def relative_protocol(v, pixel_values, num_subsets) -> tuple[Callable, int]:
    """R-SRG by the paper's protocol, with M / 32 draws per size."""
    maps, targets = _maps(v, pixel_values)
    return lambda: relative_scores(v, pixel_values, maps, targets, n_masks=max(1, num_subsets // 32)), 0


def rank(v, pixel_values, num_subsets) -> tuple[Callable, int]:
    """SRG; it always takes 2N - 1 subsets per image, so that all columns measure the same call."""
    maps, targets = _maps(v, pixel_values)
    return lambda: rank_scores(v, pixel_values, maps, targets), 0


MEASURED: dict[str, Callable[..., tuple[Callable, int]]] = {
    "v(S)": v_of_subsets,
    "R-SRG, budget": relative_within_budget,
    "R-SRG, n_masks x 32": relative_protocol,
    "SRG": rank,
}


def _num_patches(v, pixel_values) -> int:
    rows, columns = v.patch_grid(pixel_values)
    return rows * columns


def _maps(v, pixel_values) -> tuple[torch.Tensor, torch.Tensor]:
    """Random attributions [B, N], and class 0 as the target of every image."""
    maps = torch.rand(len(pixel_values), _num_patches(v, pixel_values), generator=torch.Generator().manual_seed(0))
    return maps.to(v.device), torch.zeros(len(pixel_values), dtype=torch.int64, device=v.device)


class Peak:
    """Within a `with` block, measures the peak of the bytes held, less those held at its start: `bytes`."""

    def __enter__(self):
        if DEVICE.type == "cuda":
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
        if DEVICE.type == "cuda":
            self.most = torch.cuda.max_memory_allocated()
        else:
            self.done.set()
            self.watcher.join()
        self.bytes = self.most - self.before


def resident_bytes() -> int:
    """The resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, num_subsets: int, args: MemoryBenchmarkArguments) -> int:
    """One figure, in bytes."""
    if args.model_name_or_path:
        v = MaskedClassifier.from_pretrained(args.model_name_or_path, chunk_size=args.chunk_size)
    else:
        config = Dinov2Config(
            hidden_size=384, num_attention_heads=6, num_hidden_layers=1, patch_size=14, image_size=518, num_labels=10
        )
        classifier = Dinov2ForImageClassification(config).requires_grad_(False)
        v = MaskedClassifier(classifier, chunk_size=args.chunk_size)
    v.to(DEVICE)
    side = args.grid * v.patch_size
    pixel_values = torch.randn(args.num_images, 3, side, side, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    # Run every size once, because libraries keep kernels and buffers for each new shape.
    num_patches = args.grid**2
    v.logits(pixel_values[:1], torch.arange(num_patches).lt(torch.arange(1, num_patches + 1)[:, None])[None])
    call, given_and_returned = MEASURED[name](v, pixel_values, num_subsets)
    with Peak() as peak:
        call()
    return peak.bytes - given_and_returned


def main() -> None:
    args = HfArgumentParser(MemoryBenchmarkArguments, description=__doc__).parse_args_into_dataclasses()[0]
    check_writable(args.output_dir)
    # With this, glibc returns freed tensors to the system, instead of keeping their memory resident.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    # Processes are forked from one that has the libraries loaded, which takes seconds, and has computed nothing.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["salvage_hf.faithfulness"])
    results: dict[str, dict[int, int]] = {}
    for name in MEASURED:
        results[name] = {}
        for num_subsets in args.num_subsets:
            with processes.Pool(1) as pool:
                results[name][num_subsets] = pool.apply(measure, (name, num_subsets, args))
        megabytes = ", ".join(f"{number}: {size / 2**20:.0f} MiB" for number, size in results[name].items())
        print(f"{name:20} subsets per image {megabytes}", flush=True)
    write_json(Path(args.output_dir, "results.json"), results)


if __name__ == "__main__":
    main()
