"""Result files, written whole or not at all, and digests that identify contents."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn


def check_writable(folder: str | Path) -> None:
    """Raises ValueError where a folder cannot be written to: now, rather than after hours of work."""
    probe = Path(folder) / ".writable"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {str(folder)!r} is not writable: {error}") from error


# Both functions write to another file and rename it, so that a run stopped half-way leaves the earlier file whole.


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content) + "\n")
    partial.rename(path)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.rename(path)


def digest(*parts: str | bytes) -> str:
    """A short hash of texts or bytes, the same in every process."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.encode() if isinstance(part, str) else part)
    return hasher.hexdigest()[:16]


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's weights: results belong to the weights, not to the folder that held them."""
    weights = sorted(model.state_dict().items())
    return digest(*(part for name, w in weights for part in (name, w.detach().float().cpu().numpy().tobytes())))
