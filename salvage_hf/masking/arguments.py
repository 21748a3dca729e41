"""Arguments of every script that hides patches."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..arguments import AtLeast, arg
from .strategies import STRATEGIES


@dataclass
class PatchArguments:
    """Which patches are hidden."""

    patch_size: Annotated[int | None, AtLeast(1)] = arg(
        None,
        "The side of a patch in pixels of the processed image. When not given, that of the explainer where one is "
        "given that states it, and otherwise the classifier's own, where its tokens are patches.",
    )


@dataclass
class MaskingArguments(PatchArguments):
    """Which patches are hidden, and how."""

    masking: Literal[tuple(STRATEGIES)] | None = arg(  # type: ignore[valid-type]
        None,
        "How patches are hidden from the classifier. When not given, as the explainer states it where one is given, "
        "and otherwise 'drop' where that is exact, for the patches of plain vision transformers, and 'zero' elsewhere.",
    )
