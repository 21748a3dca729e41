"""Files that explain image files: what `salvage explain` does."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tqdm.auto import tqdm

from .arguments import AtLeast, arg, check_arguments
from .attribution_methods import REGISTRY
from .data.folders import is_of_other_kind, listed, walk
from .data.marks import PICTURE_FORMATS, made_here
from .data.pictures import check_pixel_range, open_image, printable, reason_of
from .explained_page import Page
from .explainer import Explainer, Prepared
from .explanation import FORMATS, Explanation, format_of
from .files import check_writable, locked, write_bytes

logger = logging.getLogger(__name__)


@dataclass
class ExplainArguments:
    """Arguments of `salvage explain`, beside the images."""

    model: str = arg("", "A Salvage explainer or any image classifier: a folder, or a name on the Hub.")
    classifier: str | None = arg(
        None, "The classifier that the explainer explains: a folder, or a name. The one that it states when not given."
    )
    method: Literal[tuple(REGISTRY)] | None = arg(  # type: ignore[valid-type]
        None,
        "The attribution method; when not given that of the explainer, and of a classifier without one conservative "
        "LRP, GradCAM or RISE, the first that suits it.",
    )
    budget: Annotated[int, AtLeast(0)] = arg(
        0, "Forwards of the classifier for each map: how often a method such as rise asks, or what improves its maps."
    )
    classes: list[str] | None = arg(
        None, "The labels that are explained, or their numbers from 0 on; the most probable ones when not given."
    )
    top: Annotated[int, AtLeast(1)] = arg(
        3, "How many classes are explained, the most probable first; those below 1 percent are left out behind it."
    )
    patch_size: Annotated[int | None, AtLeast(1)] = arg(
        None, "The side of a patch in pixels of the processed image, for a classifier whose tokens are no patches."
    )
    allow_other_classifier: bool = arg(
        False, "Go on, with a warning, where the explainer states that it was trained for another classifier."
    )
    batch_size: Annotated[int, AtLeast(1)] = arg(8, "Images per batch; it changes no number.")
    device: str | None = arg(None, "Where to compute, for example cpu or cuda; a GPU if there is one when not given.")
    pixel_range: list[float] | None = arg(
        None, "LOW and HIGH, the values that are black and white in images of more than 8 bits, for example 0 4095."
    )
    format: Literal[FORMATS] = arg("png", "What is written into a folder for each image.")  # type: ignore[valid-type]
    output: str = arg("explanations", "A folder, or for one image a file, whose suffix says the format.")
    report: str | None = arg(None, "Also write one HTML page, which needs no other file, with all images and maps.")

    def __post_init__(self):
        check_arguments(self)
        check_pixel_range(self.pixel_range)
        if not self.model:
            raise ValueError("model is needed: a Salvage explainer or an image classifier")
        if self.report is not None and Path(self.report).suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"report must be a file whose name ends in .html, got {self.report!r}")


def explain_files(inputs: Iterable[str], args: ExplainArguments) -> tuple[list[Path], list[str]]:
    """Writes a file per image, and a page of all of them where one is asked for.

    Args:
        inputs: image files, or folders, of which all images are taken, also in the folders below. What this function
            wrote is left out.
        args: the rest. Where `output` is a folder, files of other origin in it are left as they are.

    Returns:
        The files written, and a message for every file that could not be explained.

    Raises:
        ValueError: where there are no inputs, `output` does not fit them, is one of them or cannot be written, another
            process writes to it, or model, classifier, method, classes and budget do not fit each other.
        OSError: where a file cannot be written; those before it stay.
    """
    kind = Path(args.output).suffix[1:].lower()
    kind = kind if kind in FORMATS else args.format
    if args.report is not None or kind in PICTURE_FORMATS:
        import matplotlib  # noqa: F401 - an extra, whose lack should not show after minutes
    files = _images(list(inputs))
    if args.report is not None:
        check_writable(Path(args.report).parent)
        if any(Path(args.report).exists() and Path(args.report).samefile(file) for file in files):
            raise ValueError(f"report={args.report!r} is one of the images, which would be lost; give another name")
    if _is_one_file(args.output, files):
        check_writable(Path(args.output).parent)
        return _explain({files[0]: Path(args.output)}, args)
    with locked(args.output, "salvage explain"):
        return _explain(_targets(files, Path(args.output), args.format), args)


def _explain(targets: dict[Path, Path], args: ExplainArguments) -> tuple[list[Path], list[str]]:
    """Explains images: {image: the file to write}. Returns what `explain_files` returns."""
    explainer = Explainer(
        args.model,
        args.method,
        args.budget,
        args.classifier,
        args.device,
        patch_size=args.patch_size,
        allow_other_classifier=args.allow_other_classifier,
    )
    classes = explainer.targets(args.classes)
    page = Page()
    written: list[Path] = []
    failed: list[str] = []
    with tqdm(total=len(targets), desc="Explaining", disable=len(targets) == 1) as bar:
        for batch in _batches(list(targets), args.batch_size):
            for file, made in _made(explainer, batch, classes, args, failed):
                target = targets[file]
                try:
                    content = made.content(format_of(target))
                    if args.report is not None:
                        page.add(printable(file.name), made)
                except Exception as error:  # one image must not stop the others
                    failed.append(_message(file, error))
                    continue
                write_bytes(target, content)
                written.append(target)
            bar.update(len(batch))
    if gone := [path for path in written if not path.is_file()]:
        raise FileNotFoundError(f"{len(gone)} of {len(written)} files are gone since they were written, also {gone[0]}")
    if args.report is not None:
        write_bytes(Path(args.report), page.html(failed).encode())
        written.append(Path(args.report))
    return written, failed


def _batches(files: list[Path], size: int) -> Iterator[list[Path]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]


def _made(
    explainer: Explainer, files: list[Path], classes: list[int] | None, args: ExplainArguments, failed: list[str]
) -> list[tuple[Path, Explanation]]:
    """The explanations of a batch; a message is added to `failed` for every image that has none.

    Where a batch fails, its images are explained one by one, because one of them must not stop the others.
    """
    ready: list[tuple[Path, Prepared]] = []
    for file in files:
        try:
            picture = open_image(file, args.pixel_range)
        except ValueError as error:
            failed.append(str(error))
            continue
        try:
            ready.append((file, explainer.prepare(picture)))
        except Exception as error:  # a processor may raise anything
            failed.append(_message(file, error))
    found: list[tuple[Path, Explanation]] = []
    try:
        made = explainer.explain([image for _, image in ready], classes, args.top)
        return [(file, explanation) for (file, _), explanation in zip(ready, made, strict=True)]
    except Exception as error:  # a model may raise anything
        if len(ready) == 1:
            failed.append(_message(ready[0][0], error))
            return found
    for file, image in ready:
        try:
            found.append((file, explainer.explain([image], classes, args.top)[0]))
        except Exception as error:
            failed.append(_message(file, error))
    return found


def _message(file: Path, error: Exception) -> str:
    return f"image '{printable(file)}' cannot be explained: {reason_of(error)}"


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
        logger.warning("%d left out: %s", len(left_out), listed(left_out))
    if not files:
        raise ValueError(f"no images in {listed(inputs)}")
    return list(files)


def _is_one_file(output: str, files: list[Path]) -> bool:
    """Whether `output` is the file for the only image, and not a folder; raises ValueError where it fits neither."""
    path = Path(output)
    if not path.suffix or path.is_dir():
        return False
    if path.suffix[1:].lower() not in FORMATS:
        raise ValueError(
            f"output={output!r} ends in {path.suffix!r}; a file ends in one of {', '.join(FORMATS)}, and a folder "
            "whose name has a dot must be there before"
        )
    if len(files) > 1:
        raise ValueError(f"output={output!r} is one file, but there are {len(files)} images; give a folder")
    if path.exists() and path.samefile(files[0]):
        raise ValueError(f"output={output!r} is the image itself, which would be lost; give another name")
    return True


def _targets(files: list[Path], folder: Path, kind: str) -> dict[Path, Path]:
    """{image: its file in a folder}: STEM.png, or STEM_2.png and so on, never a file of other origin."""
    # Some file systems take "A.png" and "a.png" for one file.
    taken = {path.name.casefold() for path in folder.iterdir() if not made_here(path)}
    numbers: dict[str, int] = {}
    targets: dict[Path, Path] = {}
    for file in files:
        # A file system allows names of 255 bytes; number and suffix need some of them.
        stem = printable(file.stem).encode()[:200].decode(errors="ignore")
        number = numbers.get(stem, 1)
        while (name := f"{stem}.{kind}" if number == 1 else f"{stem}_{number}.{kind}").casefold() in taken:
            number += 1
        numbers[stem] = number + 1
        taken.add(name.casefold())
        targets[file] = folder / name
    return targets
