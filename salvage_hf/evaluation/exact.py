"""How near maps come to the truth, on images of so few patches that the classifier can be asked about all subsets.

Two truths are enumerated for the target class of each image: the Shapley values (eq. 1) of its log-probability, centred
over the classes, which Salvage explains, and those of its probability, which ViT-Shapley and FastSHAP explain. Every
method's maps are correlated with them, over the patches of an image.

exact_values.json holds the "settings"; "ids" and "targets", names and classes of the images; the truths as "exact",
truth -> [images, N]; under "maps", for each method and each budget of the refinement, the "attributions" [images, N]
and, truth -> coefficient, the "correlations" per image (None where a map or a truth is constant) with their "mean" and
"stderr"; and the titles of the rows of the refinement as "refined". predictions/ holds the predictions from all
subsets, a file per image, so that a stopped run goes on.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm.auto import tqdm

from ..arguments import PRIVATE, AtLeast, arg
from ..attribution_methods import REGISTRY, load
from ..data.images import content_digest
from ..faithfulness import mean_and_stderr
from ..files import digest, fingerprint, locked, remove_leftovers, write_json, write_tensors
from ..masking import MaskedClassifier
from ..recipes import write_recipe
from ..refinement import LEAST_BUDGET
from ..targets import activation, target_attributions, target_probability
from ..version import VERSION
from .arguments import MethodArguments
from .loading import LoadedMethods, load_classifier, load_labelled_images, load_methods
from .results import method_titles
from .tables import Cell, Table

logger = logging.getLogger(__name__)

#: Images of more patches have too many subsets.
MAX_PATCHES = 16

#: Subsets that are asked about at once.
_BLOCK_SIZE = 4096

#: What is kept of a prediction.
GAMES = ("log_probability", "probability")

#: Name of a truth -> its heading in tables.
TRUTHS = {
    "shapley_log_probability": "Shapley, log p",
    "shapley_probability": "Shapley, p",
}
COEFFICIENTS = ("pearson", "spearman")

#: The method that has rows by budget in place of a row of its own.
_REFINED = "salvage_refined"


@dataclass
class ExactArguments(MethodArguments):
    """Arguments of `salvage exact-values`."""

    max_eval_samples: Annotated[int, AtLeast(1)] = arg(20, "Use only this many of the images, chosen at random.")
    budgets: list[int] = arg(
        [0, 16, 64, 256, 1024], f"Forwards per image that {_REFINED} has, where it is among the methods."
    )
    output_dir: Annotated[str, PRIVATE] = arg(
        "outputs/exact_values",
        "The folder for exact_values.json, which is replaced, and for predictions/, which later runs take up.",
    )

    def __post_init__(self):
        super().__post_init__()
        fit = all(budget == 0 or budget >= LEAST_BUDGET for budget in self.budgets)
        if not fit or not self.budgets or len(set(self.budgets)) < len(self.budgets):
            raise ValueError(
                f"budgets must be one number or more, 0 or at least {LEAST_BUDGET}, each once, got {self.budgets}"
            )


def run_exact_values(args: ExactArguments) -> dict[str, Any]:
    """Enumerates the truths of images, and correlates the maps of every method with them.

    Returns:
        What exact_values.json holds.

    Raises:
        ValueError: where the images have too many patches, a method or its explainer does not fit the classifier, or a
            map or a prediction is NaN or infinite, or where another process writes to `output_dir`.
    """
    device, folder = torch.device("cuda" if torch.cuda.is_available() else "cpu"), Path(args.output_dir)
    v = load_classifier(args).to(device)
    data = load_labelled_images(args, v, args.seed)
    subsets = all_subsets(math.prod(v.patch_grid(data.images[data.chosen[0]]["pixel_values"][None])))
    loaded, classifier = load_methods(args, v), fingerprint(v.classifier)
    exact: dict[str, list[torch.Tensor]] = {truth: [] for truth in TRUTHS}
    maps: dict[str, list[torch.Tensor]] = {}
    with locked(folder, "salvage exact-values"):
        (folder / "predictions").mkdir(exist_ok=True)
        remove_leftovers(folder / "predictions")
        write_recipe(folder, "exact-values", args)
        for index in tqdm(data.chosen, desc="Images"):
            batch, name = data.images.batch([index]), data.names[index]
            pixel_values, targets = batch["pixel_values"].to(device), batch["labels"].to(device)
            # The maps first, because a method that fails should not do so after minutes.
            for row, values in _maps(args, v, loaded, pixel_values, targets, name).items():
                maps.setdefault(row, []).append(values)
            pixels = batch["pixel_values"].numpy().tobytes()
            key = digest(classifier, v.masking, str(v.patch_size), pixels, str(targets.item()), VERSION)
            path = folder / "predictions" / f"{key}.safetensors"
            predicted = _kept_predictions(path, v, pixel_values, targets, subsets, name)
            for truth, values in truths_of(predicted).items():
                exact[truth].append(values)
        settings = {
            "classifier": classifier,
            "processor": digest(data.images.processor.to_json_string()),
            "masking": v.masking,
            "patch_size": v.patch_size,
            "content": content_digest(data.images, data.chosen),
            "seed": args.seed,
            "made_with": loaded.made_with,
            "budgets": args.budgets if _REFINED in args.methods else [],  # in place of its budget in "made_with"
            "salvage_hf": VERSION,
        }
        truths = {truth: torch.stack(values) for truth, values in exact.items()}
        results = {
            "settings": settings,
            "ids": [data.names[index] for index in data.chosen],
            "targets": [data.labels[index] for index in data.chosen],
            "exact": {truth: values.tolist() for truth, values in truths.items()},
            "refined": _refined_titles(args.budgets) if _REFINED in args.methods else {},
            "maps": {row: _row(torch.stack(values), truths) for row, values in maps.items()},
        }
        write_json(folder / "exact_values.json", results)
    return results


def all_subsets(num_patches: int) -> torch.Tensor:
    """All subsets of N patches: bool [2^N, N]; the subset i shows the patches whose bits are set in i.

    Raises:
        ValueError: where there are more than 16 patches, or less than 2.
    """
    if not 2 <= num_patches <= MAX_PATCHES:
        raise ValueError(
            f"the classifier's images must have 2 to {MAX_PATCHES} patches, because all 2^N subsets are asked about; "
            f"they have {num_patches}: give a classifier whose image processor makes images of another size"
        )
    return (torch.arange(2**num_patches)[:, None] >> torch.arange(num_patches)) % 2 == 1


@torch.no_grad()
def predictions(
    v: MaskedClassifier, pixel_values: torch.Tensor, targets: torch.Tensor, subsets: torch.Tensor, title: str
) -> dict[str, torch.Tensor]:
    """What the classifier predicts for the target class of one image from subsets.

    Args:
        v: the classifier.
        pixel_values: [1, C, H, W].
        targets: int64 [1].
        subsets: bool [M, N].
        title: what the progress bar is called.

    Returns:
        float64 [M] on the CPU: "probability", and "log_probability", centred over the classes; with one label it is the
        logit.
    """
    found: dict[str, list[torch.Tensor]] = {game: [] for game in GAMES}
    for block in tqdm(subsets.split(_BLOCK_SIZE), desc=title, leave=False):
        logits = v.logits(pixel_values, block[None]).double()
        # Centred logits are centred log-probabilities: what softmax subtracts is the same for all classes.
        centred = logits if logits.shape[-1] == 1 else logits - logits.mean(dim=-1, keepdim=True)
        found["log_probability"].append(target_attributions(centred, targets)[0].cpu())
        found["probability"].append(target_probability(activation(logits), targets)[0].double().cpu())
    return {game: torch.cat(blocks) for game, blocks in found.items()}


def truths_of(predicted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The truths about one image: name, a key of `TRUTHS` -> float64 [N].

    Args:
        predicted: "log_probability" and "probability" float64 [2^N] of all subsets, in the order of `all_subsets`.
    """
    return {
        "shapley_log_probability": shapley_values(predicted["log_probability"]),
        "shapley_probability": shapley_values(predicted["probability"]),
    }


def shapley_values(game: torch.Tensor) -> torch.Tensor:
    """Shapley values (eq. 1) by enumeration.

    Args:
        game: float64 [2^N], the value of each subset in the order of `all_subsets`.

    Returns:
        float64 [N]; they sum to v(N) - v(empty).
    """
    subsets, sizes, subsets_of_size = _enumerated(game)
    num_patches = subsets.shape[1]
    # s! (N - s - 1)! / N! is 1 / ((N - s) (N over s)). A subset with the patch counts as the smaller one joined by it.
    with_patch = 1 / (sizes.clamp_min(1) * subsets_of_size)
    without_patch = 1 / ((num_patches - sizes).clamp_min(1) * subsets_of_size)
    return _weighted_sum(game, torch.where(subsets, with_patch[:, None], -without_patch[:, None]))


def _enumerated(game: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All subsets bool [2^N, N], their sizes int64 [2^N], and how many subsets have this size, float64 [2^N]."""
    subsets = all_subsets(len(game).bit_length() - 1)
    sizes = subsets.sum(dim=1)
    return subsets, sizes, sizes.bincount().double()[sizes]


def _weighted_sum(game: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum of values [2^N] with weights [2^N, N] that sum to zero over subsets: [N]."""
    # Without v(empty), so that a game that never changes has values of exactly zero, which correlate with nothing.
    return (game - game[0]) @ weights.to(game.dtype)


def correlation(maps: torch.Tensor, truths: torch.Tensor, coefficient: str) -> torch.Tensor:
    """How far maps agree with truths over patches: two [I, N] -> float64 [I], NaN where one of them is constant.

    Args:
        maps, truths: [I, N].
        coefficient: "pearson", or "spearman", which is Pearson's of the ranks; equal values share their mean rank.
    """
    pair = torch.stack([maps.double(), truths.double()])  # [2, I, N]
    if coefficient == "spearman":
        below = (pair[..., None, :] < pair[..., :, None]).sum(dim=-1)
        not_above = (pair[..., None, :] <= pair[..., :, None]).sum(dim=-1)
        pair = (below + not_above).double()  # twice the mean rank
    centred = pair - pair.mean(dim=-1, keepdim=True)
    return centred.prod(dim=0).sum(dim=-1) / centred.square().sum(dim=-1).sqrt().prod(dim=0)


def _maps(
    args: ExactArguments,
    v: MaskedClassifier,
    loaded: LoadedMethods,
    pixel_values: torch.Tensor,
    targets: torch.Tensor,
    name: str,
) -> dict[str, torch.Tensor]:
    """What is correlated with the truths of one image: row -> [N], in the order of the table."""
    rows = {row: method(pixel_values, targets) for row, method in loaded.methods.items() if row != _REFINED}
    if _REFINED in loaded.methods:
        explainer, other = loaded.explainers["salvage"], args.allow_other_classifier
        for budget in args.budgets:
            options = {"explainer": explainer, "budget": budget, "allow_other_classifier": other}
            rows[f"{_REFINED}_{budget}"] = load(_REFINED, v, args.seed, **options)(pixel_values, targets)
    for row, values in rows.items():
        if not values.isfinite().all():
            raise ValueError(f"{row} gives NaN or infinite attributions of {name!r}: leave out the method or the image")
    return {row: values[0].double().cpu() for row, values in rows.items()}


def _refined_titles(budgets: Sequence[int]) -> dict[str, str]:
    """Row -> title of the rows that the refinement has, one for each budget."""
    return {f"{_REFINED}_{budget}": f"{REGISTRY[_REFINED].title}, {budget} forwards" for budget in budgets}


def _kept_predictions(
    path: Path,
    v: MaskedClassifier,
    pixel_values: torch.Tensor,
    targets: torch.Tensor,
    subsets: torch.Tensor,
    name: str,
) -> dict[str, torch.Tensor]:
    """`predictions` from a file, or computed and kept there where it is missing or damaged."""
    if path.is_file():
        try:
            kept = load_file(path)
            shapes = {game: list(values.shape) for game, values in kept.items()}
            if shapes == {game: [len(subsets)] for game in GAMES}:
                return kept
            raise ValueError(f"it holds {shapes}")
        except (SafetensorError, ValueError) as error:
            logger.warning("%r is damaged, so the subsets are asked about again: %s", str(path), error)
    predicted = predictions(v, pixel_values, targets, subsets, title=name)
    if not all(values.isfinite().all() for values in predicted.values()):
        raise ValueError(
            f"the classifier answers NaN or infinity to subsets of {name!r}: leave it out, or give another model"
        )
    write_tensors(path, predicted)
    return predicted


def _row(maps: torch.Tensor, truths: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The entry of a method or budget in exact_values.json: maps [I, N] and truths [I, N]."""
    entry: dict[str, Any] = {"attributions": maps.tolist(), "correlations": {}, "mean": {}, "stderr": {}}
    for truth, values in truths.items():
        per_image = {coefficient: correlation(maps, values, coefficient) for coefficient in COEFFICIENTS}
        summaries = {coefficient: mean_and_stderr(found) for coefficient, found in per_image.items()}
        entry["correlations"][truth] = {c: [_or_none(x) for x in found.tolist()] for c, found in per_image.items()}
        entry["mean"][truth] = {c: _or_none(mean) for c, (mean, _) in summaries.items()}
        entry["stderr"][truth] = {c: _or_none(stderr) for c, (_, stderr) in summaries.items()}
    return entry


def _or_none(number: float) -> float | None:
    """A number as JSON has it: None in place of NaN."""
    return None if math.isnan(number) else round(number, 6)


def exact_values_table(results: Mapping[str, Any]) -> str:
    """Mean correlations and their standard errors as Markdown: a row per method and budget, two columns per truth."""
    header = ["map", *(f"{heading}: {coefficient}" for heading in TRUTHS.values() for coefficient in COEFFICIENTS)]
    titles = {**method_titles(results["maps"]), **results["refined"]}
    rows = []
    for row, entry in results["maps"].items():
        cells = [Cell(titles[row])]
        for truth in TRUTHS:
            for coefficient in COEFFICIENTS:
                mean, stderr = (entry[part][truth][coefficient] for part in ("mean", "stderr"))
                error = "" if stderr is None else f" ± {stderr:.3f}"
                cells.append(Cell("-" if mean is None else f"{mean:.3f}{error}"))
        rows.append(cells)
    return Table(header, rows).markdown()
