"""Tables of scores: mean and standard error over images, best and second marked by a test, in Markdown, LaTeX, HTML."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .faithfulness import mean_and_stderr

#: Scores of the benchmark, with whether higher is better.
SCORES = {
    "srg": True,
    "r_srg": True,
    "rma": True,
    "rra": True,
    "lif": True,
    "mif": False,
    "r_lif": True,
    "r_mif": False,
}

#: On fewer images nothing is marked as best.
MIN_MARKED = 10


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
        lines = [f"| {' | '.join(self.header)} |", "|---" * len(self.header) + "|"]
        lines += [f"| {' | '.join(marks[cell.mark].format(cell.text) for cell in row)} |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A tabular of the package booktabs."""
        marks = {"": "{}", "best": "\\textbf{{{}}}", "second": "\\underline{{{}}}"}
        symbols = {"±": "$\\pm$", "↑": "$\\uparrow$", "↓": "$\\downarrow$", "%": "\\%", "_": "\\_", "&": "\\&"}

        def line(cells: Sequence[str]) -> str:
            joined = "\0".join(cells)
            for symbol, command in symbols.items():
                joined = joined.replace(symbol, command)
            return joined.replace("\0", " & ") + " \\\\"

        body = [line([marks[cell.mark].format(cell.text) for cell in row]) for row in self.rows]
        begin = f"\\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}"
        parts = [begin, "\\toprule", line(self.header), "\\midrule", *body, "\\bottomrule", "\\end{tabular}"]
        return "\n".join(parts) + "\n"

    def html(self) -> str:
        """A <table>."""
        marks = {"": "{}", "best": "<b>{}</b>", "second": "<u>{}</u>"}
        header = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        rows = (
            "".join(f"<td>{marks[cell.mark].format(html.escape(cell.text))}</td>" for cell in row) for row in self.rows
        )
        return f"<table><tr>{header}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def title_of(score: str) -> str:
    """How a score is written: "R-SRG ↑"."""
    return f"{score.upper().replace('_', '-')} {'↑' if SCORES[score] else '↓'}"


def score_table(
    scores: Mapping[str, Mapping[str, Mapping[str, Sequence[float | None]]]], columns: Sequence[str]
) -> Table:
    """A row per method and a column per data set and score, in percent.

    Args:
        scores: data set -> title of a method -> score -> a value (0..1) per image, None where it is undefined.
        columns: the scores; those that a data set has of no method are left out.
    """
    names = list(dict.fromkeys(name for methods in scores.values() for name in methods))
    header, cells = ["method"], {name: [Cell(name)] for name in names}
    for dataset, methods in scores.items():
        for column in columns:
            values = {name: _tensor(of[column]) for name, of in methods.items() if of.get(column)}
            if not values:
                continue
            marks = mark(values, SCORES[column])
            header.append(f"{dataset} {title_of(column)}" if len(scores) > 1 else title_of(column))
            for name in names:
                text = percent(values[name]) if name in values else "-"
                cells[name].append(Cell(text, marks.get(name, "")))
    return Table(header, list(cells.values()))


def percent(values: torch.Tensor) -> str:
    """Mean and standard error over images, of values in 0..1."""
    mean, stderr = mean_and_stderr(values)
    return f"{100 * mean:.1f} ± {100 * stderr:.1f}"


def _tensor(values: Sequence[float | None]) -> torch.Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)


def mark(scores: Mapping[str, torch.Tensor], higher_is_better: bool) -> dict[str, str]:
    """Which methods are "best" and which "second".

    Best are the one with the best mean and all that it does not beat (`not_worse`); second, of the others, likewise.
    Means are compared on the images on which the scores of all are defined. None is marked without another to compare
    with, nor on fewer than `MIN_MARKED` images, where the test says nothing; nor a method whose score is undefined for
    most of the images on which any method's is defined.

    Args:
        scores: method -> values per image [I], NaN where undefined.
        higher_is_better: the direction of the score.
    """
    defined = torch.stack([~values.isnan() for values in scores.values()])  # [methods, I]
    images = int(defined.any(dim=0).sum())
    if len(scores) < 2 or images < MIN_MARKED:
        return {}
    left = {
        name: values if higher_is_better else -values
        for (name, values), on in zip(scores.items(), defined, strict=True)
        if 2 * int(on.sum()) >= images
    }
    marks: dict[str, str] = {}
    for place in ("best", "second"):
        if not left:
            break
        shared = ~torch.stack(list(left.values())).isnan().any(dim=0)
        if not shared.any():
            break
        leader = max(left, key=lambda name: left[name][shared].mean().item())
        level = [name for name in left if name == leader or not_worse(left[name], left[leader])]
        marks |= dict.fromkeys(level, place)
        left = {name: values for name, values in left.items() if name not in level}
    return marks


def not_worse(values: torch.Tensor, leader: torch.Tensor, resamples: int = 10_000, level: float = 0.05) -> bool:
    """Whether a paired bootstrap over images fails to show that the leader's mean is higher (one-sided).

    Args:
        values, leader: [I], scores on the same images; images without both are left out.
        resamples: samples of as many images with replacement, drawn with a fixed seed.
        level: of the test.
    """
    differences = leader - values
    differences = differences[~differences.isnan()]
    if not len(differences):
        return True
    generator = torch.Generator().manual_seed(0)
    at_most_zero = 0
    for part in torch.arange(resamples).split(1000):
        chosen = torch.randint(len(differences), (len(part), len(differences)), generator=generator)
        at_most_zero += int((differences[chosen].mean(dim=1) <= 0).sum())
    return at_most_zero >= level * resamples
