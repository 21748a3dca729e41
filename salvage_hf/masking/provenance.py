"""Which classifier an explainer was trained for: stored in its config, and checked wherever both meet."""

import json
import logging
from pathlib import Path
from typing import Any

from ..files import digest, fingerprint
from ..pretrained import public_name
from .masked_classifier import MaskedClassifier

logger = logging.getLogger(__name__)

#: The steps of an image processor -> what they depend on. Its class does not count: it differs with the libraries that
#: are installed.
_STEPS = {
    "do_convert_rgb": (),
    "do_flip_channel_order": (),
    "include_top": (),
    "rescale_offset": (),
    "do_resize": ("size", "resample", "crop_pct"),
    "do_center_crop": ("crop_size",),
    "do_pad": ("pad_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}

#: Part of the provenance that must agree -> what it is called in messages.
_COMPARED = {
    "fingerprint": "weights or config",
    "masking": "masking",
    "patch_size": "patch_size",
    "processing": "image processor",
}


def processing_digest(processor: Any) -> str:
    """A digest of what an image processor does to pictures."""
    steps: dict[str, list[Any]] = {}
    for step, settings in _STEPS.items():
        if getattr(processor, step, False):
            steps[step] = [_plain(getattr(processor, name, None)) for name in settings]
    return digest(json.dumps(steps, sort_keys=True))


def _plain(setting: Any) -> Any:
    """A setting as JSON has it: a size as a dict, without the sides that transformers fills with None."""
    if setting is None or isinstance(setting, (int, float, list, tuple)):
        return setting
    return {side: pixels for side, pixels in dict(setting).items() if pixels is not None}


def provenance(classifier: MaskedClassifier) -> dict[str, Any]:
    """What identifies a classifier and its v(S), for an explainer's config.

    Returns:
        "name" (without local folders), "revision" (the commit on the Hub, or None), "fingerprint" of weights and
        config, "masking", "patch_size", and "processing", the digest of its image processor (None where unknown).
    """
    config, processor = classifier.config, classifier.processor
    return {
        "name": public_name(config.name_or_path) if config.name_or_path else None,
        "revision": getattr(config, "_commit_hash", None),
        "fingerprint": fingerprint(classifier.classifier),
        "masking": classifier.masking,
        "patch_size": classifier.patch_size,
        "processing": processing_digest(processor) if processor is not None else None,
    }


def stated_masking(config: Any, masking: str | None = None, patch_size: int | None = None) -> dict[str, Any]:
    """How v(S) hides patches, as arguments of `MaskedClassifier`: as given, else as an explainer's config states it.

    Args:
        config: the explainer's config.
        masking, patch_size: what was given; None where nothing was.
    """
    stated = getattr(config, "explained_classifier", None) or {}  # older code does not have it
    given = {"masking": masking, "patch_size": patch_size}
    return {name: stated.get(name) if value is None else value for name, value in given.items()}


def load_classifier_of(
    config: Any, name: str | None = None, masking: str | None = None, patch_size: int | None = None, **options: Any
) -> MaskedClassifier:
    """Loads the classifier that is explained: the one that is named, else the one that an explainer states.

    What an explainer states is a name on the Hub, or that of a folder, without its path. Such a folder is looked for
    beside the explainer's, where the demo leaves it. Whether it is the right one says `check_provenance`.

    Args:
        config: the explainer's config; None where there is none, so that a name is needed.
        name: the classifier: a folder, or a name on the Hub.
        masking, patch_size: how patches are hidden; None where it is as the explainer states.
        options: further arguments of `MaskedClassifier.from_pretrained`.

    Raises:
        ValueError: where no classifier is named or stated, or it cannot be loaded.
    """
    how = {**stated_masking(config, masking, patch_size), **options}
    if name is not None:
        return MaskedClassifier.from_pretrained(name, **how)
    stated = getattr(config, "explained_classifier", None) or {}
    if not (wanted := stated.get("name")):
        shown = getattr(config, "name_or_path", "")
        raise ValueError(f"classifier is needed: the explainer {shown!r} does not state which one it was trained for")
    beside = [parent / wanted for parent in Path(config.name_or_path).resolve().parents[:2]]  # also of FOLDER/last
    try:
        if folder := next(filter(Path.is_dir, beside), None):
            return MaskedClassifier.from_pretrained(str(folder), **how)
        return MaskedClassifier.from_pretrained(wanted, revision=stated.get("revision"), **how)
    except ValueError as error:
        raise ValueError(
            f"classifier is needed: {wanted!r}, which the explainer states, is not within reach ({error})"
        ) from error


def check_provenance(stated: dict[str, Any] | None, classifier: MaskedClassifier, allow_other: bool = False) -> None:
    """Compares the classifier that an explainer was trained for with the one that it is to explain.

    An explainer that states nothing is taken with a warning.

    Args:
        stated: what `provenance` returned when it was trained; None where its config states nothing.
        classifier: the classifier to explain.
        allow_other: whether another classifier is a warning, and not an error.

    Raises:
        ValueError: where they differ.
    """
    if not stated:
        logger.warning("The explainer does not state which classifier it was trained for: this is not checked.")
        return
    ours = provenance(classifier)
    differ = {
        name: f"{words} ({stated[name]}, here {ours[name]})"
        for name, words in _COMPARED.items()
        if None not in (stated.get(name), ours[name]) and stated[name] != ours[name]
    }
    if not differ:
        return
    message = (
        f"explainer was trained for the classifier {stated.get('name')!r}, which differs from {ours['name']!r} in "
        + ", ".join(differ.values())
    )
    if not allow_other:
        raise ValueError(f"{message}; give that classifier, or allow_other_classifier=True to go on regardless")
    logger.warning("The %s.", message)
