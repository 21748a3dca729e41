"""Loads models and image processors, refuses what lacks weights, and names models without local paths."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor

from .tensors import described


def load_config(name_or_path: str, **options: Any) -> Any:
    """A model's config; raises ValueError where there is none."""
    return _load("config", AutoConfig, name_or_path, **options)


def load_processor(name_or_path: str, **options: Any) -> Any:
    """A model's image processor; raises ValueError where there is none."""
    return _load("image processor", AutoImageProcessor, name_or_path, **options)


def load_model(auto_class: Any, name_or_path: str, *, new_head: bool = False, **options: Any) -> Any:
    """A model in evaluation mode: `auto_class.from_pretrained`, with what it loaded checked.

    transformers fills in random numbers where a checkpoint lacks weights, and only logs it: a backbone loaded as a
    classifier, or a subclass loaded without its code, would answer differently after every load.

    Args:
        auto_class: `AutoModel`, `AutoModelForImageClassification`, or another class with `from_pretrained`.
        name_or_path: a name on the Hub or a folder.
        new_head: whether weights beyond the backbone may be missing, because they are to be trained; with
            `ignore_mismatched_sizes` among the options, they may also have other shapes.
        options: further arguments of `from_pretrained`.

    Raises:
        ValueError: where there is no such model, or weights are missing, have other shapes than the config says, or are
            NaN or infinite.
    """
    model, info = _load("model", auto_class, name_or_path, output_loading_info=True, **options)
    mismatched = [key for key, *_shapes in info["mismatched_keys"]]
    missing = sorted({*info["missing_keys"], *mismatched})
    if new_head:
        missing = [key for key in missing if _is_of_backbone(model, key)]
    if missing:
        raise ValueError(
            f"model {name_or_path!r} lacks {len(missing)} weights of a {type(model).__name__}, or has them in other "
            f"shapes, so that they would be random: {', '.join(missing[:3])}{', ...' if missing[3:] else ''}; give a "
            "complete model, and trust_remote_code=True where it has code of its own"
        )
    check_finite(model, name_or_path)
    return model.eval()


def _load(what: str, auto_class: Any, name_or_path: str, **options: Any) -> Any:
    if not isinstance(name_or_path, (str, os.PathLike)) or not str(name_or_path):
        raise ValueError(f"name_or_path must be a name on the Hub or a folder, got {described(name_or_path)}")
    if missing := _missing(what, str(name_or_path)):
        raise ValueError(f"the {what} of {str(name_or_path)!r} cannot be loaded: {missing}")
    try:
        return auto_class.from_pretrained(name_or_path, **options)
    except Exception as error:  # transformers raises many types of error for files that are missing or damaged
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the {what} of {str(name_or_path)!r} cannot be loaded: {type(error).__name__}: {reason[:200]}"
        ) from error


def _missing(what: str, name: str) -> str:
    """What is not there of a folder with a model; "" where all is, or the name may be one on the Hub."""
    path = Path(name)
    if path.is_dir():
        has_model = what == "image processor" or (path / "config.json").is_file()
        return "" if has_model else "the folder has no config.json, so it holds no model"
    return "there is no such folder" if name.startswith((".", "/", "~")) or name.count("/") > 1 else ""


def _is_of_backbone(model: Any, key: str) -> bool:
    """Whether a weight belongs to a model's backbone; some backbones hold a pooler, or in timm the head."""
    return key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key and ".head." not in key


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Raises ValueError where weights of a model are NaN or infinite; those on the meta device have no values yet."""
    bad = [
        key
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all()
    ]
    if bad:
        raise ValueError(f"model {name!r} has weights that are NaN or infinite: {', '.join(bad[:5])}")


def hub_name(name: str | None) -> str | None:
    """A name on the Hub; None for a local folder, also for one that is gone."""
    if name is None or Path(name).exists() or Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        return None
    return name


def public_name(name: str) -> str:
    """A name on the Hub, or the last part of a folder's path: local paths must reach neither cards nor configs."""
    return hub_name(name) or Path(name).resolve().name
