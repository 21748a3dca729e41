"""Is this classifier ready to be explained? What it says of partial images, after training with hidden patches.

partial_images.json, beside the classifier, holds "images", their number; "draws", the subsets per image and share;
"masking", "patch_size" and "num_patches"; "shares" of visible patches, from 0 to 1; and for the "classifier", and for
the "first_stage" that training started from, if its labels have the same names, a mean and a standard error over
images at every share:

- "accuracy", the share of images whose label is predicted;
- "kl", the divergence KL(first stage's prediction on the whole image || prediction from the subset) in nats, where
  there is a first stage. A classifier that is ready is as right as its first stage on whole images, and keeps near to
  it down to few patches: what is explained is then what patches say, and not that the images look strange.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import AutoModelForImageClassification

from ..data.labels import match_labels, plain_name
from ..faithfulness import mean_and_stderr
from ..files import write_bytes, write_json
from ..hub.cards import write_classifier_card
from ..keyed_random import KeyedGenerator
from ..masking import MaskedClassifier
from ..pretrained import load_model
from ..recipes import RECIPE, read_recipe
from ..subsets import uniform
from ..targets import label_names
from ..training.classifier import ClassifierArguments, ClassifierTask
from . import plots
from .doctor_checks import target_log_probabilities

logger = logging.getLogger(__name__)

#: The shares of visible patches, besides none and all, and how many subsets are drawn of each per image.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
DRAWS = 2

#: What is measured -> the title of its panel.
MEASURES = {"accuracy": "accuracy", "kl": "KL divergence in nats, to the first stage's prediction on the whole image"}

#: Which model -> the title of its line.
MODELS = {"classifier": "this classifier", "first_stage": "what its training started from"}


@torch.no_grad()
def partial_image_curve(
    v: MaskedClassifier,
    first_stage: MaskedClassifier | None,
    order: Sequence[int] | None,
    batches: Iterable[dict[str, torch.Tensor]],
    seed: int = 0,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows,
) -> dict[str, Any]:
    """What two classifiers say of the same parts of images.

    Args:
        v: the classifier.
        first_stage: the classifier that its training started from, with the same labels and patches.
        order: for each label of `v` that of the first stage; the same when None.
        batches: "pixel_values" [B, C, H, W] of one size, "labels" int64 [B] and "ids" int64 [B] of the images.
        seed: of the subsets, which depend on the ids beside it.
        gather: brings the rows [B, ...] of all processes together.

    Returns:
        What partial_images.json holds.

    Raises:
        ValueError: where a prediction is NaN or infinite.
    """
    models = {"classifier": v} if first_stage is None else {"classifier": v, "first_stage": first_stage}
    measured: dict[str, list[torch.Tensor]] = {}
    num_patches, sizes = 0, torch.zeros(0)
    for batch in batches:
        rows, columns = v.patch_grid(batch["pixel_values"])
        num_patches = rows * columns
        sizes = _sizes(num_patches)
        keys = batch["ids"].cpu()
        generator = KeyedGenerator("subsets of the partial image curve", seed, keys=keys)
        drawn = uniform(len(keys), len(sizes), num_patches, generator=generator, sizes=sizes)
        logits = {name: model.logits(batch["pixel_values"], drawn) for name, model in models.items()}
        if first_stage is not None and order is not None:
            logits["first_stage"] = logits["first_stage"][..., list(order)]
        answers = {name: target_log_probabilities(values) for name, values in logits.items()}
        for name, logs in answers.items():
            if not logs.isfinite().all():
                raise ValueError(f"the {name.replace('_', ' ')} answers NaN or infinity to parts of these images")
            hits = (logs.argmax(dim=-1) == batch["labels"][:, None]).double()
            measured.setdefault(f"{name} accuracy", []).append(gather(hits))
            if first_stage is not None:
                whole = answers["first_stage"][:, -1:]  # [B, 1, L]; the last subset is the whole image
                measured.setdefault(f"{name} kl", []).append(gather((whole.exp() * (whole - logs)).sum(dim=-1)))
    values = {name: torch.cat(rows).cpu() for name, rows in measured.items()}  # [I, M] each
    shares = (sizes / num_patches).tolist()
    curve = {
        "images": len(values["classifier accuracy"]),
        "draws": DRAWS,
        "masking": v.masking,
        "patch_size": v.patch_size,
        "num_patches": num_patches,
        "shares": sorted(set(shares)),
    }
    for name in models:
        columns_of = {measure: values[f"{name} {measure}"] for measure in MEASURES if f"{name} {measure}" in values}
        curve[name] = {measure: _by_share(found, shares) for measure, found in columns_of.items()}
    return curve


def _sizes(num_patches: int) -> torch.Tensor:
    """The sizes of an image's subsets, ascending, int64 [M]: none once, `DRAWS` of each share, all once."""
    partial = {size for share in SHARES if 0 < (size := round(share * num_patches)) < num_patches}
    return torch.tensor([0, *sorted([*partial] * DRAWS), num_patches])


def _by_share(values: torch.Tensor, shares: list[float]) -> list[list[float | None]]:
    """Mean and standard error over images at every share, after the mean over an image's subsets: values [I, M]."""
    points = []
    for share in sorted(set(shares)):
        slots = [slot for slot, other in enumerate(shares) if other == share]
        mean, stderr = mean_and_stderr(values[:, slots].mean(dim=1))
        points.append([mean, None if stderr != stderr else stderr])
    return points


def draw_curve(curve: dict[str, Any]) -> Figure:
    """The picture of a curve."""
    panels: dict[str, Any] = {}
    for measure, title in MEASURES.items():
        for name, line in MODELS.items():
            if measure in curve.get(name, {}):
                points = [(mean, float("nan") if error is None else error) for mean, error in curve[name][measure]]
                panels.setdefault(title, {})[line] = dict(zip(curve["shares"], points, strict=True))
    return plots.share_curves(panels)


class DescribedClassifierTask(ClassifierTask):
    """The training of a classifier that ends with its card and, where patches were hidden, with its curve."""

    def describe(self, folder: Path, results: dict[str, Any]) -> None:
        """Writes README.md, and partial_images.json and .png where patches were hidden in training."""
        curve = None
        if self.args.mask_patches:
            v = MaskedClassifier.from_pretrained(str(folder), patch_size=self.model.patch_size)
            bar = tqdm(self.eval_loader, desc="Partial images", disable=not self.accelerator.is_main_process)
            curve = partial_image_curve(
                v.to(self.accelerator.device),
                *self._first_stage(),
                batches=bar,
                seed=self.args.seed,
                gather=self.accelerator.gather_for_metrics,
            )
        if not self.accelerator.is_main_process:
            return
        if curve is not None:
            write_json(folder / "partial_images.json", curve)
            write_bytes(folder / "partial_images.png", plots.file_content(draw_curve(curve)))
        write_classifier_card(
            folder,
            self.args,
            self.model.config,
            results,
            (len(self.train_images.images), len(self.eval_images)),
            first_stage=first_stage_arguments(self.args),
            curve=curve,
        )

    def _first_stage(self) -> tuple[MaskedClassifier | None, list[int] | None]:
        """The classifier that training started from, and for each of our labels that of it.

        None where it was no classifier, has other labels, or has been written over.
        """
        start = self.args.model_name_or_path
        if Path(start).resolve() == Path(self.args.output_dir).resolve():
            return None, None
        try:
            first = load_model(AutoModelForImageClassification, start, dtype=torch.float32)
            order = _order_of_labels(label_names(self.model.config), first.config)
        except ValueError as error:
            logger.info("There is no first stage to compare with: %s", error)
            return None, None
        return MaskedClassifier(first, patch_size=self.model.patch_size).to(self.accelerator.device), order


def _order_of_labels(names: list[str], config: Any) -> list[int]:
    """For each label the classifier's of that name; raises ValueError where it has others, or more."""
    theirs = label_names(config)
    if len(names) != len(theirs):
        raise ValueError(f"it has {len(theirs)} labels, not {len(names)}")
    if len(names) == 1:
        if plain_name(names[0]) != plain_name(theirs[0]):
            raise ValueError(f"its label is {theirs[0]!r}, not {names[0]!r}")
        return [0]
    return match_labels(names, config)


def first_stage_arguments(args: ClassifierArguments) -> ClassifierArguments | None:
    """The arguments of the run that trained what a run started from, by the recipe beside it; None where unknown."""
    try:
        return ClassifierArguments(**read_recipe(str(Path(args.model_name_or_path) / RECIPE), [ClassifierArguments]))
    except ValueError:  # a name on the Hub, or the recipe of another script
        return None
