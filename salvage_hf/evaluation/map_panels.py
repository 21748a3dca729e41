"""The picture of an explanation: the image and its maps, what the models say above, how to read colours below."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ..modeling import coloured, pale
from .plots import drawable

#: Width in inches of the image and of each map, and how many of them stand side by side at most.
PANEL_WIDTH, COLUMNS = 3.0, 4

#: Inches: the room beside every panel, of a line of text, and of the colour bar with its numbers.
_GAP, _LINE, _BAR = 0.12, 0.165, 0.55


@dataclass(frozen=True)
class Note:
    """A line above the maps.

    Args:
        text: what it says.
        warns: whether it is drawn so that nobody overlooks it.
    """

    text: str
    warns: bool = False


def map_panels(
    panels: Sequence[tuple[Sequence[str], Image.Image]],
    notes: Sequence[Note],
    footer: str,
    limit: float,
    has_pale: bool,
) -> Figure:
    """Panels in rows, notes above them, and below them the colour bar, what pale means, and the footer.

    Everything has its place in inches, so that no text lies on another, however many lines it takes.

    Args:
        panels: (lines of the title, picture), all maps on one scale.
        notes: what is said above, from the first line on.
        footer: what the maps are made with.
        limit: the value that has the full colour.
        has_pale: whether parts of the pictures are outside the model's view.
    """
    columns = min(COLUMNS, len(panels))
    width = columns * PANEL_WIDTH + (columns + 1) * _GAP
    above = [(drawable(note.text, 0.9 * width, longest=400), note.warns) for note in notes]
    below = drawable(footer, 0.9 * width, longest=400)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    titles = [
        ["\n".join(drawable(line, PANEL_WIDTH, longest=150) for line in lines) for lines, _ in row] for row in rows
    ]
    title_heights = [_LINE * max(title.count("\n") + 1 for title in row) + 0.06 for row in titles]
    heights = [PANEL_WIDTH * min(3.0, max(picture.height / picture.width for _, picture in row)) for row in rows]
    note_heights = [_LINE * (text.count("\n") + 1) + (0.14 if warns else 0.05) for text, warns in above]
    below_height = _LINE * (below.count("\n") + 1) + _GAP
    total = 2 * _GAP + sum(note_heights) + sum(heights) + sum(title_heights) + len(rows) * _GAP + _BAR + below_height
    figure = Figure(figsize=(width, total))
    top = total - _GAP
    for (text, warns), height in zip(above, note_heights, strict=True):
        box = {"facecolor": "#ffd23f", "edgecolor": "black", "boxstyle": "square,pad=0.3"} if warns else None
        middle = (top - height / 2) / total
        figure.text(
            1.5 * _GAP / width, middle, text, fontsize=9, va="center", parse_math=False, bbox=box,
            weight="bold" if warns else "normal",
        )  # fmt: skip
        top -= height
    for row, row_titles, title_height, height in zip(rows, titles, title_heights, heights, strict=True):
        top -= _GAP + title_height
        for place, ((_, picture), title) in enumerate(zip(row, row_titles, strict=True)):
            left = _GAP + place * (PANEL_WIDTH + _GAP)
            axis = figure.add_axes((left / width, (top - height) / total, PANEL_WIDTH / width, height / total))
            axis.imshow(picture)
            axis.axis("off")
            axis.set_anchor("N")
            axis.set_title(title, fontsize=9, parse_math=False, pad=4)
        top -= height
    _draw_key(figure, width, total, below_height, limit, has_pale)
    figure.text(1.5 * _GAP / width, 0.7 * _GAP / total, below, fontsize=7.5, color="#444444", parse_math=False)
    return figure


def _draw_key(figure: Figure, width: float, total: float, bottom: float, limit: float, has_pale: bool) -> None:
    """The colour bar, from the full colour against the class to that for it, and what is drawn pale."""
    length = min(3.0, 0.45 * width)
    axis = figure.add_axes((2.5 * _GAP / width, (bottom + 0.3) / total, length / width, 0.13 / total))
    axis.imshow(_key(256)[None], extent=(-1, 1, 0, 1), aspect="auto")
    axis.set_yticks([])
    axis.set_xticks([-1, 0, 1], [f"{-limit:.2g}\nagainst", "0", f"{limit:.2g}\nfor the class"], fontsize=7.5)
    axis.tick_params(length=2, pad=1)
    if has_pale:
        left = 2.5 * _GAP + length + 0.6
        corner = left / width, (bottom + 0.3) / total
        colour = [float(pale(0.5))] * 3
        figure.add_artist(Rectangle(corner, 0.25 / width, 0.13 / total, facecolor=colour, edgecolor="black", lw=0.5))
        figure.text(
            (left + 0.32) / width,
            (bottom + 0.365) / total,
            "pale: outside the\nmodel's view",
            fontsize=7.5,
            va="center",
        )


def _key(number: int) -> np.ndarray:
    """The colours from the full one against a class to the full one for it, over a light grey: [number, 3]."""
    return coloured(np.linspace(-1, 1, number), 0.75)


def key_colours(number: int = 9) -> list[str]:
    """The colour bar as colours of CSS."""
    return [to_hex(colour) for colour in _key(number)]
