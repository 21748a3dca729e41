"""Faults for tests: something happens before any of the changes that a run makes to a folder.

Changes are seen by an audit hook: files opened for writing, renamed or removed, folders made or removed. What C++ code
writes by itself is not seen; the library writes through Python.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}

#: The folders that are watched -> what is called before a change, with its name and the file.
_WATCHED: dict[Path, Callable[[str, Path], None]] = {}


@contextmanager
def watched(folder: Path, before_change: Callable[[str, Path], None]) -> Iterator[None]:
    """Calls `before_change(event, file)` before every change in a folder; changes that it makes itself do not count."""
    if not _hook.installed:  # an audit hook cannot be removed again
        sys.addaudithook(_hook)
        _hook.installed = True
    folder = Path(folder).resolve()
    _WATCHED[folder] = before_change
    try:
        yield
    finally:
        _WATCHED.pop(folder, None)


def _hook(event: str, arguments: tuple) -> None:
    if not _WATCHED or event not in _CHANGES:
        return
    name = arguments[0]
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    if not isinstance(name, (str, bytes, os.PathLike)):  # a file that is open already
        return
    file = Path(os.path.abspath(os.fsdecode(name)))  # noqa: PTH100  # without links, which `resolve` would follow
    for folder, before_change in list(_WATCHED.items()):
        # `shutil.rmtree` gives names relative to an open folder, which may be any.
        if folder in (file, *file.parents) or not os.path.isabs(os.fsdecode(name)):  # noqa: PTH117
            del _WATCHED[folder]
            try:
                before_change(event, file)
            finally:
                _WATCHED[folder] = before_change


_hook.installed = False


def states_of_kills(run: Callable[[], object], folder: Path, states: Path) -> list[Path]:
    """Copies of a folder before every change that `run` makes in it: what a kill at that moment would leave behind.

    Written data that is still in a buffer of the process is not in the copy, as it would be lost by a kill.
    """
    copies: list[Path] = []

    def copy(event: str, file: Path) -> None:
        copies.append(states / f"{len(copies):03d}")
        if folder.exists():
            shutil.copytree(folder, copies[-1])

    with watched(folder, copy):
        run()
    return copies
