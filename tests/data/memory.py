"""How much memory a part of a test needs at its peak."""

import contextlib
import types
from pathlib import Path

import pytest


@contextlib.contextmanager
def peak_memory():
    """Yields an object whose `megabytes`, afterwards, are the most memory that was used beyond what was before."""
    peak = types.SimpleNamespace(megabytes=0.0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # lets Linux forget the highest use so far
    except OSError:
        pytest.skip("this system does not tell the highest use of memory of a part of a program")
    before = _status("VmRSS")
    yield peak
    peak.megabytes = _status("VmHWM") - before


def _status(key):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1024
