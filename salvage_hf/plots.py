"""Pictures: maps over images, grids of them, and curves over subset sizes. Needs matplotlib (the extra "plots")."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

#: left, top, right, bottom in pixels of the original picture
Box = tuple[int, int, int, int]

COLORMAP = matplotlib.colormaps["RdBu_r"]


def processed_box(processor, width: int, height: int) -> Box:
    """Which part of a picture of width x height pixels an image processor shows the model."""
    size = dict(processor.size or {}) if getattr(processor, "do_resize", True) else {}
    if "shortest_edge" in size:
        scale = size["shortest_edge"] / min(width, height)
        resized = round(width * scale), round(height * scale)
    elif "height" in size:
        resized = size["width"], size["height"]
    else:
        resized = width, height
    left, top, shown = 0, 0, resized
    if getattr(processor, "do_center_crop", False):
        shown = processor.crop_size["width"], processor.crop_size["height"]
        left, top = (resized[0] - shown[0]) // 2, (resized[1] - shown[1]) // 2
    x, y = width / resized[0], height / resized[1]
    return round(left * x), round(top * y), round((left + shown[0]) * x), round((top + shown[1]) * y)


def overlay(picture: Image.Image, attributions: np.ndarray, box: Box | None = None, limit: float | None = None):
    """A map over a picture, in the picture's size: red patches speak for the class, blue ones against it.

    Args:
        picture: the original, in any size.
        attributions: [rows, columns], the map of one class.
        box: the part of the picture that the map covers, the rest is paled; all of it when None.
        limit: the absolute value drawn in full colour; the map's own largest when None.
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
    """Titled pictures in rows; `width` is that of a picture in inches."""
    columns = max(len(row) for row in rows)
    heights = [max(picture.height / picture.width for _, picture in row) for row in rows]
    figure = Figure(figsize=(width * columns, sum(width * h + 0.35 for h in heights)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat:
        axis.axis("off")
    for row, row_axes in zip(rows, axes, strict=True):
        for (title, picture), axis in zip(row, row_axes, strict=False):
            axis.imshow(picture)
            axis.set_title(title, fontsize=9)
    return figure


def curves(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Prediction over the share of visible patches: panel title -> method title -> curve over sizes 1..N."""
    figure = Figure(figsize=(3.4 * len(panels), 3), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, values in lines.items():
            axis.plot(np.arange(1, len(values) + 1) / len(values), values, label=name)
        axis.set_title(title)
        axis.set_xlabel("visible patches (share)")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("probability of the class")
    axes[0].legend(fontsize=8)
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def html_image(figure: Figure, description: str) -> str:
    """A figure as an <img> element that needs no other file."""
    return f'<img alt="{description}" src="data:image/png;base64,{base64.b64encode(png(figure)).decode()}">'
