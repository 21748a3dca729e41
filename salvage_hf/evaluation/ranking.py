"""Which method comes first by a score, by how much, and whether the test of `significance` says that this is sure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..attribution_methods import REGISTRY
from .scores import SCORES, Score
from .significance import MIN_MARKED, comparable, lead, mark, measured_images, not_worse
from .tables import as_tensor

#: The methods that are explainers trained for the classifier, or made with one.
TRAINED = tuple(name for name, method in REGISTRY.items() if method.needs == "explainer")

#: How many of the other methods stand beside the trained ones where there is no room for all.
_OTHERS_SHOWN = 3


@dataclass(frozen=True)
class Ranking:
    """The methods in the order of a score.

    Args:
        score: the score.
        values: method -> values of the score per image [I], best mean first; without methods that have hardly any.
        images: on how many images the score is defined.
        tied: the methods that the test cannot tell from the first; None where it is not made (one method, few images).
    """

    score: Score
    values: Mapping[str, torch.Tensor]
    images: int
    tied: tuple[str, ...] | None

    @property
    def names(self) -> list[str]:
        """The methods, best first."""
        return list(self.values)

    def compared(self, better: str, worse: str) -> tuple[float, float, float]:
        """By how much one method is better than another: see `lead`."""
        sign = 1 if self.score.higher_is_better else -1
        return lead(sign * self.values[worse], sign * self.values[better])

    def is_apart(self, better: str, worse: str) -> bool:
        """Whether the test tells one method from another that is worse."""
        sign = 1 if self.score.higher_is_better else -1
        return not not_worse(sign * self.values[worse], sign * self.values[better])


def ranking(methods: Mapping[str, Mapping[str, Any]], score: Score) -> Ranking | None:
    """The order of the methods by a score; None where no image has it.

    Means are compared on the images on which all of them are defined, as `mark` does.

    Args:
        methods: name of a method -> its entry in results.json.
        score: the score.
    """
    values = {name: as_tensor(entry[score.name]) for name, entry in methods.items() if entry.get(score.name)}
    images = measured_images(values) if values else 0
    if not images:
        return None
    better = comparable(values, score.higher_is_better)
    shared = ~torch.stack(list(better.values())).isnan().any(dim=0)
    # Where no image has the score of all methods, each is judged by the images that it has.
    means = {name: (column[shared] if shared.any() else column).nanmean().item() for name, column in better.items()}
    order = sorted(better, key=lambda name: means[name], reverse=True)
    marks = mark(values, score.higher_is_better)
    tied = tuple(name for name in order[1:] if marks.get(name) == "best")
    is_tested = len(order) > 1 and images >= MIN_MARKED
    return Ranking(score, {name: values[name] for name in order}, images, tied if is_tested else None)


def first_score(methods: Mapping[str, Mapping[str, Any]]) -> Score | None:
    """The score by which methods are ordered: the first of `SCORES` that an image of a method has."""
    for score in SCORES.values():
        if any(value is not None for entry in methods.values() for value in entry.get(score.name, ())):
            return score
    return None


def shown_methods(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The methods of large pictures, best first: the trained ones, the best of the others, and random maps."""
    score = first_score(methods)
    order = ranking(methods, score) if score else None
    names = order.names if order else list(methods)
    others = [name for name in names if name not in TRAINED and name != "random"][:_OTHERS_SHOWN]
    return [name for name in names if name in (*TRAINED, *others, "random")]
