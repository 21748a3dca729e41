"""Scores of attribution methods: maps, scores and cost per image, kept after every batch.

An image's row holds its "attributions" [N], the cost in "seconds" and "forwards", and its scores with their curves [N]
and standard errors. A score is NaN where it is undefined or not wanted for the image, and left out if wanted for none.
"""

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..attribution_methods import Method
from ..faithfulness import rank_scores, relative_scores
from ..files import write_tensors
from ..localization import upsample
from ..masking import MaskedClassifier
from .arguments import BenchmarkArguments
from .cost import count_forwards
from .results import maps_file
from .scores import Family, scores_of_family

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorer:
    """Scores methods on the same images.

    Args:
        accelerator: distributes the images over its processes.
        v: the classifier.
        images: the scored images in the order of the rows, a part of a `ProcessedImages`.
        names: the names of all images of the data set.
        args: the arguments of the benchmark.
    """

    accelerator: Accelerator
    v: MaskedClassifier
    images: Subset
    names: list[str]
    args: BenchmarkArguments

    def score(self, name: str, method: Method, key: str) -> dict[str, torch.Tensor]:
        """The rows of a method, kept in maps/NAME.safetensors after every batch and continued from there.

        Args:
            name: the name of the method.
            method: the method that is scored.
            key: a digest of all that the scores depend on; a file with another key, or a damaged one, is overwritten.

        Returns:
            Column -> values of all images [I] or [I, N].

        Raises:
            ValueError: where a map or a prediction is NaN or infinite; earlier batches are kept.
        """
        path = maps_file(Path(self.args.output_dir), name)
        wanted_ids = self._wanted_ids()
        scored = _finished_rows(path, key, self._columns(wanted_ids))
        self.accelerator.wait_for_everyone()  # all processes have read before one writes
        done = len(scored["attributions"]) if scored else 0
        if done == len(self.images):
            return scored
        left = Subset(self.images, range(done, len(self.images)))
        loader = self.accelerator.prepare(DataLoader(left, batch_size=self.args.per_device_eval_batch_size))
        hidden = not self.accelerator.is_main_process
        bar = tqdm(total=len(self.images), initial=done, desc=name, unit="image", disable=hidden)
        forwards = scored["forwards"][:1].to(self.accelerator.device) if scored else None
        for batch in loader:
            if forwards is None:
                forwards = self._forwards(method, batch)
            attributions, seconds = self._explain(name, method, batch)
            rows = self._score(name, attributions, batch, wanted_ids)
            rows["seconds"] = torch.full_like(attributions[:, 0], seconds)
            rows["forwards"] = forwards.expand(len(attributions)).contiguous()
            gathered = {column: self.accelerator.gather_for_metrics(values).cpu() for column, values in rows.items()}
            scored = {column: torch.cat([scored[column], new]) if scored else new for column, new in gathered.items()}
            bar.update(len(gathered["seconds"]))
            if self.accelerator.is_main_process:
                write_tensors(path, scored, {"key": key})
        bar.close()
        return scored

    def _forwards(self, method: Method, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The cost of explaining the first image of all, in forwards: [1], the same in all processes."""
        cost = count_forwards(self.v, method, batch["pixel_values"][:1], batch["labels"][:1])
        # Only the first process has the first image.
        return self.accelerator.gather(torch.tensor([cost], device=self.accelerator.device))[:1]

    def _explain(self, name: str, method: Method, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        """The maps [B, N] of a batch, and the seconds per map."""
        start = time.perf_counter()
        attributions = method(batch["pixel_values"], batch["labels"])
        if attributions.is_cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / len(attributions)
        finite = attributions.isfinite().all(dim=1)
        if not finite.all():
            bad = [self.names[index] for index in batch["ids"][~finite].tolist()]
            raise ValueError(f"{name} gives NaN or infinite attributions of {bad[:10]}: leave out {name} or them")
        return attributions, seconds

    def _score(
        self,
        name: str,
        attributions: torch.Tensor,
        batch: dict[str, torch.Tensor],
        wanted_ids: dict[Family, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """`score_batch`; where it refuses, the message names the image."""
        try:
            return score_batch(self.v, attributions, batch, wanted_ids, self.args)
        except ValueError:
            for place, index in enumerate(batch["ids"].tolist()):
                image = {column: values[place : place + 1] for column, values in batch.items()}
                try:
                    score_batch(self.v, attributions[place : place + 1], image, wanted_ids, self.args)
                except ValueError as error:
                    raise ValueError(f"{name} cannot be scored on {self.names[index]!r}: {error}") from error
            raise

    def _columns(self, wanted_ids: dict[Family, torch.Tensor]) -> set[str]:
        """The columns that a finished method has."""
        families: list[Family] = [family for family, ids in wanted_ids.items() if len(ids)]
        families += ["region"] if self.args.has_regions else []
        kept = {column for family in families for score in scores_of_family(family) for column in score.kept}
        return {"attributions", "seconds", "forwards", *kept}

    def _wanted_ids(self) -> dict[Family, torch.Tensor]:
        """The ids of the images whose rank and relative scores are wanted: the first ones."""
        limits: dict[Family, int | None] = {
            "rank": self.args.max_rank_samples,
            "relative": self.args.max_relative_samples,
        }
        return {
            family: torch.tensor(self.images.indices[:number], dtype=torch.int64, device=self.accelerator.device)
            for family, number in limits.items()
        }


def score_batch(
    v: MaskedClassifier,
    attributions: torch.Tensor,
    batch: dict[str, torch.Tensor],
    wanted_ids: dict[Family, torch.Tensor],
    args: BenchmarkArguments,
) -> dict[str, torch.Tensor]:
    """The maps and scores of a batch: column -> [B] or [B, N].

    Args:
        v: the classifier.
        attributions: [B, N].
        batch: "pixel_values", "labels" and "ids" of the images, and their "masks" where regions are scored.
        wanted_ids: the ids of the images whose rank and relative scores are wanted.
        args: the arguments of the benchmark, for the seed and the number of draws.
    """
    pixel_values, targets, ids = batch["pixel_values"], batch["labels"], batch["ids"]
    relative = functools.partial(relative_scores, n_masks=args.n_masks, budget=args.budget)
    passes: dict[Family, Callable[..., Any]] = {"rank": rank_scores, "relative": relative}
    rows = {"attributions": attributions}
    for family, compute in passes.items():
        if not len(wanted_ids[family]):
            continue
        columns = [column for score in scores_of_family(family) for column in score.kept]
        for column in columns:
            shape = attributions if column.endswith("_curve") else attributions[:, 0]
            rows[column] = torch.full_like(shape, torch.nan)
        wanted = torch.isin(ids, wanted_ids[family])  # [B]
        if wanted.any():
            inputs = pixel_values[wanted], attributions[wanted], targets[wanted]
            scores = compute(v, *inputs, seed=args.seed, ids=ids[wanted])
            for column in columns:
                rows[column][wanted] = getattr(scores, column)
    if "masks" in batch:
        masks = batch["masks"]
        maps = upsample(attributions, v.patch_grid(pixel_values), (masks.shape[-2], masks.shape[-1]))
        for score in scores_of_family("region"):
            assert score.of_region is not None
            rows[score.name] = score.of_region(maps, masks)
    return rows


def _finished_rows(path: Path, key: str, columns: set[str]) -> dict[str, torch.Tensor]:
    """The rows that an earlier run has kept under this key, {} where there are none or the file is damaged."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as stored:
            if (stored.metadata() or {}).get("key") != key:
                return {}
            rows = {column: stored.get_tensor(column) for column in stored.keys()}  # noqa: SIM118
        if rows.keys() != columns or len({values.shape[:1] for values in rows.values()}) > 1:
            shapes = {column: list(values.shape) for column, values in rows.items()}
            raise ValueError(f"it holds {shapes} in place of as many rows of {', '.join(sorted(columns))}")
        if not rows["attributions"].isfinite().all():
            raise ValueError("it holds attributions that are NaN or infinite")
    except (SafetensorError, ValueError) as error:
        # The file only saves time: what it held is computed again.
        logger.warning("%r is damaged, so its images are scored again: %s", str(path), error)
        return {}
    return rows
