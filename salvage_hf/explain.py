"""Pictures that explain single images: what `salvage explain` does."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from .data.loading import open_image
from .data.processors import processed_box
from .evaluation.plots import overlay, picture_grid, png
from .targets import (
    activation,
    label_names,
    predicted_targets,
    target_attributions,
    target_names,
    target_probability,
)

logger = logging.getLogger(__name__)


def explain_files(inputs: Iterable[str], model_name: str, output: str, top: int = 3) -> tuple[list[Path], list[str]]:
    """Writes a picture per image: the image, and the maps of its most probable classes with their probability.

    Args:
        inputs: image files, or folders, of which all files are taken.
        model_name: a Salvage model with its image processor, on the Hub or in a folder.
        output: a picture file for a single image, otherwise a folder that gets one picture per image.
        top: how many classes are shown.

    Returns:
        The files written, and a message for every file that could not be explained.

    Raises:
        ValueError: where there are no inputs, or `output` does not fit them or is one of them.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    files = [file for item in inputs for file in _files(Path(item))]
    if not files:
        raise ValueError(f"no files in {', '.join(inputs)}")
    single = len(files) == 1 and Path(output).suffix != ""
    if not single and Path(output).suffix:
        raise ValueError(f"output={output!r} is one picture, but there are {len(files)} images; give a folder")
    originals = {file.resolve() for file in files}
    if Path(output).resolve() in originals:
        raise ValueError(f"output={output!r} is the image itself, which would be lost; give another name")
    model = AutoModel.from_pretrained(model_name, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(model_name)
    (Path(output).parent if single else Path(output)).mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    failed: list[str] = []
    for file in tqdm(files, desc="Explaining", disable=len(files) == 1):
        target = Path(output) if single else _free_name(Path(output), file, originals | {p.resolve() for p in written})
        try:
            figure = png(explanation(open_image(file), model, processor, top))
        except Exception as error:  # Pillow raises many types of error; one broken image must not stop the others
            failed.append(f"{file}: {type(error).__name__}: {error}")
            continue
        target.write_bytes(figure)
        written.append(target)
    return written, failed


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{str(path)!r} does not exist")
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _free_name(folder: Path, file: Path, taken: set[Path]) -> Path:
    name, number = folder / f"{file.stem}.png", 1
    while name.resolve() in taken:
        number += 1
        name = folder / f"{file.stem}_{number}.png"
    return name


@torch.no_grad()
def explanation(picture: Image.Image, model, processor, top: int = 3):
    """The figure of one picture: itself, then the maps of its `top` most probable classes, on one colour scale.

    With one label there is one map: of the label where it is predicted, otherwise of its absence.
    """
    pixel_values = processor(picture, return_tensors="pt")["pixel_values"]
    output = model(pixel_values)
    probabilities = activation(output.logits)
    if output.logits.shape[-1] == 1:
        classes = predicted_targets(output.logits)
    else:
        classes = probabilities[0].topk(min(top, probabilities.shape[-1])).indices
    names = target_names(label_names(model.config))
    patch_size = model.config.backbone_config.patch_size
    grid = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
    box = processed_box(processor, *picture.size)
    shares = target_probability(probabilities.expand(len(classes), 1, -1), classes)[:, 0].tolist()
    maps = target_attributions(output.attributions.expand(len(classes), -1, -1), classes).unflatten(-1, grid).numpy()
    limit = float(abs(maps).max())
    titled = [
        (f"{names[index]}: {100 * share:.1f}%", overlay(picture, values, box, limit))
        for index, share, values in zip(classes.tolist(), shares, maps, strict=True)
    ]
    return picture_grid([[("image", picture), *titled]], width=3)
