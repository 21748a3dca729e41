"""Tables of scores: mean and standard error over images, best and second marked by a test; in Markdown and LaTeX.

Keys are names of methods and scores; titles replace them where a table is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..faithfulness import mean_and_stderr
from .results import method_titles
from .scores import SCORES
from .significance import mark

#: Characters that mean something else in LaTeX, or that its fonts lack -> what stands for them.
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "%_&#${}"},
        **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"},
        **{"±": "$\\pm$", "↑": "$\\uparrow$", "↓": "$\\downarrow$"},
    }
)


@dataclass(frozen=True)
class Cell:
    """A text and how it is marked: "best", "second" or not at all."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column holds names."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> str:
        """GitHub's Markdown: best in bold, second underlined."""
        marks = {"": "{}", "best": "**{}**", "second": "<u>{}</u>"}
        rows = [[marks[cell.mark].format(cell.text) for cell in row] for row in self.rows]
        lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in (self.header, *rows)]
        return "\n".join([lines[0], "|---" * len(self.header) + "|", *lines[1:]]) + "\n"

    def latex(self) -> str:
        """A LaTeX tabular, for the package booktabs."""
        marks = {"": "{}", "best": "\\textbf{{{}}}", "second": "\\underline{{{}}}"}
        header = [text.translate(_LATEX) for text in self.header]
        rows = [[marks[cell.mark].format(cell.text.translate(_LATEX)) for cell in row] for row in self.rows]
        header_line, *lines = [" & ".join(row) + " \\\\" for row in (header, *rows)]
        begin = f"\\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}"
        parts = [begin, "\\toprule", header_line, "\\midrule", *lines, "\\bottomrule", "\\end{tabular}"]
        return "\n".join(parts) + "\n"


def score_table(
    methods_of: Mapping[str, Mapping[str, Mapping[str, Any]]], columns: Sequence[str], titles: Mapping[str, str]
) -> Table:
    """A row per method and a column per data set and score, in percent.

    Args:
        methods_of: data set -> name of a method -> score -> a value (0..1) per image, None where it is undefined.
        columns: names of scores; a score that no method of a data set has is left out.
        titles: name -> title of every method, in the order of the rows.
    """
    header, rows = ["method"], {name: [Cell(title)] for name, title in titles.items()}
    for dataset, methods in methods_of.items():
        for column in columns:
            values = {name: as_tensor(entry[column]) for name, entry in methods.items() if entry.get(column)}
            if not values:
                continue
            marks = mark(values, SCORES[column].higher_is_better)
            heading = SCORES[column].heading
            header.append(f"{dataset} {heading}" if len(methods_of) > 1 else heading)
            for name, row in rows.items():
                text = percent(values[name]) if name in values else "-"
                row.append(Cell(text, marks.get(name, "")))
    return Table(header, list(rows.values()))


def results_table(results: Mapping[str, Any], columns: Sequence[str] = tuple(SCORES)) -> str:
    """Scores of all methods of a results.json as Markdown."""
    methods = results["methods"]
    return score_table({"": methods}, columns, method_titles(methods)).markdown()


def percent(values: torch.Tensor) -> str:
    """Mean and standard error of values in 0..1, as text in percent, NaN left out.

    Without the error where only one value is defined, and "-" where none is.
    """
    mean, stderr = mean_and_stderr(values)
    if mean != mean:
        return "-"
    return f"{100 * mean:.1f}" + (f" ± {100 * stderr:.1f}" if stderr == stderr else "")


def as_tensor(values: Sequence[float | None]) -> torch.Tensor:
    """Values of a results.json, float64 [I], with NaN in place of None."""
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)
