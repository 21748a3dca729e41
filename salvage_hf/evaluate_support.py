"""What the eight `evaluate` modules in metrics/ share: inputs, checks, batches and results.

Imported by them only, because it imports `evaluate`. Features hold maps and labels; images, masks and models are
keyword arguments, since `evaluate` would copy features through Arrow.
"""

import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from . import faithfulness, localization
from .masking import MaskedClassifier, as_value_function, check_targets

_VALUES = datasets.Sequence(datasets.Value("float32"))

#: maps [B, N] of the explained classes, and these classes [B]
PATCH_MAPS = datasets.Features({"predictions": _VALUES, "references": datasets.Value("int64")})

#: patch maps [B, N] or pixel maps [B, H, W]
PATCH_OR_PIXEL_MAPS = [
    datasets.Features({"predictions": _VALUES}),
    datasets.Features({"predictions": datasets.Sequence(_VALUES)}),
]

RANK_INPUTS = """
Args:
    predictions: [B, N], attributions of the explained class, one value a patch.
    references: int [B], the explained classes.
    pixel_values: [B, C, H, W], the images as the classifier takes them; a tensor, an array or a list of images.
    model: the classifier: a `MaskedClassifier`, a Hugging Face image classifier, its name, or a function
        (pixel_values [B, C, H, W], subsets bool [B, M, N]) -> probabilities [B, M, K].
    seed: seed of all random numbers.
    ids: int [B], what an image's random numbers are keyed by; its pixels when None.
    batch_size: images at a time; changes memory, not results.
"""

RELATIVE_INPUTS = RANK_INPUTS.replace(
    "    seed:",
    """    n_masks: draws per subset size and direction.
    budget: forwards an image, in place of n_masks.
    target_stderr: with a budget, as many forwards again until the standard error of an image's R-SRG is at most this.
    seed:""",
)

REGION_INPUTS = """
Args:
    predictions: [B, N], one value a patch, or [B, H, W], one value a pixel.
    masks: bool [B, H, W], True inside the annotated region; a list where the sizes differ.
    grid_size: (rows, columns) of the patches; needed for [B, N] unless the grid is square.
    upsampling: "bilinear" or "nearest", how a patch map is brought to the size of its mask.
"""

_CITATION = """
@inproceedings{naouar2025salvage,
  title = {Salvage: Shapley-distribution Approximation Learning Via Attribution Guided Exploration for Explainable Image
           Classification},
  author = {Naouar, Mehdi and Raum, Hanne and Rahmfeld, Jens and Vogt, Yannick and Boedecker, Joschka and
            Kalweit, Gabriel and Kalweit, Maria},
  booktitle = {International Conference on Learning Representations},
  year = {2025},
}
"""


class AttributionMetric(evaluate.Metric, abc.ABC):
    """A metric of attribution maps. Abstract: `evaluate` takes the first concrete metric it sees in a script."""

    @abc.abstractmethod
    def _compute(self, **kwargs) -> dict[str, Any]: ...

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict[str, Any] | None:
        """Scores these maps, or those added before."""
        if predictions is None and self.writer is None:
            raise ValueError(f"{self.name} needs predictions")
        return super().compute(predictions=predictions, references=references, **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs) -> None:
        """Adds maps and, where the metric has them, the explained classes."""
        given = {"predictions": predictions, "references": references}
        missing = [name for name in self._feature_names() if given[name] is None]
        if missing:
            raise ValueError(f"{self.name} needs {' and '.join(missing)}")
        if len(predictions) == 0:
            raise ValueError(f"{self.name} needs at least one image, predictions are empty")
        super().add_batch(predictions=predictions, references=references, **kwargs)


def metric_info(description: str | None, inputs: str, features) -> evaluate.MetricInfo:
    """The description of a metric, in the form `evaluate` asks for."""
    return evaluate.MetricInfo(
        description=description or "", citation=_CITATION, inputs_description=inputs, features=features
    )


def rank_results(
    name: str, predictions, references, pixel_values, model, seed: int, ids, batch_size: int
) -> dict[str, Any]:
    """The result of "mif", "lif" or "srg"; arguments as in `RANK_INPUTS`."""
    scores = _scores(
        name, faithfulness.rank_scores, predictions, references, pixel_values, model, ids, batch_size, seed=seed
    )
    return _summary(name, scores, difference="srg", terms=("lif", "mif"))


def relative_results(
    name: str, predictions, references, pixel_values, model, ids, batch_size: int, draws: dict[str, Any]
) -> dict[str, Any]:
    """The result of "r_mif", "r_lif" or "r_srg".

    Arguments are as in `RELATIVE_INPUTS`; `draws` are those of `faithfulness.relative_scores` (n_masks, budget,
    target_stderr, seed), with its defaults.
    """
    score = faithfulness.relative_scores
    scores = _scores(name, score, predictions, references, pixel_values, model, ids, batch_size, **draws)
    result = _summary(name, scores, difference="r_srg", terms=("r_lif", "r_mif"))
    of_images = getattr(scores, f"{name}_stderr").double()  # [B]
    result["draw_stderr"] = (of_images.square().sum().sqrt() / len(of_images)).item()
    result["num_forwards"] = int(scores.num_forwards.sum())
    return result


def region_results(
    name: str,
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    predictions: list,
    masks,
    grid_size: tuple[int, int] | None,
    upsampling: str,
) -> dict[str, Any]:
    """The result of "rra" or "rma"; `score` is the function of `localization`, the rest as in `REGION_INPUTS`."""
    _require(name, masks=masks)
    if len(masks) != len(predictions):
        raise ValueError(f"masks are {len(masks)}, predictions {len(predictions)}: one mask an image is needed")
    of_images = []
    # One by one: the images of a data set, and so its masks, often differ in size.
    for index, (prediction, mask) in enumerate(zip(predictions, masks, strict=True)):
        try:
            mask = torch.as_tensor(mask).cpu()
            pixel_map = _pixel_map(prediction, mask, grid_size, upsampling)
            of_images.append(score(pixel_map[None], mask[None]).item())
        except ValueError as error:
            raise ValueError(f"image {index}: {error}") from error
    per_image = torch.tensor(of_images)
    mean, stderr = faithfulness.mean_and_stderr(per_image)
    undefined = int(per_image.isnan().sum())
    return {name: mean, "stderr": stderr, "num_undefined": undefined, "per_image": of_images}


def _pixel_map(
    prediction: list, mask: torch.Tensor, grid_size: tuple[int, int] | None, upsampling: str
) -> torch.Tensor:
    """A patch map [N] or pixel map [H, W], brought to the size of its mask [H, W]."""
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"masks must be boolean [H, W] for each image, got {mask.dtype} {tuple(mask.shape)}")
    values = torch.from_numpy(np.array(prediction, dtype=np.float32))
    if values.ndim == 2:
        if values.shape != mask.shape:
            raise ValueError(
                f"the map has {values.shape[0]} x {values.shape[1]} pixels, its mask {mask.shape[0]} x "
                f"{mask.shape[1]}; give patch maps as [B, N] with grid_size"
            )
        return values
    if grid_size is None:
        side = round(len(values) ** 0.5)
        if side**2 != len(values):
            raise ValueError(f"grid_size=(rows, columns) is needed: {len(values)} patches make no square")
        grid_size = (side, side)
    rows, columns = grid_size
    height, width = mask.shape
    return localization.upsample(values[None], (rows, columns), (height, width), upsampling)[0]


def _scores(
    name: str, score: Callable[..., Any], predictions, references, pixel_values, model, ids, batch_size: int, **kwargs
) -> Any:
    """`faithfulness.rank_scores` or `relative_scores` of any number of images, some at a time."""
    _require(name, model=model, pixel_values=pixel_values)
    attributions = _patch_maps(predictions)
    targets = torch.tensor(references)
    if ids is not None:
        ids = torch.as_tensor(ids)
    for argument, values in {"pixel_values": pixel_values, "ids": ids}.items():
        if values is not None and len(values) != len(attributions):
            raise ValueError(f"{argument} are {len(values)}, predictions {len(attributions)}: one an image is needed")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parts = []
    with _in_eval_mode(model):
        v = as_value_function(model)
        if isinstance(v, MaskedClassifier):
            check_targets(targets, v.num_labels)
        else:
            v = _checked(v, targets)
        for start in range(0, len(attributions), batch_size):
            part = slice(start, start + batch_size)
            images = _stacked(pixel_values[part])
            parts.append(
                score(
                    v,
                    images,
                    attributions[part].to(images.device),
                    targets[part].to(images.device),
                    ids=None if ids is None else ids[part],
                    **kwargs,
                )
            )
    of_all = (torch.cat([getattr(part, field.name).cpu() for part in parts]) for field in fields(parts[0]))
    return type(parts[0])(*of_all)


def _summary(name: str, scores: Any, difference: str, terms: tuple[str, str]) -> dict[str, Any]:
    """Means, standard errors and curves, in Python's own types.

    A difference shows its two terms beside it. A term alone keeps what the same pass gave apart, so that
    `evaluate.combine` of both terms still returns each under its plain name.
    """
    family = (difference, *terms)
    per_image = getattr(scores, name)
    invalid = per_image.isnan().nonzero().flatten().tolist()
    if invalid:
        raise ValueError(f"model returned NaN for the images at {invalid[:10]}")
    means = {score: faithfulness.mean_and_stderr(getattr(scores, score))[0] for score in family if score != name}
    mean, stderr = faithfulness.mean_and_stderr(per_image)
    result: dict[str, Any] = {name: mean, "stderr": stderr, "per_image": per_image.tolist()}
    result |= means if name == difference else {"same_pass": means}
    for term in terms if name == difference else (name,):
        result[f"{term}_curve"] = getattr(scores, f"{term}_curve").double().mean(dim=0).tolist()
    return result


def _require(metric: str, **arguments) -> None:
    missing = [f"{name}=" for name, value in arguments.items() if value is None]
    if missing:
        raise ValueError(f"{metric} needs {' and '.join(missing)}; give them to compute()")


def _patch_maps(predictions: list) -> torch.Tensor:
    """Nested lists [B][N] -> float32 [B, N], finite."""
    lengths = sorted({len(prediction) for prediction in predictions})
    if len(lengths) > 1:
        raise ValueError(f"predictions have different numbers of patches: {lengths}")
    attributions = torch.from_numpy(np.array(predictions, dtype=np.float32))
    # Checked here too, before any batch is paid for and with the images' places in the whole.
    bad = (~attributions.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"predictions are NaN or infinite for the images at {bad[:10]}")
    return attributions


def _stacked(images) -> torch.Tensor:
    """Some images [B, C, H, W], from a tensor, an array or a list of either."""
    if isinstance(images, (list, tuple)):
        return torch.stack([torch.as_tensor(image) for image in images])
    return torch.as_tensor(images)


def _checked(function: Callable, targets: torch.Tensor) -> Callable:
    """A user's v, whose answers are checked for shape and for having the targets among their classes."""

    def v(pixel_values: torch.Tensor, subsets: torch.Tensor) -> torch.Tensor:
        probabilities = function(pixel_values, subsets)
        if probabilities.ndim != 3 or probabilities.shape[:2] != subsets.shape[:2]:
            raise ValueError(
                f"model must return probabilities [B, M, K] with B, M = {tuple(subsets.shape[:2])}, "
                f"got shape {tuple(probabilities.shape)}"
            )
        check_targets(targets, probabilities.shape[-1])
        return probabilities

    return v


@contextmanager
def _in_eval_mode(model) -> Iterator[None]:
    """Evaluation mode for a network, each submodule's own mode afterwards."""
    modes = {part: part.training for part in model.modules()} if isinstance(model, torch.nn.Module) else {}
    if modes:
        model.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
