"""One explained image: its maps, what the classifier and the explainer say of it, as picture, numbers or file.

Letters: N patches; C explained classes; L targets, which are the K labels, or 2 where K = 1 (`targets.target_names`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .attribution_methods import REGISTRY
from .data.marks import MARK, PICTURE_FORMATS
from .files import write_bytes
from .modeling import Geometry, overlay
from .tensors import one_of
from .version import VERSION

#: What `Explanation.save` can write, which are the suffixes of the files.
FORMATS = (*PICTURE_FORMATS, "npz", "json")

#: The most pixels of a side that are kept of a picture: more could not be seen, even on a page that is enlarged to
#: twice its size, and would only cost memory.
DRAWN_PIXELS = 660

#: The least probability of a class that is named behind the most probable one.
LEAST_SHARE = 0.01

#: How many classes of a model's prediction a picture names.
_NAMED = 3


@dataclass(frozen=True, eq=False)
class Explanation:
    """Maps of an image, and the probabilities of the classifier and of the explainer.

    Args:
        image: the picture, upright, in RGB; scaled down where a side is longer than `DRAWN_PIXELS`.
        image_size: (width, height) in pixels of the picture that was given.
        geometry: where in that picture the model's view lies, in pixels.
        grid_size: (rows, columns) of patches in the view, N = rows * columns, row by row.
        classes: the explained classes, C of the targets 0..L-1.
        attributions: float32 [N, C], a map per explained class; positive where a patch speaks for the class.
        label_names: the names of all L targets.
        classifier_probabilities: float32 [L], of the whole image; None where the classifier was not asked.
        explainer_probabilities: float32 [L], those of "classifying by explaining" (eq. 6); None where there is no
            explainer, or one that does not classify (ViT-Shapley, FastSHAP).
        method: the name of the attribution method.
        budget: forwards of the classifier for each map; 0 where the method has no such number.
        classifier, explainer: their names without local paths; None where there is none.
        problem: why the classifier was not asked; "" where it was.
        effects: float64 [N, C], where the maps were refined, how much higher the probability is with a patch than
            without it (`refinement.RefinedAttributions`); otherwise None.
        stderr: float64 [N, C], the standard errors of the effects; infinite where nothing was measured.
        version: of this library.
    """

    image: Image.Image
    image_size: tuple[int, int]
    geometry: Geometry
    grid_size: tuple[int, int]
    classes: tuple[int, ...]
    attributions: torch.Tensor
    label_names: tuple[str, ...]
    classifier_probabilities: torch.Tensor | None
    explainer_probabilities: torch.Tensor | None
    method: str
    budget: int = 0
    classifier: str | None = None
    explainer: str | None = None
    problem: str = ""
    effects: torch.Tensor | None = None
    stderr: torch.Tensor | None = None
    version: str = VERSION

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the explained classes."""
        return tuple(self.label_names[index] for index in self.classes)

    @property
    def probabilities(self) -> dict[str, torch.Tensor]:
        """The name of each model that answered, "classifier" or "explainer" -> its probabilities [L]."""
        both = {"classifier": self.classifier_probabilities, "explainer": self.explainer_probabilities}
        return {name: values for name, values in both.items() if values is not None}

    @property
    def disagree(self) -> bool:
        """Whether the classifier predicts another class than the explainer."""
        return len({int(values.argmax()) for values in self.probabilities.values()}) > 1

    @property
    def warnings(self) -> list[str]:
        """What nobody who looks at the maps may overlook, in sentences."""
        found = []
        if self.disagree:
            said, explained = (self.label_names[int(values.argmax())] for values in self.probabilities.values())
            found.append(f"They disagree: the classifier predicts {said}, the explainer {explained}.")
        if self.problem:
            found.append("The classifier was not asked: what it says about this image is not known.")
        return found

    @property
    def made_with(self) -> str:
        """The method, both models and the version, in one line."""
        method = f"method: {REGISTRY[self.method].title}"
        if self.budget:
            refined = "refined by " if self.effects is not None else ""
            method += f", {refined}{self.budget:,} forwards a map"
        models = [f"{kind}: {name}" for kind in ("classifier", "explainer") if (name := getattr(self, kind))]
        return " · ".join([method, *models, f"salvage-hf {self.version}"])

    @property
    def is_cropped(self) -> bool:
        """Whether the model sees a part of the picture only."""
        left, top, right, bottom = self.geometry.seen
        return left > 0.5 or top > 0.5 or right < self.image_size[0] - 0.5 or bottom < self.image_size[1] - 0.5

    def said(self, model: str) -> str:
        """What a model says: its most probable classes, without those below `LEAST_SHARE` behind the first."""
        values, indices = self.probabilities[model].topk(min(_NAMED, len(self.label_names)))
        pairs = list(zip(values.tolist(), indices.tolist(), strict=True))
        shown = [pair for number, pair in enumerate(pairs) if number == 0 or pair[0] >= LEAST_SHARE]
        return ", ".join(f"{self.label_names[index]} {100 * share:.1f}%" for share, index in shown)

    def shares(self, index: int) -> str:
        """The probability of a class, by each model that answered."""
        return ", ".join(f"{model} {100 * values[index]:.1f}%" for model, values in self.probabilities.items())

    def drawn(self) -> tuple[Image.Image, Geometry]:
        """The picture as maps are drawn over it, and its geometry; a small one is enlarged, so that maps are smooth."""
        factor = max(1, DRAWN_PIXELS // max(self.image.size))
        picture = self.image.resize((factor * self.image.width, factor * self.image.height), Image.Resampling.NEAREST)
        return picture, self.geometry.scaled(picture.width / self.image_size[0], picture.height / self.image_size[1])

    def overlays(self) -> list[Image.Image]:
        """Each map over the picture, all in one scale of colours."""
        picture, geometry = self.drawn()
        maps = self.attributions.T.unflatten(1, self.grid_size).numpy()
        return [overlay(picture, values, geometry, self.limit) for values in maps]

    @property
    def limit(self) -> float:
        """The absolute value that has the full colour, the largest of all maps."""
        return float(self.attributions.abs().max())

    def plot(self) -> Any:
        """The image and its maps as a figure of matplotlib, with what the models say."""
        from .evaluation.map_panels import Note, map_panels

        titles = [(name, self.shares(index)) for name, index in zip(self.labels, self.classes, strict=True)]
        notes = [Note(f"{model.capitalize()}: {self.said(model)}") for model in self.probabilities]
        notes += [Note(text, warns=True) for text in self.warnings]
        panels = [(("image",), self.image), *zip(titles, self.overlays(), strict=True)]
        return map_panels(panels, notes, self.made_with, self.limit, self.is_cropped)

    def to_json(self) -> dict[str, Any]:
        """All but the pixels as numbers, texts, lists and dicts, which `json.dumps` takes as they are.

        A standard error that is infinite, because nothing was measured, is None.
        """
        return {
            "made_by": MARK,
            "version": self.version,
            "method": self.method,
            "budget": self.budget,
            "classifier": self.classifier,
            "explainer": self.explainer,
            "problem": self.problem,
            "disagree": self.disagree,
            "image_size": list(self.image_size),
            "geometry": {"box": list(self.geometry.box), "seen": list(self.geometry.seen)},
            "grid_size": list(self.grid_size),
            "classes": list(self.classes),
            "labels": list(self.labels),
            "label_names": list(self.label_names),
            "classifier_probabilities": _listed(self.classifier_probabilities),
            "explainer_probabilities": _listed(self.explainer_probabilities),
            "attributions": _listed(self.attributions),
            "effects": _listed(self.effects),
            "stderr": _listed(self.stderr),
        }

    def content(self, kind: str) -> bytes:
        """A file of one of the `FORMATS`, as bytes; an npz file holds what `to_json` returns, as arrays."""
        if kind == "json":
            return (json.dumps(self.to_json()) + "\n").encode()
        if kind == "npz":
            stated: dict[str, Any] = {**self.to_json(), "made_by": MARK.encode(), **self.geometry._asdict()}
            del stated["geometry"]
            stated |= {name: values.numpy() for name, values in self._tensors().items()}
            buffer = BytesIO()
            arrays: dict[str, Any] = {name: np.asarray(value) for name, value in stated.items() if value is not None}
            np.savez(buffer, **arrays)
            return buffer.getvalue()
        from .evaluation.plots import file_content

        return file_content(self.plot(), one_of("kind", kind, FORMATS))

    def save(self, path: str | Path) -> None:
        """Writes a file whole or not at all; its suffix says which of the `FORMATS` it has.

        Raises:
            ValueError: where the suffix is of no format.
            OSError: where the file cannot be written.
        """
        write_bytes(Path(path), self.content(format_of(path)))

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def _repr_png_(self) -> bytes:
        """The picture, as notebooks show it."""
        return self.content("png")

    def __repr__(self) -> str:
        said = "; ".join(f"{model}: {self.said(model)}" for model in self.probabilities)
        return f"Explanation({said}; maps of {', '.join(self.labels)}; {self.made_with})"


def format_of(path: str | Path) -> str:
    """The format that a file's suffix says; raises ValueError where it is none of the `FORMATS`."""
    suffix = Path(path).suffix
    if suffix[1:].lower() not in FORMATS:
        raise ValueError(
            f"path={str(path)!r} ends in {suffix!r}; the suffix says the format and is one of {', '.join(FORMATS)}"
        )
    return suffix[1:].lower()


def drawn_copy(picture: Image.Image) -> Image.Image:
    """A picture, scaled down where a side is longer than `DRAWN_PIXELS`."""
    scale = DRAWN_PIXELS / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(scale * side)) for side in picture.size)
    return picture.resize((width, height), reducing_gap=3.0)


def _listed(values: torch.Tensor | None) -> Sequence[Any] | None:
    """A tensor as nested lists, in which None stands for what is not finite, because JSON has no such numbers."""
    if values is None:
        return None
    numbers = values.numpy().astype(object)
    numbers[~values.isfinite().numpy()] = None
    return numbers.tolist()
