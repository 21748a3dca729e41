"""Pictures: maps over images, grids of them, and curves over subset sizes. Needs matplotlib (the extra "plots")."""

import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..data.processors import Box

COLORMAP = matplotlib.colormaps["RdBu_r"]


def overlay(picture: Image.Image, attributions: np.ndarray, box: Box | None = None, limit: float | None = None):
    """A map over a picture, in the picture's size: red patches speak for the class, blue ones against it.

    Args:
        picture: the original, in any size.
        attributions: [rows, columns], the map of one class.
        box: the part of the picture that the map covers, all of it when None; the rest is drawn pale.
        limit: the absolute value that is drawn in full colour; the map's own largest when None.
    """
    left, top, right, bottom = box or (0, 0, *picture.size)
    limit = limit or float(np.abs(attributions).max()) or 1.0
    grid = Image.fromarray((attributions / limit).clip(-1, 1).astype(np.float32))
    canvas = Image.new("F", picture.size, float("nan"))
    canvas.paste(grid.resize((right - left, bottom - top), Image.Resampling.BILINEAR), (left, top))
    values = np.asarray(canvas)
    inside = ~np.isnan(values)[..., None]
    values = np.nan_to_num(values)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    opacity = (0.1 + 0.65 * np.abs(values))[..., None]
    mixed = (1 - opacity) * grey + opacity * COLORMAP((values + 1) / 2)[..., :3]
    return Image.fromarray((255 * np.where(inside, mixed, 0.4 * grey + 0.55)).round().astype(np.uint8))


def picture_grid(rows: Sequence[Sequence[tuple[str, Image.Image]]], width: float = 2.2) -> Figure:
    """Rows of (title, picture); `width` is that of a picture in inches."""
    columns = max(len(row) for row in rows)
    heights = [max(picture.height / picture.width for _, picture in row) for row in rows]
    figure = Figure(figsize=(width * columns, sum(width * h + 0.3 for h in heights)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat:
        axis.axis("off")
    for row, row_axes in zip(rows, axes, strict=True):
        for (title, picture), axis in zip(row, row_axes, strict=False):
            axis.imshow(picture)
            axis.set_title(textwrap.fill(title, max(8, int(11 * width))), fontsize=9)
    return figure


def curves(panels: Mapping[str, Mapping[str, Sequence[float]]], columns: int = 4) -> Figure:
    """Predictions over the share of visible patches.

    Args:
        panels: title of a panel -> title of a line -> values at the sizes 1..N.
        columns: how many panels stand side by side.
    """
    figure, axes = _panels(panels, columns)
    colors = _colors(panels)
    for axis, lines in zip(axes, panels.values(), strict=True):
        for name, values in lines.items():
            axis.plot(np.arange(1, len(values) + 1) / len(values), values, label=name, color=colors[name])
        axis.set_xlabel("visible patches (share)")
        low, high = axis.get_ylim()
        axis.set_ylim(min(0, low), 1 if high > 0.5 else high)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("probability")
    _legend(figure, axes)
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
    for axis, heights in zip(axes, panels.values(), strict=True):
        for place, (name, values) in enumerate(heights.items()):
            axis.bar(place, np.mean(values), label=name, color=colors[name], alpha=0.7)
            axis.scatter([place] * len(values), values, color="black", s=12, zorder=3)
        axis.set_xticks([])
        axis.grid(alpha=0.3, axis="y")
    axes[0].set_ylabel(label)
    _legend(figure, axes)
    return figure


def _colors(panels: Mapping[str, Mapping[str, object]]) -> dict[str, tuple[float, ...]]:
    """A colour for every name, the same in all panels."""
    names = dict.fromkeys(name for panel in panels.values() for name in panel)
    palette = matplotlib.colormaps["tab20"]
    order = [*range(0, 20, 2), *range(1, 20, 2)]  # the strong colours first
    return {name: palette(order[number % 20]) for number, name in enumerate(names)}


def _legend(figure: Figure, axes: Sequence) -> None:
    """One legend for all panels, each name once, in as many columns as the figure has room for."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    entries = list(handles.values()), list(handles)
    for columns in range(min(6, len(handles)), 0, -1):
        legend = figure.legend(*entries, loc="outside lower center", ncols=columns, fontsize=8)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
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
        axis.imshow(matrix, cmap="Blues", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(matrix):
            axis.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if value > 50 else "black")
        axis.set_xticks(range(len(names)), names)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel(columns)
        axis.set_ylabel(rows)
    return figure


def _panels(titles: Mapping[str, object], columns: int, share_scale: bool = False) -> tuple[Figure, list]:
    """A figure with one axis per title, `columns` of them side by side; and the axes."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(3.4 * columns, 3 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=share_scale).flat)
    for axis in axes[len(titles) :]:
        axis.axis("off")
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=10)
    return figure, axes[: len(titles)]


def png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
