"""Arguments of the scripts that compare methods."""

from dataclasses import dataclass
from typing import Annotated

from ..arguments import PRIVATE, AtLeast, AtMost, ImageArguments, arg
from ..attribution_methods import REGISTRY
from ..masking import MaskingArguments
from ..objectives import OBJECTIVES

#: Methods that ask the classifier about `sampling_budget` subsets per image.
SAMPLING = tuple(name for name, method in REGISTRY.items() if method.takes_budget)


@dataclass
class MethodArguments(MaskingArguments, ImageArguments):
    """Which methods explain which classifier; `salvage benchmark` and `salvage exact-values` have these."""

    model_name_or_path: str = arg("", "The classifier: a name on the Hub or a folder.")
    explainers: list[str] = arg(
        [],
        "Trained explainers for the methods that need one, each OBJECTIVE=FOLDER, or OBJECTIVE=NAME of a model on "
        f"the Hub; objectives are {', '.join(OBJECTIVES)}.",
    )
    allow_other_classifier: bool = arg(
        False, "Go on, with a warning, where an explainer states that it was trained for another classifier."
    )
    # Not a list of `Literal`, which HfArgumentParser does not read: the names are checked below.
    methods: list[str] = arg(
        ["salvage", "last_attention", "attention_rollout", "random"], f"Methods to compare: {', '.join(REGISTRY)}."
    )
    sampling_budget: Annotated[int, AtLeast(1)] = arg(
        2000, f"Subsets per image that the methods {', '.join(SAMPLING)} ask for."
    )
    seed: Annotated[int, AtLeast(0), AtMost(2**32 - 1)] = arg(0, "The seed of everything random.")

    def __post_init__(self):
        super().__post_init__()
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is needed: the classifier to explain")
        self.check_one_source()
        if unknown := [name for name in self.methods if name not in REGISTRY]:
            raise ValueError(f"no attribution method {unknown[0]!r}; there are {', '.join(REGISTRY)}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must name one method or more, each once, got {self.methods}")
        folders = explainer_folders(self.explainers)
        needed = {name: objective for name in self.methods if (objective := REGISTRY[name].objective)}
        if missing := [name for name, objective in needed.items() if objective not in folders]:
            raise ValueError(f"the method {missing[0]} needs an explainer: give explainers {needed[missing[0]]}=FOLDER")
        if unused := [objective for objective in folders if objective not in needed.values()]:
            raise ValueError(
                f"explainers: {unused[0]} is not among the methods {', '.join(self.methods)}; add it there"
            )


@dataclass
class BenchmarkArguments(MethodArguments):
    """Arguments of `salvage benchmark`."""

    mask_dir: Annotated[str | None, PRIVATE] = arg(
        None,
        "A folder in which CLASS/NAME.png shows the region of the image CLASS/NAME.*, for RRA and RMA: white on black, "
        "or numbers of objects by a palette of colours.",
    )
    mask_column_name: str | None = arg(
        None,
        "In place of --mask_dir, the column of the data set with such pictures; 'mask' of pet's archive has trimaps, "
        "whose border belongs to no region.",
    )
    max_rank_samples: Annotated[int | None, AtLeast(0)] = arg(
        None, "How many images, from the first on, get SRG, LIF and MIF; 0: none. All of them when not given."
    )
    max_relative_samples: Annotated[int | None, AtLeast(0)] = arg(
        None, "How many images, from the first on, get the relative scores; 0: none. All of them when not given."
    )
    n_masks: Annotated[int, AtLeast(1)] = arg(128, "Draws per size and direction of the relative scores.")
    budget: Annotated[int | None, AtLeast(5)] = arg(
        None, "Forwards per image for the relative scores, in place of --n_masks."
    )
    per_device_eval_batch_size: Annotated[int, AtLeast(1)] = arg(32, "Images per batch and process.")
    output_dir: Annotated[str, PRIVATE] = arg(
        "outputs/benchmark", "The folder for results.json, and for the maps of every method in maps/."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.mask_dir is not None and self.mask_column_name is not None:
            raise ValueError(
                f"give either mask_dir or mask_column_name, got {self.mask_dir!r} and {self.mask_column_name!r}"
            )
        if self.max_rank_samples == 0 and self.max_relative_samples == 0 and not self.has_regions:
            raise ValueError(
                "nothing is scored: max_rank_samples and max_relative_samples are 0, and no mask_dir or "
                "mask_column_name"
            )

    @property
    def has_regions(self) -> bool:
        """Whether regions are given, so that RRA and RMA are computed."""
        return self.mask_dir is not None or self.mask_column_name is not None


def explainer_folders(explainers: list[str]) -> dict[str, str]:
    """Objective -> folder, from items "OBJECTIVE=FOLDER"; raises ValueError where an item has another form."""
    folders: dict[str, str] = {}
    for item in explainers:
        objective, _, folder = item.partition("=")
        if not folder:
            raise ValueError(f"explainers: {item!r} is not OBJECTIVE=FOLDER, for example salvage=outputs/salvage")
        if objective not in OBJECTIVES:
            raise ValueError(f"explainers: no objective {objective!r} in {item!r}; there are {', '.join(OBJECTIVES)}")
        if objective in folders:
            raise ValueError(f"explainers: {objective} is given twice, {folders[objective]!r} and {folder!r}")
        folders[objective] = folder
    return folders
