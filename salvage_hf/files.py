"""Files of results: written whole or not at all, and told apart by what is in them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn


def check_writable(folder: str | Path) -> None:
    """Raises an error at once, rather than after hours, where a folder cannot be written to."""
    probe = Path(folder) / ".writable"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {str(folder)!r} is not writable: {error}") from error


# Both writers write beside the file and rename: a run that is stopped on the way leaves the earlier file whole.


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a file of results."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content) + "\n")
    partial.rename(path)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.rename(path)


def digest(*parts: str | bytes) -> str:
    """A short name of some content, the same in every process."""
    joined = hashlib.sha256()
    for part in parts:
        joined.update(part.encode() if isinstance(part, str) else part)
    return joined.hexdigest()[:16]


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's weights: results belong to the weights, not to the folder that held them."""
    weights = sorted(model.state_dict().items())
    return digest(*(part for name, w in weights for part in (name, w.detach().float().cpu().numpy().tobytes())))
