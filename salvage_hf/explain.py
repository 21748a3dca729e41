"""Pictures that explain single images: what `salvage explain` does."""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModel

from .attribution_methods.trained import load_explainer
from .data.folders import is_of_other_kind, listed, walk
from .data.pictures import check_pixel_range, open_image, printable, reason_of
from .data.processors import process
from .evaluation.plots import DPI, FORMATS, file_content, made_here, picture_grid
from .files import check_writable, locked, write_bytes
from .masking import MaskedClassifier, stated_masking
from .modeling import SalvageConfig, overlay, picture_geometry
from .pretrained import load_config, load_model, load_processor
from .refinement import checked_budget, refine
from .targets import (
    activation,
    label_names,
    predicted_targets,
    target_attributions,
    target_names,
    target_probability,
)

logger = logging.getLogger(__name__)

#: The most classes of one picture: with more, it would be wider than some of the formats allow.
MOST_CLASSES = 40

#: Width of the image and of each map in inches, and the most pixels of a side that are drawn there: more could not be
#: seen, even where a page is enlarged to twice its size, and would only cost memory.
PANEL_WIDTH = 3.0
DRAWN_PIXELS = int(2 * PANEL_WIDTH * DPI)


def explain_files(
    inputs: Iterable[str],
    model_name: str,
    output: str,
    top: int = 3,
    pixel_range: Sequence[float] | None = None,
    classifier_name: str | None = None,
    budget: int = 0,
) -> tuple[list[Path], list[str]]:
    """Writes a picture per image: the image, and the maps of its most probable classes with their probability.

    Args:
        inputs: image files, or folders, of which all images are taken, also in the folders below. Pictures that this
            function wrote are left out.
        model_name: a Salvage model with its image processor, on the Hub or in a folder.
        output: a picture file for a single image, whose suffix says the format; otherwise a folder that gets one PNG
            file per image. Files of other origin in that folder are left as they are.
        top: how many classes are shown.
        pixel_range: the values that are black and white in images of more than 8 bits, as in `open_image`.
        classifier_name: the classifier that the model explains, on the Hub or in a folder; needed with a budget.
        budget: forwards of the classifier for each map, which improve it (`refinement.refine`); 0: none.

    Returns:
        The files written, and a message for every file that could not be explained.

    Raises:
        ValueError: where there are no inputs, `output` does not fit them, is one of them or cannot be written, another
            process writes to it, or the model is none of Salvage or lacks parts.
        OSError: where a picture cannot be written; those before it stay.
    """
    if not isinstance(top, int) or not 1 <= top <= MOST_CLASSES:
        raise ValueError(f"top must be a whole number from 1 to {MOST_CLASSES}, got {top!r}")
    check_pixel_range(pixel_range)
    if bool(checked_budget(budget)) != bool(classifier_name):
        raise ValueError(
            "budget and classifier, the one that the model explains, are given together, got "
            f"budget={budget} and classifier={classifier_name!r}"
        )
    files = _images(list(inputs))
    options = model_name, top, pixel_range, classifier_name, budget
    if _is_one_picture(output, files):
        check_writable(Path(output).parent)
        return _explain({files[0]: Path(output)}, *options)
    with locked(output, "salvage explain"):
        return _explain(_targets(files, Path(output)), *options)


def _explain(
    targets: dict[Path, Path],
    model_name: str,
    top: int,
    pixel_range: Sequence[float] | None,
    classifier_name: str | None,
    budget: int,
) -> tuple[list[Path], list[str]]:
    """Explains images: {image: the picture to write}. Returns what `explain_files` returns."""
    model, processor = _load(model_name)
    v = None
    if classifier_name:
        # Patches are hidden as they were when the explainer was trained.
        v = MaskedClassifier.from_pretrained(classifier_name, **stated_masking(model.config))
        model = load_explainer(model, "salvage", v)
    draw = functools.partial(explanation, model=model, processor=processor, top=top, v=v, budget=budget)
    written: list[Path] = []
    failed: list[str] = []
    for file, target in tqdm(targets.items(), desc="Explaining", disable=len(targets) == 1):
        try:
            content = _content(target, draw, open_image(file, pixel_range), file)
        except ValueError as error:  # one image must not stop the others
            failed.append(str(error))
            continue
        write_bytes(target, content)
        written.append(target)
    if gone := [path for path in written if not path.is_file()]:
        raise FileNotFoundError(
            f"{len(gone)} of {len(written)} pictures are gone since they were written, also {gone[0]}"
        )
    return written, failed


def _content(target: Path, draw: Callable[[Image.Image], Any], picture: Image.Image, file: Path) -> bytes:
    """What the file `target` is to hold; raises ValueError, which names the image's file, where it cannot be drawn."""
    try:
        return file_content(draw(picture), target.suffix[1:].lower())
    except Exception as error:  # a model and its processor may raise anything
        raise ValueError(f"image '{printable(file)}' cannot be explained: {reason_of(error)}") from error


def _images(inputs: list[str]) -> list[Path]:
    """The image files among files and below folders, each once; a warning says what was left out."""
    files: dict[Path, None] = {}
    left_out: list[str] = []
    for item in inputs:
        path = Path(item)
        if item == "":  # as a path it would mean the working directory
            raise ValueError("an input is an empty text; give image files or folders")
        if not path.is_file() and not path.is_dir():
            raise ValueError(f"{item!r} {'is neither a file nor a folder' if path.exists() else 'does not exist'}")
        found = [path]
        if path.is_dir():
            entries = walk(path)
            left_out += entries.left_out
            found = sorted(entries.files)
        for file in found:
            if made_here(file):
                left_out.append(f"{file} (made by salvage)")
            elif file != path and is_of_other_kind(file):
                left_out.append(f"{file} (no image by its name)")
            else:
                files[file] = None
    if left_out:
        logger.warning("%d entries are left out: %s", len(left_out), listed(left_out))
    if not files:
        raise ValueError(f"no images in {listed(inputs)}")
    return list(files)


def _is_one_picture(output: str, files: list[Path]) -> bool:
    """Whether `output` is a picture of the only image, and not a folder; raises ValueError where it fits neither."""
    path = Path(output)
    if output == "":  # as a path it would mean the working directory
        raise ValueError("output is an empty text; give a file or a folder")
    if not path.suffix or path.is_dir():
        return False
    if path.suffix[1:].lower() not in FORMATS:
        raise ValueError(
            f"output={output!r} ends in {path.suffix!r}; a picture ends in one of {', '.join(FORMATS)}, and a folder "
            "whose name has a dot must be there before"
        )
    if len(files) > 1:
        raise ValueError(f"output={output!r} is one picture, but there are {len(files)} images; give a folder")
    if path.exists() and path.samefile(files[0]):
        raise ValueError(f"output={output!r} is the image itself, which would be lost; give another name")
    return True


def _targets(files: list[Path], folder: Path) -> dict[Path, Path]:
    """{image: its picture in a folder}: STEM.png, or STEM_2.png and so on, never a file of other origin."""
    # Some file systems take "A.png" and "a.png" for one file.
    taken = {path.name.casefold() for path in folder.iterdir() if not made_here(path)}
    numbers: dict[str, int] = {}
    targets: dict[Path, Path] = {}
    for file in files:
        # A file system allows names of 255 bytes; number and suffix need some of them.
        stem = printable(file.stem).encode()[:200].decode(errors="ignore")
        number = numbers.get(stem, 1)
        while (name := f"{stem}.png" if number == 1 else f"{stem}_{number}.png").casefold() in taken:
            number += 1
        numbers[stem] = number + 1
        taken.add(name.casefold())
        targets[file] = folder / name
    return targets


def _load(model_name: str) -> tuple[Any, Any]:
    """A Salvage model and its image processor, which is tried on a white picture."""
    config = load_config(model_name)
    if not isinstance(config, SalvageConfig):
        raise ValueError(
            f"model={model_name!r} is of the type {config.model_type!r}; needed is a Salvage explainer, which "
            "scripts/train.py trains against an image classifier"
        )
    model = load_model(AutoModel, model_name, dtype=torch.float32)
    processor = load_processor(model_name)
    white = Image.new("RGB", (64, 64), "white")
    process(processor, [white])
    picture_geometry(processor, *white.size)
    return model, processor


# The explanation


@torch.no_grad()
def explanation(
    picture: Image.Image, model, processor, top: int = 3, v: MaskedClassifier | None = None, budget: int = 0
):
    """The figure of one picture: itself, then the maps of its `top` most probable classes, on one colour scale.

    With one label there is one map: of the label where it is predicted, otherwise of its absence. The model sees the
    whole picture; what is drawn has at most `DRAWN_PIXELS` a side. With a classifier `v` and a budget the maps are
    those of `refinement.refine`.

    Raises:
        ValueError: where the processor cannot process the picture, or an answer of the model is NaN or infinite.
    """
    pixel_values = process(processor, [picture])
    output = model(pixel_values)
    if not (output.logits.isfinite().all() and output.attributions.isfinite().all()):
        raise ValueError("the model answers with values that are NaN or infinite")
    probabilities = activation(output.logits)
    if output.logits.shape[-1] == 1:
        classes = predicted_targets(output.logits)
    else:
        classes = probabilities[0].topk(min(top, probabilities.shape[-1])).indices
    names = target_names(label_names(model.config))
    grid = pixel_values.shape[-2] // model.config.patch_size, pixel_values.shape[-1] // model.config.patch_size
    scale = min(1.0, DRAWN_PIXELS / max(picture.size))
    width, height = (max(1, round(scale * side)) for side in picture.size)
    geometry = picture_geometry(processor, *picture.size).scaled(width / picture.width, height / picture.height)
    drawn = picture.resize((width, height), reducing_gap=3.0)
    shares = target_probability(probabilities.expand(len(classes), 1, -1), classes)[:, 0].tolist()
    maps = target_attributions(output.attributions.expand(len(classes), -1, -1), classes)
    if v is not None:
        maps = refine(v, maps, pixel_values.expand(len(classes), -1, -1, -1), classes, budget).attributions
    maps = maps.unflatten(-1, grid).numpy()
    limit = float(abs(maps).max())
    titled = [
        (f"{names[index]}: {100 * share:.1f}%", overlay(drawn, values, geometry, limit))
        for index, share, values in zip(classes.tolist(), shares, maps, strict=True)
    ]
    return picture_grid([[("image", drawn), *titled]], width=PANEL_WIDTH)
