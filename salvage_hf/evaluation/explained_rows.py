"""The rows of an explained data set: what a classifier and its explainer say of an image, and the map.

Letters: N patches, K classes; L is K, or 2 where K = 1, the number of targets. A row holds:

- "index": the position of the image in its data set, which `select` takes there; "name": "folder/file", or the index;
- "label": the image's class among the L targets, None where the data set has none of the classifier's;
- "target": the explained class; "attributions": its map [N], or with all classes the maps [N, K], whatever the target;
  with one label (K = 1) they are those of label 1 there, and of the target, 0 or 1, otherwise;
- "grid_size": rows and columns of patches, so that N = rows * columns, row by row;
- "classifier_prediction" and "classifier_probabilities" float32 [K], of the whole image;
- with an explainer the same of its own prediction (eq. 6), and "agreement", whether both predict one class.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Value
from datasets import Sequence as ListOf

from ..attribution_methods import Method
from ..data.images import ProcessedImages
from ..masking import MaskedClassifier
from ..objectives import OBJECTIVES
from ..targets import activation, label_names, predicted_targets, target_attributions, target_names

#: The columns that a summary is made of.
SUMMARISED = ("label", "classifier_prediction", "explainer_prediction", "agreement")


@dataclass(frozen=True)
class Part:
    """The images of one shard.

    Args:
        images: the images, without labels.
        positions: the position of each in its data set.
        names: their names.
        labels: the classifier's label of each, or None.
    """

    images: ProcessedImages
    positions: Sequence[int]
    names: Sequence[str]
    labels: Sequence[int | None]


@dataclass(frozen=True)
class Explained:
    """What explains images.

    Args:
        v: the classifier.
        name: the name of the method.
        method: the method.
        explainer: the trained explainer that the method asks, if any.
        by_label: whether the images' labels are explained, in place of the classifier's predictions.
        all_classes: whether the maps of all classes are kept: one forward of an explainer whose values need nothing
            else, otherwise K calls of the method.
        dtype: of the kept maps: "float32" or "float16".
    """

    v: MaskedClassifier
    name: str
    method: Method
    explainer: Any
    by_label: bool
    all_classes: bool
    dtype: str

    @torch.no_grad()
    def rows(self, part: Part, batch_size: int) -> Iterator[dict[str, Any]]:
        """The rows of a part, batch by batch: column -> values of the batch's images.

        Raises:
            ValueError: where an answer or a map is NaN or infinite, also after rounding to `dtype`; it names the image.
        """
        for start in range(0, len(part.names), batch_size):
            places = range(start, min(start + batch_size, len(part.names)))
            pixel_values = part.images.batch(list(places))["pixel_values"].to(self.v.device)
            names = [part.names[place] for place in places]
            grid = self.v.patch_grid(pixel_values)
            logits = self.v.whole_logits(pixel_values)
            labels = [part.labels[place] for place in places]
            targets = torch.tensor(labels, device=logits.device) if self.by_label else predicted_targets(logits)
            output = None if self.explainer is None else self.explainer(pixel_values.to(self.explainer.dtype))
            maps = self._maps(pixel_values, targets, output)
            answers = {"classifier": logits} if output is None else {"classifier": logits, "explainer": output.logits}
            for what, values in {**answers, self.name: maps.flatten(1)}.items():
                _check_finite(what, values, names)
            kept = maps.cpu().numpy().astype(self.dtype)
            _check_finite(f"{self.name} in {self.dtype}", torch.from_numpy(kept).flatten(1), names)
            yield {
                "index": [part.positions[place] for place in places],
                "name": names,
                "label": labels,
                "target": targets.tolist(),
                "attributions": kept,
                "grid_size": [list(grid)] * len(names),
                **_predictions(answers),
            }

    def _maps(self, pixel_values: torch.Tensor, targets: torch.Tensor, output: Any) -> torch.Tensor:
        """The maps [B, N] of the targets, or [B, N, K] of all classes."""
        objective = OBJECTIVES.get(self.name)
        if objective is not None and not objective.normalised:  # the explainer's output is the map
            return output.attributions if self.all_classes else target_attributions(output.attributions, targets)
        if not self.all_classes:
            return self.method(pixel_values, targets)
        classes = range(1, 2) if self.v.num_labels == 1 else range(self.v.num_labels)
        return torch.stack([self.method(pixel_values, torch.full_like(targets, k)) for k in classes], dim=-1)

    def features(self, num_patches: int) -> Features:
        """The columns and their types."""
        num_classes = self.v.num_labels
        target = ClassLabel(names=unique_names(target_names(label_names(self.v.config))))
        maps = (
            Array2D((num_patches, num_classes), self.dtype) if self.all_classes else _list_of(self.dtype, num_patches)
        )
        columns = {
            "index": Value("int64"),
            "name": Value("string"),
            "label": target,
            "target": target,
            "attributions": maps,
            "grid_size": _list_of("int32", 2),
        }
        for model in ["classifier"] if self.explainer is None else ["classifier", "explainer"]:
            columns[f"{model}_prediction"] = target
            columns[f"{model}_probabilities"] = _list_of("float32", num_classes)
        return Features(columns if self.explainer is None else {**columns, "agreement": Value("bool")})

    def dataset(self, part: Part, batch_size: int) -> Dataset:
        """The rows of a part as a data set; raises ValueError as `rows` does, and where its maps differ in size."""
        batches = list(self.rows(part, batch_size))
        if len(sizes := {tuple(size) for batch in batches for size in batch["grid_size"]}) > 1:
            raise ValueError(
                f"the image processor gives images of {sorted(sizes)} patches; all maps of a data set have one size: "
                "give a classifier whose image processor crops or resizes to one"
            )
        columns = {name: [value for batch in batches for value in batch[name]] for name in batches[0]}
        features = self.features(math.prod(batches[0]["grid_size"][0]))
        return Dataset.from_dict({name: columns[name] for name in features}, features)


def _list_of(dtype: str, length: int) -> ListOf:
    return ListOf(Value(dtype), length=length)


def unique_names(names: Sequence[str]) -> list[str]:
    """Names of classes, with their number where several are equal, as ImageNet's two cranes: `ClassLabel` asks so."""
    number = Counter(names)
    return [f"{name} ({index})" if number[name] > 1 else name for index, name in enumerate(names)]


def _predictions(answers: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The columns of predictions from the logits [B, K] of each model, and their agreement where there are two."""
    columns: dict[str, Any] = {}
    for model, logits in answers.items():
        columns[f"{model}_prediction"] = predicted_targets(logits).tolist()
        columns[f"{model}_probabilities"] = activation(logits).cpu().numpy()
    if len(answers) > 1:
        pairs = zip(columns["classifier_prediction"], columns["explainer_prediction"], strict=True)
        columns["agreement"] = [one == other for one, other in pairs]
    return columns


def _check_finite(what: str, values: torch.Tensor, names: Sequence[str]) -> None:
    """Raises ValueError, which names the images, where values [B, ...] are NaN or infinite."""
    finite = values.isfinite().all(dim=1).tolist()
    if bad := [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]:
        raise ValueError(f"{what} gives NaN or infinity for {bad[:10]}: leave them out, or give another model or type")


def summary(rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """What the rows say together, from their columns `SUMMARISED`.

    Returns:
        "images", their number; "labelled", how many of them have a label; "classifier_accuracy" and, with an explainer,
        "explainer_accuracy" among these (None where there are none), and "agreement" among all, as shares.
    """
    counts: Counter[str] = Counter()
    models: set[str] = set()
    for row in rows:
        counts["images"] += 1
        counts["agreement"] += row.get("agreement", False)
        models |= {name.removesuffix("_prediction") for name in row if name.endswith("_prediction")}
        if row["label"] is not None:
            counts["labelled"] += 1
            for model in models:
                counts[model] += row[f"{model}_prediction"] == row["label"]
    found: dict[str, Any] = {"images": counts["images"], "labelled": counts["labelled"]}
    for model in sorted(models):
        found[f"{model}_accuracy"] = counts[model] / counts["labelled"] if counts["labelled"] else None
    if "explainer" in models:
        found["agreement"] = counts["agreement"] / counts["images"]
    return found
