"""Images in a folder: which files belong to which class, found by a walk that names what it leaves out."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from .pictures import printable

logger = logging.getLogger(__name__)

#: Files that are no images, as they lie beside images. Files with any other name are opened.
OTHER_SUFFIXES = {
    *(".csv", ".db", ".doc", ".docx", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".parquet", ".pdf"),
    *(".py", ".rst", ".tsv", ".txt", ".url", ".xls", ".xlsx", ".xml", ".yaml", ".yml"),
}
OTHER_NAMES = {"authors", "copying", "license", "notice", "readme"}

#: Files in which `datasets` looks for labels. Here the names of folders are the labels.
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}


def find_images(folder: str) -> tuple[list[str], list[str] | None]:
    """All files in a folder that may be images, and the class of each.

    A class is a folder directly in `folder`; its images may lie in further folders. Symbolic links are followed. Hidden
    files, and those whose names say that they are no images, are counted in the log. Whatever else is left out is named
    in a warning.

    Args:
        folder: a folder with one sub-folder per class, or with images only.

    Returns:
        The paths, absolute and sorted, and as many names of classes; None in their place where there are no sub-folders
        with images.

    Raises:
        ValueError: where there are no images, where images lie beside sub-folders with images, where a metadata file
            says that the labels are elsewhere, or where a name is not UTF-8.
    """
    root, shown = Path(folder).resolve(), f"folder '{printable(folder)}'"
    entries = walk(root)
    if metadata := [str(path) for path in entries.files if path.name in METADATA]:
        raise ValueError(
            f"{shown} holds {listed(metadata)}, but labels are the names of sub-folders, and metadata files are not "
            "read; give the folder as dataset_name, and `datasets` reads them"
        )
    if entries.left_out:
        number, reasons = len(entries.left_out), listed(sorted(entries.left_out))
        logger.warning("%s: %d left out: %s", shown, number, reasons)
    images = [path for path in entries.files if not is_of_other_kind(path)]
    if others := entries.num_hidden + len(entries.files) - len(images):
        logger.info("%s: %d entries are hidden, or no images by their names", shown, others)
    if nameless := [str(path) for path in images if printable(path) != str(path)]:
        raise ValueError(f"{shown} holds names that are not UTF-8, as data sets need: {listed(nameless)}; rename them")
    if not images:
        raise ValueError(f"no images found in {shown}: expected one sub-folder per class")
    inner = [path.relative_to(root).parts for path in images]
    if empty := entries.top_folders - {first for first, *rest in inner if rest}:
        logger.warning("%s: %d sub-folders without images are no classes: %s", shown, len(empty), listed(sorted(empty)))
    loose = [first for first, *rest in inner if not rest]
    if loose and len(loose) < len(images):
        raise ValueError(
            f"{shown} holds sub-folders, which are the classes, and beside them {len(loose)} images without a class: "
            f"{listed(loose)}; move them"
        )
    order = sorted(range(len(images)), key=lambda index: str(images[index]))
    return [str(images[index]) for index in order], None if loose else [inner[index][0] for index in order]


@dataclass
class Entries:
    """What a folder holds."""

    files: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # with the reason
    num_hidden: int = 0
    top_folders: set[str] = field(default_factory=set)


def walk(root: Path) -> Entries:
    """What a folder holds, and every folder in it; links are followed unless they lead back."""
    entries = Entries()
    # Folders, each with the real paths of itself and of those through which it was reached.
    to_read: list[tuple[Path, tuple[Path, ...]]] = [(root, (root.resolve(),))]
    while to_read:
        folder, above = to_read.pop()
        try:
            for path in folder.iterdir():
                if path.name.startswith(".") or path.name == "__MACOSX":
                    entries.num_hidden += 1
                elif path.is_file():
                    entries.files.append(path)
                elif not path.is_dir():
                    reason = "a link to nothing" if path.is_symlink() else "neither a file nor a folder"
                    entries.left_out.append(f"{path} ({reason})")
                elif (real := path.resolve()) in above:
                    entries.left_out.append(f"{path} (a link to a folder that holds it)")
                else:
                    to_read.append((path, (*above, real)))
                    if folder == root:
                        entries.top_folders.add(path.name)
        except OSError as error:
            raise ValueError(f"folder '{printable(folder)}' cannot be read: {error}") from error
    return entries


def is_of_other_kind(path: Path) -> bool:
    """Whether a file's name says that it is no image."""
    return path.suffix.lower() in OTHER_SUFFIXES or path.name.lower() in OTHER_NAMES


def listed(names: Collection[str], separator: str = ", ") -> str:
    """Names for a message: the first 20, and how many more there are."""
    shown = separator.join(printable(name) for name in list(names)[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown
