"""One HTML page of many explanations, which needs no other file and can be read on a telephone."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image

from .explanation import Explanation
from .version import VERSION


class Page:
    """The explanations of a page; of their pictures it keeps what the page holds."""

    def __init__(self):
        self._sections: list[dict[str, Any]] = []

    def add(self, title: str, made: Explanation) -> None:
        """Adds an image with its maps and what the models say."""
        panels = [("image", _data(made.image))]
        for name, index, overlay in zip(made.labels, made.classes, made.overlays(), strict=True):
            panels.append((f"{name}: {made.shares(index)}", _data(overlay)))
        self._sections.append(
            {
                "title": title,
                "said": [(model.capitalize(), made.said(model)) for model in made.probabilities],
                "warnings": made.warnings,
                "panels": panels,
                "limit": f"{made.limit:.2g}",
                "is_cropped": made.is_cropped,
                "made_with": made.made_with,
            }
        )

    def html(self, failed: Sequence[str]) -> str:
        """The page; `failed` says what could not be explained."""
        from .evaluation.map_panels import key_colours

        template = Path(__file__).with_name("explained_page.html").read_text()
        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        warned = sum(bool(section["warnings"]) for section in self._sections)
        return environment.from_string(template).render(
            sections=self._sections, failed=failed, warned=warned, colours=key_colours(), version=VERSION
        )


def _data(picture: Image.Image) -> str:
    """A picture as the base64 of a JPEG file."""
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode()
