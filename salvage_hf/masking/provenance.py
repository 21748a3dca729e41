"""Which classifier an explainer was trained for: stored in its config, and checked wherever both meet."""

import json
import logging
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
