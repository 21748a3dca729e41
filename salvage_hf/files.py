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


#: Keys of a config that change no number.
_NOT_IN_FINGERPRINT = {
    *("_name_or_path", "architectures", "attn_implementation", "_attn_implementation", "dtype", "transformers_version"),
    *("id2label", "label2id", "output_attentions", "output_hidden_states", "return_dict"),
}


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's weights and config: results belong to what a model is, not to the folder that held it.

    Only what differs from the defaults of its config class counts, so that a new version of transformers, which adds
    keys with defaults, leaves fingerprints as they are.
    """
    parts: list[str | bytes] = []
    for name, value in sorted(model.state_dict().items()):
        parts += [name, _bytes_of(value)]
    if hasattr(model, "config"):
        defaults = type(model.config)().to_dict()
        config = {
            key: value
            for key, value in model.config.to_dict().items()
            if key not in _NOT_IN_FINGERPRINT and value != defaults.get(key)
        }
        parts.append(json.dumps(config, sort_keys=True, default=str))
    return digest(*parts)


def _bytes_of(value: Any) -> bytes:
    """The bytes of an entry of a state dict; quantised layers also have entries that are no tensors."""
    if not isinstance(value, torch.Tensor):
        parts = value if isinstance(value, tuple) else ()
        return b"".join(map(_bytes_of, parts)) or repr(value).encode()
    values = value.dequantize() if value.is_quantized else value
    return values.detach().float().cpu().numpy().tobytes()
