"""Result files, written whole or not at all by one process at a time, and digests that identify contents."""

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import filelock
import torch
from safetensors.torch import save
from torch import nn

logger = logging.getLogger(__name__)

#: The lock of a folder, and beside it who holds it. The operating system frees the lock when its process ends, however
#: it ends. The file stays, because removing it could leave two processes with a lock each.
LOCK, LOCK_HOLDER = ".lock", ".lock.json"

#: The folders that are locked, each with the process that has locked it: a forked process has copies of this.
_LOCKED: dict[Path, int] = {}


def check_writable(folder: str | Path) -> None:
    """Raises ValueError where a folder cannot be written to: now, rather than after hours of work."""
    probe = Path(folder) / ".writable"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {str(folder)!r} is not writable: {error}") from error


@contextlib.contextmanager
def locked(folder: str | Path, what: str) -> Iterator[None]:
    """Keeps other processes from writing to an output folder, makes it, and removes what a killed process left there.

    A process may lock a folder again that it has locked. Processes that belong together (`accelerate launch`) must all
    call this, after the accelerator is made: the first one takes the lock, and where it cannot, all of them raise.

    Args:
        folder: the output folder, which need not exist.
        what: what the process does there, for the message: "training".

    Raises:
        ValueError: where another process holds the lock, or the folder is not writable.
    """
    path = Path(folder).resolve()
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    with contextlib.ExitStack() as stack:
        refused: list[str | None] = [None]
        if _LOCKED.get(path) != os.getpid() and not (distributed and torch.distributed.get_rank()):
            try:
                stack.enter_context(_hold_lock(path, what))
            except ValueError as error:
                refused = [str(error)]
        if distributed:
            torch.distributed.broadcast_object_list(refused)
        if refused[0]:
            raise ValueError(refused[0])
        yield


@contextlib.contextmanager
def _hold_lock(folder: Path, what: str) -> Iterator[None]:
    """Holds the lock of a folder; raises ValueError where another process holds it."""
    check_writable(folder)
    lock, holder = filelock.FileLock(folder / LOCK), folder / LOCK_HOLDER
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"output_dir {str(folder)!r} is being written by {_who_holds(holder)}; wait for it or give another "
            "output_dir"
        ) from None
    except (OSError, NotImplementedError) as error:
        logger.warning(
            "output_dir %r cannot be locked (%s): make sure that no other process writes to it.",
            str(folder),
            error,
        )
    _LOCKED[folder] = os.getpid()
    try:
        remove_leftovers(folder)
        since = time.strftime("%Y-%m-%d %H:%M")
        who = {"process": os.getpid(), "host": socket.gethostname(), "since": since, "what": what}
        try:
            write_json(holder, who)
        except OSError as error:  # a full disk
            raise ValueError(f"output_dir {str(folder)!r} is not writable: {error}") from error
        yield
    finally:
        del _LOCKED[folder]
        holder.unlink(missing_ok=True)
        lock.release()


def _who_holds(holder: Path) -> str:
    """Who holds the lock of a folder, in words."""
    try:
        who = json.loads(holder.read_text())
        return f"process {who['process']} on {who['host']} since {who['since']} ({who['what']})"
    except (OSError, ValueError, KeyError):  # the other process has just begun or ended
        return "another process"


def remove_leftovers(folder: Path) -> None:
    """Removes the unfinished files that a killed process left directly in a folder; call it with the folder locked."""
    for file in folder.glob("*.partial"):
        if file.is_file() and re.search(r"\.[0-9a-f]{8}\.partial$", file.name):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """A file to write, which replaces `path` in the end; where writing fails, it vanishes and `path` stays as it was.

    Its name is new each time, so that two processes that write the same file do not meet in it. Raises OSError that
    names `path`.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OSError(f"{str(path)!r} could not be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with _written_whole(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write_bytes(path, (json.dumps(content) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file whole or not at all."""
    # Not by `save_file`: where it is killed it leaves a temporary file of its own, and its errors do not name the file.
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def digest(*parts: str | bytes) -> str:
    """A short hash of texts or bytes, the same in every process."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.encode() if isinstance(part, str) else part)
    return hasher.hexdigest()[:16]


#: Keys of a config that change no number.
_NOT_IN_FINGERPRINT = {
    *("_name_or_path", "architectures", "attn_implementation", "_attn_implementation", "dtype", "transformers_version"),
    *("id2label", "label2id", "output_attentions", "output_hidden_states", "problem_type", "return_dict"),
}


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's weights and config: results belong to what a model is, not to the folder that held it.

    Only what differs from the defaults of its config class counts, so that a new version of transformers, which adds
    keys with defaults, leaves fingerprints as they are.
    """
    parts: list[str | bytes] = []
    for name, value in sorted(model.state_dict().items()):
        parts += [name, _bytes_of(value)]
    config: Any = getattr(model, "config", None)
    if config is not None:
        try:
            defaults = type(config)().to_dict()
        except TypeError:  # a config with code of its own may need arguments
            defaults = {}
        parts.append(json.dumps(_changed(config.to_dict(), defaults), sort_keys=True, default=str))
    return digest(*parts)


def _changed(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What changes numbers in a config and differs from the defaults, also in the configs that it holds."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        default = defaults.get(key)
        if isinstance(value, dict):
            changed[key] = _changed(value, default if isinstance(default, dict) else {})
        elif value != default:
            changed[key] = value
    return {key: value for key, value in changed.items() if key not in _NOT_IN_FINGERPRINT and value != {}}


def _bytes_of(value: Any) -> bytes:
    """The bytes of an entry of a state dict; quantised layers also have entries that are no tensors."""
    if not isinstance(value, torch.Tensor):
        parts = value if isinstance(value, tuple) else ()
        return b"".join(map(_bytes_of, parts)) or repr(value).encode()
    if value.is_meta:
        raise ValueError("the model has weights that are offloaded; load it without offloading to identify it")
    values = value.dequantize() if value.is_quantized else value
    return values.detach().float().cpu().numpy().tobytes()
