"""The gradio app of a metric's Space: its score on a bundled example and on a visitor's own maps, and its card."""

import inspect
import os
import zipfile
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..evaluation.plots import curves, file_content
from ..evaluation.scores import SCORES
from ..masking import MaskedClassifier
from ..targets import predicted_targets
from ..tensors import processed_images
from ..vision_families import image_logits

#: So many images of a visitor are scored at most: a Space has two cores.
MOST_IMAGES = 64

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


#: What the app says about a visitor's own maps.
OWN_MODEL = f"""
`numpy.savez("maps.npz", predictions=..., pixel_values=..., references=...)` writes the file, for at most {MOST_IMAGES}
images: `predictions` `[images, patches]` or `[images, rows, columns]`, the maps of any method; `pixel_values`
`[images, channels, height, width]`, as the classifier takes them; `references` `[images]`, the explained classes, which
may be left out: then they are what the classifier predicts. The classifier is downloaded from the Hub by its name; it
must have no code of its own.
"""
OWN_MASKS = f"""
`numpy.savez("maps.npz", predictions=..., masks=...)` writes the file, for at most {MOST_IMAGES} images: `predictions`
`[images, patches]` or `[images, height, width]`, the maps of any method; `masks`, bool `[images, height, width]`, True
inside the annotated region.
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
    maps = {"best": brightness, "reversed": 1 - brightness, "constant": torch.full((4, 4), 0.5)}
    arguments = {
        "references": [1],
        "pixel_values": pixel_values,
        "model": bright_object,
        "masks": pixel_values[0] > 0,
        "grid_size": (4, 4),
    }
    return {name: [values.flatten().tolist()] for name, values in maps.items()}, arguments


def own_arguments(
    taken: Collection[str], file: str, classifier: str, patch_size: int | None, budget: int
) -> dict[str, Any]:
    """The arguments of a metric from what a visitor has uploaded.

    Args:
        taken: the names of the arguments that the metric takes.
        file: an npz file, which holds the arrays among them: "predictions", and "pixel_values" and "references" or
            "masks". Without "references" the classes are explained that the classifier predicts.
        classifier: its name on the Hub, or a folder; for metrics that take a model.
        patch_size: the side of its patches in pixels, where it has none of its own.
        budget: forwards per image, for metrics that take it.

    Raises:
        ValueError: where the file is none of this kind, an array is missing, there are too many images, or there is no
            such classifier.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files if name in taken}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"file must be an npz file of arrays, but it cannot be read: {error}") from error
    if missing := [name for name in ("predictions", "pixel_values", "masks") if name in taken and name not in found]:
        raise ValueError(f"file has no array {missing[0]!r}; numpy.savez(FILE, {missing[0]}=...) writes it")
    maps = found["predictions"]
    if len(maps) > MOST_IMAGES:
        raise ValueError(f"file must have at most {MOST_IMAGES} images, has {len(maps)}: score more with salvage-hf")
    if "model" not in taken:
        return found
    if not classifier:
        raise ValueError("classifier must be the name of an image classifier on the Hub, got none")
    v = MaskedClassifier.from_pretrained(classifier, patch_size=patch_size or None)
    found["pixel_values"] = processed_images("pixel_values", found["pixel_values"]).float()
    found["predictions"] = maps.reshape(len(maps), -1)  # from a grid [B, rows, columns] too
    if "references" not in found:
        logits = [image_logits(v.classifier, image[None]) for image in found["pixel_values"]]
        found["references"] = predicted_targets(torch.cat(logits))
    return {**found, "model": v, **({"budget": int(budget)} if "budget" in taken else {})}


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
    title, _, rest = card.partition("\n## ")

    def score(map_name: str) -> tuple[float, Image.Image | None, dict[str, Any]]:
        return _shown(script.stem, metric.compute(predictions=maps[map_name], **arguments))

    def score_own(file: str | None, classifier: str, patch_size: int | None, budget: int):
        try:
            if not file:
                raise ValueError("file must be an npz file, got none")
            own = own_arguments(taken, file, classifier.strip(), patch_size, budget)
            return _shown(script.stem, metric.compute(**own))
        except (ValueError, TypeError) as error:
            raise gradio.Error(" ".join(str(error).split()), print_exception=False) from error

    with gradio.Blocks(title=script.stem, analytics_enabled=False) as app:
        gradio.Markdown(title, latex_delimiters=_LATEX)
        with gradio.Tab("Example"):
            with gradio.Row():
                gradio.Image(_picture(example()[1]["pixel_values"][0, 0]), label="image", interactive=False, height=180)
                for name, values in maps.items():
                    gradio.Image(_map_picture(values), label=f"map: {name}", interactive=False, height=180)
            choice = gradio.Radio(list(maps), value="best", label="map to be scored")
            button = gradio.Button("Score", variant="primary")
            outputs = _outputs(gradio, script.stem)
            button.click(score, choice, outputs, api_name="score")
            app.load(score, choice, outputs, api_name="score_first")
            gradio.Markdown(EXPLANATION)
        with gradio.Tab("Your own maps"):
            asks = "model" in taken
            gradio.Markdown(OWN_MODEL if asks else OWN_MASKS)
            file = gradio.File(label="maps, an npz file", file_types=[".npz"])
            with gradio.Row(visible=asks):
                classifier = gradio.Textbox(label="classifier", placeholder="facebook/dinov2-small-imagenet1k-1-layer")
                patch_size = gradio.Number(label="patch size in pixels, for classifiers without patches", precision=0)
                budget = gradio.Slider(4, 512, 160, step=4, label="forwards per image", visible="budget" in taken)
            button = gradio.Button("Score", variant="primary")
            given = [file, classifier, patch_size, budget]
            button.click(score_own, given, _outputs(gradio, script.stem), api_name="score_own")
        gradio.Markdown(f"## {rest}", latex_delimiters=_LATEX)
    return app


def _outputs(gradio: Any, name: str) -> list[Any]:
    """Where `_shown` is shown."""
    with gradio.Row():
        number = gradio.Number(label=name, precision=4)
        curve = gradio.Image(label="curves", interactive=False, height=320, visible=SCORES[name].family != "region")
    return [number, curve, gradio.JSON(label="all results", open=False)]


def _shown(name: str, results: dict[str, Any]) -> tuple[float, Image.Image | None, dict[str, Any]]:
    """The score, the picture of its curves (None where it has none), and all results."""
    found = {kind: results[f"{kind}_curve"] for kind in SCORES if f"{kind}_curve" in results}
    if not found:
        return results[name], None, results
    figure = curves({SCORES[name].title: {SCORES[kind].title: values for kind, values in found.items()}})
    return results[name], Image.open(BytesIO(file_content(figure))), results


def _map_picture(values: list) -> np.ndarray:
    """A map of the example [1][N] as a picture."""
    grid = torch.tensor(values).view(4, 4)
    return _picture(grid.repeat_interleave(_PATCH, 0).repeat_interleave(_PATCH, 1))


def _picture(values: torch.Tensor) -> np.ndarray:
    """Values 0..1 [H, W] -> grey levels, uint8 [4 H, 4 W]."""
    return np.kron((values.numpy() * 255).astype(np.uint8), np.ones((4, 4), dtype=np.uint8))
