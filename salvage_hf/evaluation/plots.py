"""Pictures: grids of them, and curves over subset sizes.

Labels are drawn as they are, by `parse_math=False`: matplotlib would read what stands between two "$" as a formula.
"""

import re
import textwrap
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..data.marks import MARK, exif_mark
from ..modeling import coloured

#: Pixels per inch of pictures in files.
DPI = 110

#: Width and height of a panel of curves, bars or a matrix in inches.
_PANEL = 3.4, 3.0

#: The least width in inches of a figure with a bar of colours, so that what stands under its ends has room.
_SCALE_WIDTH = 5.0

#: Paper and ink of figures on a dark page; the page's own colours, in report.html.
_DARK_PAPER, _DARK_INK = "#1b1f26", "#dfe3ea"


def picture_grid(
    rows: Sequence[Sequence[tuple[str, Image.Image]]], width: float = 2.2, scale: tuple[str, str, str] | None = None
) -> Figure:
    """Rows of pictures with titles. Tall pictures are drawn narrower.

    Args:
        rows: (title, picture) in every place.
        width: of a picture in inches.
        scale: what the colours of `overlay` mean at their two ends and in the middle; with it, they are drawn as a bar.
    """
    columns = max(len(row) for row in rows)
    heights = [min(3.0, max(picture.height / picture.width for _, picture in row)) for row in rows]
    lines = [max(drawable(title, width).count("\n") + 1 for title, _ in row) for row in rows]
    height = sum(width * h + 0.15 * (1 + n) for h, n in zip(heights, lines, strict=True))
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat:
        axis.axis("off")
    for row, row_axes in zip(rows, axes, strict=True):
        for (title, picture), axis in zip(row, row_axes, strict=False):
            axis.imshow(picture)
            axis.set_title(drawable(title, width), fontsize=9, parse_math=False)
    if scale:
        _add_scale(figure, axes, scale)
    return figure


def _add_scale(figure: Figure, axes: np.ndarray, meanings: tuple[str, str, str]) -> None:
    """A bar under the figure with the colours that `overlay` gives to -1, 0 and 1 on a grey picture."""
    figure.set_size_inches(max(figure.get_figwidth(), _SCALE_WIDTH), figure.get_figheight() + 0.55)
    colors = matplotlib.colors.ListedColormap(coloured(np.linspace(-1, 1, 200), 0.5))
    bar = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-1, 1), colors)
    length = min(1.0, 5 / figure.get_figwidth())  # of the figure's width, at most 5 inches
    drawn = figure.colorbar(bar, ax=axes, location="bottom", shrink=length, aspect=length * figure.get_figwidth() / 0.1)
    drawn.set_ticks([-1, 0, 1], labels=[drawable(meaning, 1.5) for meaning in meanings], parse_math=False)
    drawn.outline.set_visible(False)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    columns: int = 4,
    strong: Collection[str] = (),
    dashed: Collection[str] = (),
) -> Figure:
    """Predictions over the share of visible patches.

    Args:
        panels: title of a panel -> title of a line -> values at the sizes 1..N.
        columns: how many panels stand side by side.
        strong, dashed: titles of the lines that are drawn thick, and as dashes.
    """
    figure, axes = _panels(panels, columns)
    colors = _colors(panels)
    handles: dict[str, Any] = {}
    for place, (axis, lines) in enumerate(zip(axes, panels.values(), strict=True)):
        for name, values in lines.items():
            shares = np.arange(1, len(values) + 1) / len(values)
            width, style = (3.0 if name in strong else 1.4), ("--" if name in dashed else "-")
            (handles[name],) = axis.plot(shares, values, style, label=name, color=colors[name], linewidth=width)
        axis.set_xlabel("visible patches (share)")
        low, high = axis.get_ylim()
        axis.set_ylim(min(0, low), 1 if high > 0.5 else high)
        axis.grid(alpha=0.3)
        if place % columns == 0:
            axis.set_ylabel("probability")
    _legend(figure, handles)
    return figure


def bars(panels: Mapping[str, Mapping[str, Sequence[float]]], label: str, columns: int = 4) -> Figure:
    """Means of repetitions as bars, and every repetition as a point; all panels have one scale.

    Args:
        panels: title of a panel -> title of a bar -> values of the repetitions.
        label: what the values are.
        columns: how many panels stand side by side.
    """
    figure, axes = _panels(panels, columns, share_scale=True)
    colors = _colors(panels)
    handles: dict[str, Any] = {}
    for axis, heights in zip(axes, panels.values(), strict=True):
        for place, (name, values) in enumerate(heights.items()):
            handles[name] = axis.bar(place, np.mean(values), label=name, color=colors[name], alpha=0.7)
            axis.scatter([place] * len(values), values, color="black", edgecolors="white", s=18, zorder=3)
        axis.set_xticks([])
        axis.grid(alpha=0.3, axis="y")
    axes[0].set_ylabel(drawable(label, _PANEL[1]), parse_math=False)
    _legend(figure, handles)
    return figure


def budget_curves(panels: Mapping[str, Mapping[str, Mapping[int, tuple[float, float]]]]) -> Figure:
    """Scores over the number of forwards per image, on a logarithmic axis.

    Args:
        panels: title of a panel -> title of a line -> {budget: (mean, standard error)}. A line with the budget 0 alone
            is drawn across the panel.
    """
    figure, axes = _panels(panels, columns=2)
    colors = _colors(panels)
    handles: dict[str, Any] = {}
    for axis, lines in zip(axes, panels.values(), strict=True):
        for name, points in lines.items():
            color = colors[name]
            if list(points) == [0]:
                mean, stderr = np.nan_to_num(points[0])
                handles[name] = axis.axhline(mean, color=color, linestyle="--")
                axis.axhspan(mean - stderr, mean + stderr, color=color, alpha=0.12, linewidth=0)
                continue
            budgets = sorted(points)
            means, errors = np.array([points[budget] for budget in budgets]).T
            errors = np.nan_to_num(errors)  # that of a single image is not known
            (handles[name],) = axis.plot(budgets, means, color=color, marker="o", markersize=4)
            axis.fill_between(budgets, means - errors, means + errors, color=color, alpha=0.12, linewidth=0)
        axis.set_xscale("log", base=2)
        ticks = sorted({budget for points in lines.values() for budget in points if budget})
        axis.set_xticks(ticks, [f"{budget:,}" for budget in ticks], rotation=45)  # 1,024 and 2,000 stand close together
        axis.set_xlabel("forwards of the classifier per image")
        axis.set_ylabel("percent")
        axis.grid(alpha=0.3)
    _legend(figure, handles)
    return figure


def share_curves(panels: Mapping[str, Mapping[str, Mapping[float, tuple[float, float]]]]) -> Figure:
    """Means with standard errors over the share of visible patches, from 0 to 1.

    Args:
        panels: title of a panel -> title of a line -> {share: (mean, standard error)}.
    """
    figure, axes = _panels(panels, columns=2)
    colors = _colors(panels)
    handles: dict[str, Any] = {}
    for axis, lines in zip(axes, panels.values(), strict=True):
        for name, points in lines.items():
            means, errors = np.array(list(points.values())).T
            errors = np.nan_to_num(errors)  # that of a single image is not known
            handles[name] = axis.errorbar(
                list(points), means, errors, color=colors[name], marker="o", markersize=4, capsize=3
            )
        axis.set_xlabel("visible patches (share)")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    _legend(figure, handles)
    return figure


def _colors(panels: Mapping[str, Mapping[str, object]]) -> dict[str, tuple[float, ...]]:
    """A colour for every name, the same in all panels."""
    names = dict.fromkeys(name for panel in panels.values() for name in panel)
    palette = matplotlib.colormaps["tab20"]
    order = [*range(0, 20, 2), *range(1, 20, 2)]  # the strong colours first
    return {name: palette(order[number % 20]) for number, name in enumerate(names)}


def _legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """One legend for all panels, each name once, in as many columns as the figure has room for, which grows by it.

    Args:
        figure: the figure of the panels.
        handles: name -> what matplotlib drew for it. matplotlib's own list lacks names that begin with "_".
    """
    for columns in range(min(6, len(handles)), 0, -1):
        legend = figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=8
        )
        for text in legend.get_texts():
            text.set(text=drawable(text.get_text(), _PANEL[0]), parse_math=False)
        extent = _without_glyph_warnings(legend.get_window_extent)
        if columns == 1 or extent.width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
            return
        legend.remove()


def matrices(panels: Mapping[str, np.ndarray], names: Sequence[str], columns: str, rows: str) -> Figure:
    """Square matrices of percentages.

    Args:
        panels: title of a panel -> [rows, columns].
        names: the names of both the rows and the columns.
        columns, rows: the labels of both axes.
    """
    figure, axes = _panels(panels, columns=4)
    for axis, matrix in zip(axes, panels.values(), strict=True):
        drawn = axis.imshow(matrix, cmap="Blues", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(matrix):
            axis.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if value > 50 else "black")
        labels = [drawable(name, _PANEL[0] / 3) for name in names]
        axis.set_xticks(range(len(names)), labels, parse_math=False)
        axis.set_yticks(range(len(names)), labels, parse_math=False)
        axis.set_xlabel(drawable(columns, _PANEL[0]), parse_math=False)
        axis.set_ylabel(drawable(rows, _PANEL[1]), parse_math=False)
    figure.colorbar(drawn, ax=axes, label="share of the images (%)", shrink=0.8)
    return figure


def _panels(titles: Mapping[str, object], columns: int, share_scale: bool = False) -> tuple[Figure, list]:
    """A figure with one axis per title, `columns` of them side by side; and the axes."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=share_scale).flat)
    for axis in axes[len(titles) :]:
        axis.axis("off")
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(drawable(title, _PANEL[0]), fontsize=10, parse_math=False)
    return figure, axes[: len(titles)]


def drawable(text: str, width: float, longest: int = 80) -> str:
    """A label in lines that fit into `width` inches; one of more than `longest` characters loses its middle.

    Characters that cannot be drawn, such as those that control a terminal, become spaces.
    """
    text = "".join(character if character.isprintable() else " " for character in text)
    text = text if len(text) <= longest else f"{text[: longest - 30]}…{text[-29:]}"
    return _Wrapper(max(8, int(11 * width)), break_on_hyphens=False).fill(text)


class _Wrapper(textwrap.TextWrapper):
    """Breaks lines at spaces, and words that are longer than a line behind their joints: n01440764_, tench."""

    def _split(self, text: str) -> list[str]:
        words = super()._split(text)  # type: ignore[misc]  # "possibly useful to subclasses", its source says
        parts = (re.split(r"(?<=[-_/])", word) if len(word) > self.width else [word] for word in words)
        return [part for of_word in parts for part in of_word if part]


def darken(figure: Figure) -> None:
    """Changes the colours of paper and ink to those of a dark page; what stands for data keeps its colour and place."""
    figure.set_layout_engine("none")  # a second layout would take as long as the first, for the same places
    figure.set_facecolor(_DARK_PAPER)
    for axis in figure.axes:
        axis.set_facecolor(_DARK_PAPER)
        axis.tick_params(colors=_DARK_INK)
        for line in axis.spines.values():
            line.set_color(_DARK_INK)
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
            text.set_color(_DARK_INK)
    for legend in figure.legends:
        legend.get_frame().set(facecolor=_DARK_PAPER, edgecolor=_DARK_INK)
        for text in legend.get_texts():
            text.set_color(_DARK_INK)


def file_content(figure: Figure, kind: str = "png", dpi: float = DPI) -> bytes:
    """A figure as the bytes of a file of one of the `PICTURE_FORMATS`, with the mark of `data.marks`.

    `dpi` are its pixels per inch.
    """
    drawn = kind in ("pdf", "svg")
    options: dict[str, Any] = {"metadata": {"Creator": MARK}} if drawn else {"pil_kwargs": {"exif": exif_mark()}}
    buffer = BytesIO()
    _without_glyph_warnings(figure.savefig, buffer, format=kind, dpi=dpi, **options)
    return buffer.getvalue()


def _without_glyph_warnings(function: Callable, *arguments: Any, **options: Any) -> Any:
    """Calls a function of matplotlib, which would warn at every character that its font does not have.

    Such a character is drawn as an empty box, which the picture shows by itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from|Matplotlib currently does not support")
        return function(*arguments, **options)
