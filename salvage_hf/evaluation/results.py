"""The files of benchmarks and ablations: what they hold, and which earlier ones a new run may continue.

The folder of a benchmark holds:

- results.json:
    - "settings": all that scores depend on, apart from the method; "ids" and "targets": names and classes of images;
    - "methods": name -> the entry of a method, made by `method_entry`;
    - "classification": "labels" of all images of the data set, a digest of their "content", and for the classifier and
      each explainer its "weights" and "predictions";
    - "examples": positions in "ids" of the images whose pictures are kept; "misclassified": "ids" of images that
      Salvage gets wrong, with the "predicted" and the "true" class;
    - "label_names" of the classifier, and "grid_size", the rows and columns of patches.
- maps/METHOD.safetensors: the rows of a method, one per image, as `scoring` describes them.
- examples.safetensors: "pictures", uint8 [examples, H, W, 3], as the model sees them.
- misclassified.safetensors: "pictures" in the same form, and Salvage's maps of the "predicted" and the "true" class.

ablation.json holds the "settings" that all runs share, digests of what they were "scored_on", and under "arms" for each
arm and seed the "history" of the training and the scores "srg" and "r_srg" per image.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..attribution_methods import REGISTRY
from .scores import SCORES

#: File -> the script that writes it.
_WRITERS = {"results.json": "scripts/benchmark.py", "ablation.json": "scripts/ablation.py"}


@dataclass(frozen=True)
class Arm:
    """One way of training in the ablation.

    Args:
        title: its name in figures.
        objective: a key of `OBJECTIVES`.
        sampling: the law of the subsets, a key of `LAWS`; the objective's own when None.
    """

    title: str
    objective: str
    sampling: str | None


#: Name of an arm, in ablation.json and in the folders of its runs -> arm. The arms change first the objective, then the
#: sampling.
ARMS = {
    "vit_shapley-uniform": Arm("ViT-Shapley (MSE)", "vit_shapley", None),
    "salvage-uniform": Arm("Salvage, uninformed", "salvage", "uniform"),
    "salvage-guided": Arm("Salvage, informed", "salvage", "guided"),
}


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark: its folder, and what results.json in it holds."""

    folder: Path
    results: dict[str, Any]


def read_benchmark(folder: Path) -> Benchmark:
    """The benchmark in a folder; ValueError where there is none."""
    return Benchmark(folder, _read(folder / "results.json"))


def read_ablation(folder: Path) -> dict[str, Any]:
    """What ablation.json in a folder holds; ValueError where there is none."""
    return _read(folder / "ablation.json")


def _read(path: Path) -> dict[str, Any]:
    writer = _WRITERS[path.name]
    if not path.is_file():
        raise ValueError(f"no {path.name} in {str(path.parent)!r}: it is written by {writer}")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not what {writer} writes: {error}") from error


def earlier_results(folder: Path, measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier benchmark has left in a folder, None where it has left nothing.

    Args:
        folder: the folder.
        measured: "settings", "ids" and "targets" of the benchmark that would continue it.

    Raises:
        ValueError: where images or settings differ, because one table cannot hold results of both.
    """
    path = folder / "results.json"
    if not path.is_file():
        return None
    results = _read(path)
    changed = [name for name in measured if results.get(name) != measured[name]]
    if changed:
        raise ValueError(
            f"{str(path)!r} holds results with other {' and '.join(changed)}: there {results.get('settings')} on "
            f"{len(results['ids'])} images, here {measured['settings']} on {len(measured['ids'])}; "
            "give another output_dir"
        )
    return results


def earlier_ablation(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier ablation has left in a folder, None where it has left nothing.

    Raises:
        ValueError: where its runs had other settings.
    """
    path = folder / "ablation.json"
    if not path.is_file():
        return None
    ablation = _read(path)
    before = ablation["settings"]
    if changed := {key: (before.get(key), settings[key]) for key in settings if before.get(key) != settings[key]}:
        raise ValueError(
            f"{str(path)!r} holds runs with other arguments (before, now): {changed}; give another output_dir"
        )
    return ablation


def maps_file(folder: Path, method: str) -> Path:
    """The file of a method's rows in the folder of a benchmark."""
    return folder / "maps" / f"{method}.safetensors"


def method_entry(rows: Mapping[str, torch.Tensor], made_with: Mapping[str, Any]) -> dict[str, Any]:
    """A method's entry in results.json.

    Args:
        rows: the rows of `scoring`, one per image.
        made_with: what the maps depend on besides the settings: the weights of an explainer, or a number of subsets.

    Returns:
        The scores per image, None where undefined or not computed, without scores that were computed for no image; the
        mean "curves" over sizes 1..N; the cost in "forwards" and in "seconds" per image; "made_with".
    """
    computed = [score for score in SCORES.values() if score.name in rows]
    columns = [score.name for score in computed] + [f"{score.name}_stderr" for score in computed if score.has_stderr]
    return {
        **{column: [None if x != x else round(x, 6) for x in rows[column].tolist()] for column in columns},
        "curves": {
            score.name: [round(x, 6) for x in rows[f"{score.name}_curve"].double().nanmean(dim=0).tolist()]
            for score in computed
            if score.has_curve
        },
        "forwards": rows["forwards"][0].item(),
        "seconds": rows["seconds"].mean().item(),
        "made_with": dict(made_with),
    }


def method_titles(names: Iterable[str]) -> dict[str, str]:
    """Name -> title of these methods, in the registry's order."""
    wanted = set(names)
    return {name: method.title for name, method in REGISTRY.items() if name in wanted}
