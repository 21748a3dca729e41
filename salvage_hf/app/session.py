"""What happens on each event of the app, without a page: the models of all visitors, and the session of one.

A session is never changed: every event makes a new one. Letters: N patches; L targets, which are the K labels, or 2
where K = 1.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import attribution_methods
from ..attribution_methods import REGISTRY
from ..data.pictures import open_image
from ..explainer import RISE_BUDGET, Explainer, Prepared, class_shares
from ..explanation import Explanation
from ..masking import MaskedClassifier
from ..tensors import one_of, whole_number

#: Which part of an explainer's map is shown; "all" is the difference of the two others.
EVIDENCE = ("all", "positive", "negative")


@dataclass(frozen=True, eq=False)
class Session:
    """What one visitor has chosen.

    Args:
        name: of the picture's file, without its suffix.
        prepared: the picture.
        output: what the explainer returned for it, which holds the maps of all classes and u(S); None where there is
            no explainer that classifies.
        whole: what the models say of the whole picture, with the maps that this took: of all classes where `output`
            has them, otherwise of the most probable class.
        target: the chosen class.
        method: what makes the map beside the main one; "" for none.
        budget: the forwards that improve a map, 0 for none.
        main: the map of the chosen class by the explainer's own method, or the default one.
        beside: the map of the same class by `method`; None without.
        visible: bool [N], the subset S of patches that are shown.
        cursor: the patch that was touched last.
    """

    name: str
    prepared: Prepared
    output: Any
    whole: Explanation
    target: int
    method: str
    budget: int
    main: Explanation
    beside: Explanation | None
    visible: torch.Tensor
    cursor: int = 0

    @property
    def num_visible(self) -> int:
        """How many patches are shown."""
        return int(self.visible.sum())


@dataclass(frozen=True)
class Answers:
    """What the models say of the visible patches S.

    Args:
        classifier: v(S), float32 [L]; None where no classifier is asked.
        explainer: u(S), float32 [L]; None where no explainer estimates it.
    """

    classifier: torch.Tensor | None
    explainer: torch.Tensor | None


class Models:
    """The models, which all sessions share and none changes.

    Args:
        explainer: explains by its own method.

    Attributes:
        explainer: the same.
        methods: names of the methods that suit the classifier and can stand beside the explainer's own.
    """

    def __init__(self, explainer: Explainer):
        self.explainer = explainer
        self.methods = [] if explainer.v is None else suiting_methods(explainer.v, leave_out=[explainer.method])

    def start(self, file: str | Path, method: str = "", budget: int = 0) -> Session:
        """The session of a new picture, with its most probable class chosen and every patch visible.

        Args:
            file: the picture.
            method, budget: as in `Session`.

        Raises:
            ValueError: where the picture cannot be read or processed, or a model answers with NaN or infinite values.
        """
        explainer, name = self.explainer, Path(file).stem
        prepared = explainer.prepare(open_image(file, name=Path(file).name))
        output, targets = None, None
        if explainer.classifies:
            with torch.no_grad():
                output = explainer.model(prepared.pixel_values.to(explainer.model.device, explainer.model.dtype))
            targets = list(range(len(explainer.label_names)))
        whole = explainer.explain([prepared], targets, top=1, output=output)[0]
        said = next(iter(whole.probabilities.values()))  # the classifier's, where it was asked
        target, visible = int(said.argmax()), torch.ones(len(whole.attributions), dtype=torch.bool)
        session = Session(name, prepared, output, whole, target, "", 0, _map_of(whole, target), None, visible)
        return self.choose(session, target, method, budget)

    def choose(self, session: Session, target: int, method: str = "", budget: int = 0) -> Session:
        """The session with the maps of a class; what they share with those before is not computed again.

        Raises:
            ValueError: where the class, the method or the budget is none that the models have.
        """
        target = whole_number("target", target, at_least=0)
        if target >= len(self.explainer.label_names):
            raise ValueError(f"target must be one of the {len(self.explainer.label_names)} classes, got {target}")
        if method and method not in self.methods:
            raise ValueError(f"method must be one of {', '.join(self.methods)}, or empty, got {method!r}")
        same = (target, budget) == (session.target, session.budget)
        main = session.main if same else self._main(session, target, budget)
        beside = session.beside if same and method == session.method else self._beside(session, target, method, budget)
        return replace(session, target=target, method=method, budget=budget, main=main, beside=beside)

    def _main(self, session: Session, target: int, budget: int) -> Explanation:
        if not budget and target in session.whole.classes:
            return _map_of(session.whole, target)
        own = self.explainer
        if budget:
            name_or_model = own.v if own.model is None else own.model
            classifier = None if own.model is None else own.v
            asked = self._budget_of(own.method, budget, session)
            own = Explainer(name_or_model, own.method, asked, classifier, processor=own.processor, seed=own.seed)
        return own.explain([session.prepared], [target], output=session.output)[0]

    def _beside(self, session: Session, target: int, method: str, budget: int) -> Explanation | None:
        if not method:
            return None
        own, asked = self.explainer, self._budget_of(method, budget, session)
        other = Explainer(own.v, method, asked, processor=own.processor, seed=own.seed)
        return other.explain([session.prepared], [target])[0]

    def _budget_of(self, method: str, budget: int, session: Session) -> int:
        """How often a method asks: one that does nothing else never asks less often than it must."""
        info = REGISTRY[method]
        if info.own_budget is None:
            return budget
        return max(budget or RISE_BUDGET, info.least_budget(len(session.visible)))

    @torch.no_grad()
    def answers(self, session: Session) -> Answers:
        """v(S) and u(S) of the visible patches."""
        subsets, classifier, explainer = session.visible[None, None], None, None  # [1, 1, N]
        if self.explainer.v is not None:
            logits = self.explainer.v.logits(session.prepared.pixel_values, subsets)  # [1, 1, K]
            classifier = class_shares("classifier", logits[0])[0]
        if session.output is not None:
            model = self.explainer.model
            logits = model.subset_logits(session.output, subsets.to(model.device))
            explainer = class_shares("explainer", logits[0])[0]
        return Answers(classifier, explainer)


def suiting_methods(v: MaskedClassifier, leave_out: Collection[str] = ()) -> list[str]:
    """The methods that need no training and suit a classifier, without those whose packages are not installed."""
    found = []
    for name, info in REGISTRY.items():
        if info.objective is not None or name in leave_out:
            continue
        try:
            attribution_methods.load(name, v)
        except (ValueError, ModuleNotFoundError):
            continue
        found.append(name)
    return found


def _map_of(explanation: Explanation, target: int) -> Explanation:
    """An explanation with the map of one of its classes alone."""
    place = explanation.classes.index(target)
    return replace(explanation, classes=(target,), attributions=explanation.attributions[:, place : place + 1])


# Which patches are visible


def show_all(session: Session) -> Session:
    """Shows every patch."""
    return replace(session, visible=torch.ones_like(session.visible))


def show_none(session: Session) -> Session:
    """Hides every patch."""
    return replace(session, visible=torch.zeros_like(session.visible))


def invert(session: Session) -> Session:
    """Shows what is hidden, and hides what is visible."""
    return replace(session, visible=~session.visible)


def move(session: Session, patch: int) -> Session:
    """Moves the cursor to a patch, and changes no patch."""
    return replace(session, cursor=patch)


def toggle(session: Session, patch: int) -> Session:
    """Hides a patch that is visible, or shows one that is hidden; the cursor moves there."""
    visible = session.visible.clone()
    visible[patch] = ~visible[patch]
    return replace(session, visible=visible, cursor=patch)


def show_share(session: Session, share: float, highest_first: bool = True) -> Session:
    """Shows a share of the patches, 0 to 1, along the main map's order; equal patches follow in the order of the grid.

    With `highest_first` patches are inserted, what speaks for the class first; without, they are deleted in this order,
    so that what speaks against the class is visible longest.
    """
    order = session.main.attributions[:, 0].argsort(descending=highest_first, stable=True)
    visible = torch.zeros_like(session.visible)
    visible[order[: round(share * len(visible))]] = True
    return replace(session, visible=visible)


def patch_in_grid(session: Session, row: Any, column: Any) -> int:
    """The number of a patch whose row and column count from 1; raises ValueError where there is none."""
    place = []
    for name, value, count in zip(("row", "column"), (row, column), session.whole.grid_size, strict=True):
        value = whole_number(name, value, at_least=1)
        if value > count:
            raise ValueError(f"{name} must be at most {count}, got {value}")
        place.append(value - 1)
    return place[0] * session.whole.grid_size[1] + place[1]


def patch_at(session: Session, x: float, y: float) -> int | None:
    """The patch at a pixel of the drawn picture (`Explanation.drawn`); None where the model sees nothing of it."""
    patches = patches_of_pixels(session)
    if not (0 <= x < patches.shape[1] and 0 <= y < patches.shape[0]):
        return None
    patch = int(patches[int(y), int(x)])
    return None if patch < 0 else patch


def patches_of_pixels(session: Session) -> np.ndarray:
    """The patch of each pixel of the drawn picture: int [H, W], -1 where the model sees nothing of it."""
    (picture, geometry), (rows, columns) = session.whole.drawn(), session.whole.grid_size
    left, top, right, bottom = geometry.box
    x, y = np.arange(picture.width) + 0.5, np.arange(picture.height)[:, None] + 0.5
    row, column = (
        np.floor(place).astype(int)
        for place in ((y - top) / (bottom - top) * rows, (x - left) / (right - left) * columns)
    )
    left, top, right, bottom = geometry.seen
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    inside = inside & (x > left) & (x < right) & (y > top) & (y < bottom)
    return np.where(inside, row * columns + column, -1)


def evidence_of(session: Session, kind: str) -> tuple[torch.Tensor, float]:
    """The values [N] of the main map that are shown, and the absolute value that has the full colour.

    The parts phi+ and phi- (eq. 3) are the explainer's, and have one scale of colours; phi- speaks against the class
    and has the sign of it. A map that was improved by a budget, or made without an explainer, has no parts, and is
    shown as it is.
    """
    if one_of("kind", kind, EVIDENCE) == "all" or session.output is None or session.budget:
        return session.main.attributions[:, 0], session.main.limit
    place = session.target if session.output.attributions.shape[-1] > 1 else 0
    positive, negative = (
        values[0, :, place].float().cpu() for values in (session.output.positive_values, session.output.negative_values)
    )
    if session.target == 0 and session.output.attributions.shape[-1] == 1:
        positive, negative = negative, positive  # with one label, what speaks for it speaks against "not LABEL"
    limit = float(torch.cat([positive, negative]).abs().max())
    return (positive if kind == "positive" else -negative), limit
