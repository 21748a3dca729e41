"""The pictures of the app: maps over the photograph, and what is visible of it."""

from io import BytesIO

import numpy as np
import torch
from PIL import Image

from ..data.marks import exif_mark
from ..explanation import Explanation
from ..modeling import overlay, pale
from .session import Session, evidence_of, patches_of_pixels

#: How much of its light a hidden patch keeps, so that one still knows where one is.
_DIM = 0.16

#: The frame of the patch that was touched last: yellow within black, which stand out of every picture.
_FRAME = ((0, 0, 0), (255, 210, 63))


def map_picture(explanation: Explanation, values: torch.Tensor, limit: float, opacity: float = 1.0) -> Image.Image:
    """A map over its picture.

    Args:
        explanation: of the picture.
        values: [N], the map.
        limit: the absolute value that has the full colour.
        opacity: 0 is the photograph alone, 1 the map over grey as `evaluation.plots.overlay` draws it.
    """
    picture, geometry = explanation.drawn()
    values = values.unflatten(0, explanation.grid_size)
    return Image.blend(picture, overlay(picture, values.numpy(), geometry, limit or None), opacity)


def visible_picture(session: Session) -> Image.Image:
    """The picture with hidden patches darkened, lines between patches, and a frame around the one touched last."""
    picture, patches = session.whole.drawn()[0], patches_of_pixels(session)
    values = np.asarray(picture).copy()
    inside = patches >= 0
    values[~inside] = (255 * pale(np.asarray(picture.convert("L"))[~inside] / 255)).round().astype(np.uint8)[:, None]
    hidden = inside & ~session.visible.numpy()[patches]
    values[hidden] = (values[hidden] * _DIM).astype(np.uint8)
    border = np.zeros_like(inside)
    border[1:] |= patches[1:] != patches[:-1]
    border[:, 1:] |= patches[:, 1:] != patches[:, :-1]
    values[border] = (0.6 * values[border] + 0.4 * 150).astype(np.uint8)
    distance = _inner_distance(patches == session.cursor)
    for width, colour in zip((5, 3), _FRAME, strict=True):
        values[(distance > 0) & (distance <= width)] = colour
    return Image.fromarray(values)


def _inner_distance(region: np.ndarray) -> np.ndarray:
    """How far each pixel of a rectangular region [H, W] is from its outside, in pixels; 0 outside of it."""
    distances = []
    for axis in (0, 1):
        places = np.flatnonzero(region.any(axis=1 - axis))
        line = np.zeros(region.shape[axis], dtype=int)
        line[places] = np.minimum(np.arange(len(places)) + 1, len(places) - np.arange(len(places)))
        distances.append(line)
    return np.minimum(distances[0][:, None], distances[1][None])


def files_of(session: Session, evidence: str, opacity: float) -> dict[str, bytes]:
    """What a visitor takes home, as name -> bytes: the pictures as shown, the figure, and the maps as numbers."""
    values, limit = evidence_of(session, evidence)
    name = session.name
    found = {
        f"map_{name}.png": _png(map_picture(session.main, values, limit, opacity)),
        f"visible_{name}.png": _png(visible_picture(session)),
        f"figure_{name}.png": session.main.content("png"),
        f"map_{name}.npz": session.main.content("npz"),
    }
    if session.beside is not None:
        found[f"{session.method}_figure_{name}.png"] = session.beside.content("png")
        found[f"{session.method}_map_{name}.npz"] = session.beside.content("npz")
    return found


def _png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file with the mark of `data.marks`."""
    buffer = BytesIO()
    picture.save(buffer, "PNG", exif=exif_mark())
    return buffer.getvalue()
