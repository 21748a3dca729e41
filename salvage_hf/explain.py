"""Pictures that explain single images: what `salvage explain` does."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from .data import open_image
from .masking import activation
from .plots import overlay, picture_grid, png, processed_box

logger = logging.getLogger(__name__)


def explain_files(inputs: Iterable[str], model_name: str, output: str, top: int = 3) -> tuple[list[Path], list[str]]:
    """Writes a picture per image: the image, and the maps of its most probable classes with their probability.

    Args:
        inputs: image files, and folders of which all files are taken.
        model_name: a Salvage model with its image processor, on the Hub or in a folder.
        output: a picture file for a single image, otherwise a folder that gets one picture an image.
        top: how many classes are shown.

    Returns:
        The files written, and a message for every file that could not be read.
    """
    files = [file for item in inputs for file in _files(Path(item))]
    if not files:
        raise ValueError(f"no files in {', '.join(inputs)}")
    model = AutoModel.from_pretrained(model_name, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(model_name)
    single = len(files) == 1 and Path(output).suffix != ""
    if not single and Path(output).suffix:
        raise ValueError(f"output={output!r} is one picture, but there are {len(files)} images; give a folder")
    (Path(output).parent if single else Path(output)).mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    failed: list[str] = []
    for file in tqdm(files, desc="Explaining", disable=len(files) == 1):
        try:
            picture = open_image(file)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            failed.append(f"{file}: not a readable image ({error})")
            continue
        target = Path(output) if single else _free_name(Path(output), file, written)
        target.write_bytes(png(explanation(picture, model, processor, top)))
        written.append(target)
    return written, failed


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{str(path)!r} does not exist")
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _free_name(folder: Path, file: Path, taken: list[Path]) -> Path:
    name, number = folder / f"{file.stem}.png", 1
    while name in taken:
        number += 1
        name = folder / f"{file.stem}_{number}.png"
    return name


@torch.no_grad()
def explanation(picture: Image.Image, model, processor, top: int = 3):
    """The figure of one picture: itself, then the maps of its `top` most probable classes, on one colour scale."""
    pixel_values = processor(picture, return_tensors="pt")["pixel_values"]
    output = model(pixel_values)
    probabilities = activation(output.logits)[0]
    patch_size = model.config.backbone_config.patch_size
    grid = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
    box = processed_box(processor, *picture.size)
    classes = probabilities.topk(min(top, len(probabilities))).indices.tolist()
    maps = output.attributions[0, :, classes].T.unflatten(-1, grid).numpy()  # [classes, rows, columns]
    limit = float(abs(maps).max())
    titled = [
        (f"{model.config.id2label[index]}: {100 * probabilities[index]:.1f}%", overlay(picture, values, box, limit))
        for index, values in zip(classes, maps, strict=True)
    ]
    return picture_grid([[("image", picture), *titled]], width=3)
