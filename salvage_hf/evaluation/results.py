"""What the files of benchmarks and ablations hold; `reading` reads and checks them.

The folder of a benchmark holds:

- results.json:
    - "settings": all that scores depend on, apart from the method; "ids" and "targets": names and classes of images;
    - "methods": name -> the entry of a method, made by `method_entry`;
    - "classification": "labels" of all images of the data set, a digest of their "content" and names, and for the
      classifier and each explainer its "weights" and "predictions";
    - "examples": positions in "ids" of the images whose pictures are kept; "misclassified": "ids" of images that
      Salvage gets wrong, with the "predicted" and the "true" class;
    - "label_names" of the classifier, and "grid_size", the rows and columns of patches.
- maps/METHOD.safetensors: the rows of a method, one per image, as `scoring` describes them.
- examples.safetensors: "pictures", uint8 [examples, H, W, 3], as the model sees them.
- misclassified.safetensors: "pictures" in the same form, and Salvage's maps of the "predicted" and the "true" class.

ablation.json holds the "settings" that all runs share, digests of what they were "scored_on", the "exponents" of the
arms that the paper does not have, and under "arms" for each arm and seed the "history" of the training and the scores
"srg" and "r_srg" per image.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ..attribution_methods import REGISTRY
from .scores import SCORES


@dataclass(frozen=True)
class Arm:
    """One way of training in the ablation.

    Args:
        title: its name in figures.
        objective: a key of `OBJECTIVES`.
        sampling: the law of the subsets, a key of `LAWS`; the objective's own when None.
        exponent: of guided sampling; None for other laws.
    """

    title: str
    objective: str
    sampling: str | None
    exponent: float | None = None


#: Name of an arm, in ablation.json and in the folders of its runs -> arm. The arms of the paper change first the
#: objective, then the sampling.
ARMS = {
    "vit_shapley-uniform": Arm("ViT-Shapley (MSE)", "vit_shapley", None),
    "salvage-uniform": Arm("Salvage, uninformed", "salvage", "uniform"),
    "salvage-guided": Arm("Salvage, informed", "salvage", "guided", 1.0),
}


def arms_with(exponents: Iterable[float]) -> dict[str, Arm]:
    """Name -> arm: those of the paper, then guided sampling with each of these exponents."""
    sharper = {f"salvage-guided-{e:g}": Arm(f"Salvage, exponent {e:g}", "salvage", "guided", e) for e in exponents}
    return {**ARMS, **sharper}


def finished_runs(ablation: Mapping[str, Any]) -> list[tuple[Arm, Mapping[str, Any]]]:
    """The arms in the order of `arms_with`, each with its finished runs by seed; without arms that have none."""
    arms = arms_with(ablation.get("exponents", []))
    return [(arm, runs) for name, arm in arms.items() if (runs := ablation["arms"].get(name))]


def maps_file(folder: Path, method: str) -> Path:
    """The file of a method's rows in the folder of a benchmark."""
    return folder / "maps" / f"{method}.safetensors"


def measured_on(device: torch.device) -> dict[str, str]:
    """On what a method is measured: its seconds are of this device, its scores of these versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}


def method_entry(
    rows: Mapping[str, torch.Tensor], made_with: Mapping[str, Any], measured: Mapping[str, str]
) -> dict[str, Any]:
    """A method's entry in results.json.

    Args:
        rows: the rows of `scoring`, one per image.
        made_with: what the maps depend on besides the settings: the weights of an explainer, or a number of subsets.
        measured: what `measured_on` returns.

    Returns:
        The scores per image, None where undefined or not computed, without scores that were computed for no image; the
        mean "curves" over sizes 1..N; the cost in "forwards" and in "seconds" per image; "made_with"; "measured_on".
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
        "measured_on": dict(measured),
    }


def method_titles(names: Iterable[str]) -> dict[str, str]:
    """Name -> title of these methods, in the registry's order."""
    wanted = set(names)
    return {name: method.title for name, method in REGISTRY.items() if name in wanted}
