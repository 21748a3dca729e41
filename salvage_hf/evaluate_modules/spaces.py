"""The gradio app of a metric's Space: its card, and its score on a bundled example."""

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

_PATCH = 8  # side of the example's patches in pixels

_LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "$", "right": "$", "display": False},
]

#: What the app says about its example.
EXPLANATION = """
**The example** is made in code, nothing is downloaded. A grey-scale image of 4 x 4 patches shows an object of four
patches of different brightness. The "classifier" is a formula: the probability of the class *object* is
`sigmoid(4 * sum of the visible patches' brightness - 4)`. Since every patch adds its own brightness, the map that
orders the patches by brightness is known to be the best one for MIF and LIF. Compare it with its reverse and with a
constant map. The annotated region of RRA and RMA is the object.
"""


def bright_object(pixel_values: torch.Tensor, subsets: torch.Tensor) -> torch.Tensor:
    """The example's classifier: images [B, 1, H, W] and subsets bool [B, M, N] -> probabilities [B, M, 2]."""
    brightness = torch.nn.functional.avg_pool2d(pixel_values, _PATCH).flatten(1)  # [B, N]
    seen = (subsets * brightness[:, None]).sum(dim=-1)  # [B, M]
    probability = (4 * seen - 4).sigmoid()
    return torch.stack([1 - probability, probability], dim=-1)


def example() -> tuple[dict[str, list], dict[str, Any]]:
    """Three named maps of the example image, each [1][N], and all other arguments that a metric may take."""
    brightness = torch.zeros(4, 4)
    brightness[1:3, 1:3] = torch.tensor([[1.0, 0.8], [0.6, 0.4]])
    pixel_values = brightness.repeat_interleave(_PATCH, 0).repeat_interleave(_PATCH, 1)[None, None]
    maps = {"best": brightness, "reversed": 1 - brightness, "constant": torch.ones(4, 4)}
    arguments = {
        "references": [1],
        "pixel_values": pixel_values,
        "model": bright_object,
        "masks": pixel_values[0] > 0,
        "grid_size": (4, 4),
    }
    return {name: [values.flatten().tolist()] for name, values in maps.items()}, arguments


def build(script: Path):
    """Builds the app of a metric.

    Args:
        script: the metric's script; its card, README.md, lies beside it.

    Returns:
        A `gradio.Blocks`, to be launched.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import evaluate
    import gradio

    metric = evaluate.load(str(script), keep_in_memory=True)
    maps, arguments = example()
    taken = inspect.signature(metric._compute).parameters  # a metric takes the arguments of its family only
    arguments = {name: value for name, value in arguments.items() if name in taken}
    card = script.with_name("README.md").read_text(encoding="utf-8").split("---", 2)[2]  # without the front matter

    def score(map_name: str) -> tuple[float, dict[str, Any]]:
        results = metric.compute(predictions=maps[map_name], **arguments)
        return results[script.stem], results

    with gradio.Blocks(title=script.stem, analytics_enabled=False) as app:
        gradio.Markdown(EXPLANATION)
        with gradio.Row():
            gradio.Image(_picture(example()[1]["pixel_values"][0, 0]), label="image", interactive=False)
            for name, values in maps.items():
                picture = _picture(
                    torch.tensor(values).view(4, 4).repeat_interleave(_PATCH, 0).repeat_interleave(_PATCH, 1)
                )
                gradio.Image(picture, label=f"map: {name}", interactive=False)
        choice = gradio.Radio(list(maps), value="best", label="map to be scored")
        button = gradio.Button("Score", variant="primary")
        number = gradio.Number(label=script.stem, precision=4)
        details = gradio.JSON(label="all results")
        button.click(score, choice, [number, details], api_name="score")
        gradio.Markdown(card, latex_delimiters=_LATEX)
    return app


def _picture(values: torch.Tensor) -> np.ndarray:
    """Values 0..1 [H, W] -> grey levels, uint8 [4 H, 4 W]."""
    return np.kron((values.numpy() * 255).astype(np.uint8), np.ones((4, 4), dtype=np.uint8))
