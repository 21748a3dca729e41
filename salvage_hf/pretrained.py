"""Loads models, and refuses those whose files do not hold all of their weights."""

from typing import Any

import torch


def load_model(auto_class: Any, name_or_path: str, *, new_weights: tuple[str, ...] = (), **options: Any) -> Any:
    """A model in evaluation mode: `auto_class.from_pretrained`, with what it loaded checked.

    transformers fills in random numbers where a checkpoint lacks weights, and only logs it: a backbone loaded as a
    classifier, or a subclass loaded without its code, would answer differently after every load.

    Args:
        auto_class: `AutoModel`, `AutoModelForImageClassification`, or another class with `from_pretrained`.
        name_or_path: a name on the Hub or a folder.
        new_weights: prefixes of the names of weights that may be missing, because they are to be trained.
        options: further arguments of `from_pretrained`.

    Raises:
        ValueError: where weights are missing, have other shapes than the config says, or are NaN or infinite.
    """
    try:
        model, info = auto_class.from_pretrained(name_or_path, output_loading_info=True, **options)
    except RuntimeError as error:  # weights of other shapes
        raise ValueError(f"model {name_or_path!r} cannot be loaded: {str(error).strip()}") from error
    missing = [key for key in sorted(info["missing_keys"]) if not key.startswith(new_weights)]
    if missing:
        raise ValueError(
            f"model {name_or_path!r} lacks {len(missing)} weights of a {type(model).__name__}, which would be random: "
            f"{', '.join(missing[:5])}{', ...' if missing[5:] else ''}. Give a complete model; load one with code of "
            "its own with trust_remote_code=True"
        )
    check_finite(model, name_or_path)
    return model.eval()


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Raises ValueError where weights of a model are NaN or infinite; those on the meta device have no values yet."""
    bad = [
        key
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all()
    ]
    if bad:
        raise ValueError(f"model {name!r} has weights that are NaN or infinite: {', '.join(bad[:5])}")
