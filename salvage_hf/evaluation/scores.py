"""The registry of scores: what the benchmark computes, the tables show, the report draws and the metrics return.

A new score is computed in `faithfulness` or `localization`, has a folder in metrics/, and is one entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from .. import localization

#: How a score is computed: by Algorithm 1, by Algorithm 2, or from an annotated region.
Family = Literal["rank", "relative", "region"]


@dataclass(frozen=True)
class Score:
    """What is known of a score.

    Args:
        name: its name in results, metrics and arguments, and as an attribute of `RankScores` or `RelativeScores`.
        title: its name in tables and figures.
        higher_is_better: the direction of the score.
        family: how it is computed; the scores of a family come from one pass over the images.
        table: the paper's table that shows it, a key of `TABLES`.
        meaning: what it says, in a sentence for readers who have never heard of it.
        has_curve: whether it is the mean of a curve over the sizes 1..N, which the benchmark keeps too.
        has_stderr: whether the benchmark keeps its standard error over the draws, per image.
        terms: if the score is a difference, the names of its two terms: it is the first minus the second.
        of_region: computes a score of the family "region": (maps [B, H, W], masks bool [B, H, W]) -> [B], or NaN.
    """

    name: str
    title: str
    higher_is_better: bool
    family: Family
    table: str
    meaning: str
    has_curve: bool = False
    has_stderr: bool = False
    terms: tuple[str, str] | None = None
    of_region: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    @property
    def heading(self) -> str:
        """The title with an arrow in the direction of better scores: "R-SRG ↑"."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"

    @property
    def kept(self) -> tuple[str, ...]:
        """Columns of the benchmark for I images: the score [I], its curve [I, N], its standard error [I]."""
        curve = (f"{self.name}_curve",) if self.has_curve else ()
        stderr = (f"{self.name}_stderr",) if self.has_stderr else ()
        return (self.name, *curve, *stderr)


#: The paper's tables of scores: name of the file -> title.
TABLES = {
    "table1": "Table 1: Faithfulness and localisation",
    "table2": "Table 2: Insertion and deletion",
    "table3": "Table 3: Relative insertion and deletion",
}

#: Name -> score, in the order of the paper's columns.
SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score(
            "srg",
            "SRG",
            True,
            "rank",
            "table1",
            "LIF minus MIF: how much more probable the class is for the classifier while it sees the patches "
            "that the map values most than while it sees those that the map values least. Maps of random "
            "numbers get about 0.",
            terms=("lif", "mif"),
        ),
        Score(
            "r_srg",
            "R-SRG",
            True,
            "relative",
            "table1",
            "R-LIF minus R-MIF: like SRG, but patches are drawn by their values, so that the values count and "
            "not their order alone. Maps of random numbers get about 0.",
            has_stderr=True,
            terms=("r_lif", "r_mif"),
        ),
        Score(
            "rma",
            "RMA",
            True,
            "region",
            "table1",
            "Relevance mass accuracy: the share of the map's positive values that lies in the marked region of "
            "the image.",
            of_region=localization.relevance_mass_accuracy,
        ),
        Score(
            "rra",
            "RRA",
            True,
            "region",
            "table1",
            "Relevance rank accuracy: of the pixels with the highest values, as many as the marked region has, "
            "the share that lies in this region.",
            of_region=localization.relevance_rank_accuracy,
        ),
        Score(
            "lif",
            "LIF",
            True,
            "rank",
            "table2",
            "Least important first: patches are removed from the lowest value on, and the class's probability "
            "is averaged over all steps. High where the patches that the map values are enough for the "
            "classifier.",
            has_curve=True,
        ),
        Score(
            "mif",
            "MIF",
            False,
            "rank",
            "table2",
            "Most important first: patches are removed from the highest value on, and the class's probability "
            "is averaged over all steps. Low where the classifier loses the class without the patches that the "
            "map values.",
            has_curve=True,
        ),
        Score(
            "r_lif",
            "R-LIF",
            True,
            "relative",
            "table3",
            "LIF with chance: the patches that stay are drawn, each in proportion to its value.",
            has_curve=True,
        ),
        Score(
            "r_mif",
            "R-MIF",
            False,
            "relative",
            "table3",
            "MIF with chance: the patches that stay are drawn, each in proportion to one minus its value.",
            has_curve=True,
        ),
    )
}


def scores_of_family(family: Family) -> list[Score]:
    """The scores that are computed together, in the order of `SCORES`."""
    return [score for score in SCORES.values() if score.family == family]


def scores_of_table(table: str) -> list[Score]:
    """The scores of a table of the paper, in the order of its columns."""
    return [score for score in SCORES.values() if score.table == table]
