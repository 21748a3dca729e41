"""The classes behind the `evaluate` modules in metrics/: one per family of scores.

A module in metrics/ is a docstring and the name of a score. The rest comes from its family's class here and from the
score's entry in `SCORES`. The modules import this module and not its classes, because `evaluate` takes the first metric
class that it finds among a module's names. Nothing else imports this module, because `evaluate` takes seconds to load.

Maps and classes are features of a metric. Images, masks and models are keyword arguments, because `evaluate` copies
features through Arrow.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import datasets
import evaluate
import torch

from .. import faithfulness
from ..evaluation.scores import SCORES, scores_of_family
from .inputs import check_one_per_image, in_eval_mode, patch_maps, pixel_map, stacked, value_function

_VALUES = datasets.Sequence(datasets.Value("float32"))

_RANK_INPUTS = """
Args:
    predictions: [B, N], attributions of the explained class, one value per patch.
    references: int [B], the explained classes.
    pixel_values: [B, C, H, W], the images as the classifier takes them; a tensor, an array or a list of images.
    model: the classifier: a `MaskedClassifier`, a Hugging Face image classifier, its name, or a function
        (pixel_values [B, C, H, W], subsets bool [B, M, N]) -> probabilities [B, M, K].
    seed: seed of all random numbers.
    ids: int [B], the keys of the images' random numbers; their pixels when None.
    batch_size: how many images are computed at a time; changes memory, not results.
"""

_RELATIVE_INPUTS = _RANK_INPUTS.replace(
    "    seed:",
    """    n_masks: draws per subset size and direction.
    budget: forwards per image, in place of n_masks.
    target_stderr: with a budget: spend it repeatedly until the standard error of an image's R-SRG is at most this.
    seed:""",
)

_REGION_INPUTS = """
Args:
    predictions: [B, N], one value per patch, or [B, H, W], one value per pixel.
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


class AttributionMetric(evaluate.Metric):
    """A metric of attribution maps; the docstring of the class in metrics/ describes it.

    Attributes:
        score: the name of its score in `SCORES`; set in metrics/.
        inputs: what `compute` takes, in words.
        maps: the features: the maps and, where they are needed, the explained classes.
    """

    score: str
    inputs: str
    maps: datasets.Features | list[datasets.Features]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=inspect.cleandoc(type(self).__doc__ or ""),
            citation=_CITATION,
            inputs_description=self.inputs,
            features=self.maps,
        )

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict[str, Any] | None:
        """Scores these maps, or those added by `add` and `add_batch`."""
        if predictions is None and self.writer is None:
            raise ValueError(f"{self.score} needs predictions")
        return super().compute(predictions=predictions, references=references, **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs) -> None:
        """Adds maps and, where the metric has them, the explained classes."""
        given = {"predictions": predictions, "references": references}
        missing = [name for name in self._feature_names() if given[name] is None]
        if missing:
            raise ValueError(f"{self.score} needs {' and '.join(missing)}")
        if len(predictions) == 0:
            raise ValueError(f"{self.score} needs at least one image, predictions are empty")
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _require(self, **arguments: Any) -> None:
        """Raises ValueError where a keyword argument of `compute` is missing."""
        missing = [f"{name}=" for name, value in arguments.items() if value is None]
        if missing:
            raise ValueError(f"{self.score} needs {' and '.join(missing)}; give them to compute()")


class FaithfulnessMetric(AttributionMetric):
    """A metric that asks the classifier about subsets of the patches."""

    maps = datasets.Features({"predictions": _VALUES, "references": datasets.Value("int64")})

    def _scores(
        self, compute: Callable[..., Any], predictions, references, pixel_values, model, ids, batch_size, **options
    ) -> Any:
        """`faithfulness.rank_scores` or `relative_scores` of any number of images, `batch_size` at a time."""
        self._require(model=model, pixel_values=pixel_values)
        maps, targets = patch_maps(predictions), torch.tensor(references)
        ids = None if ids is None else torch.as_tensor(ids)
        check_one_per_image(len(maps), pixel_values=pixel_values, ids=ids)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        parts = []
        with in_eval_mode(model):
            v = value_function(model, targets)
            for start in range(0, len(maps), batch_size):
                part = slice(start, start + batch_size)
                images = stacked(pixel_values[part])
                maps_and_targets = maps[part].to(images.device), targets[part].to(images.device)
                parts.append(compute(v, images, *maps_and_targets, ids=None if ids is None else ids[part], **options))
        joined = (torch.cat([getattr(part, field.name).cpu() for part in parts]) for field in fields(parts[0]))
        return type(parts[0])(*joined)

    def _summary(self, scores: Any) -> dict[str, Any]:
        """Means, standard errors and curves, in Python's own types.

        A difference returns its two terms too. Other scores return the rest of their pass under "same_pass", so that
        `evaluate.combine` of both terms finds no name twice, and keeps the names as they are.
        """
        score = SCORES[self.score]
        per_image = getattr(scores, score.name)
        mean, stderr = faithfulness.mean_and_stderr(per_image)
        result: dict[str, Any] = {score.name: mean, "stderr": stderr, "per_image": per_image.tolist()}
        means = {
            other.name: faithfulness.mean_and_stderr(getattr(scores, other.name))[0]
            for other in scores_of_family(score.family)
            if other is not score
        }
        result |= {term: means[term] for term in score.terms} if score.terms else {"same_pass": means}
        for name in [name for name in score.terms or (score.name,) if SCORES[name].has_curve]:
            result[f"{name}_curve"] = getattr(scores, f"{name}_curve").double().mean(dim=0).tolist()
        return result


class RankMetric(FaithfulnessMetric):
    """A metric of the family "rank" (Algorithm 1)."""

    inputs = _RANK_INPUTS

    def _compute(self, predictions, references, pixel_values=None, model=None, seed=0, ids=None, batch_size=32):
        compute = faithfulness.rank_scores
        return self._summary(
            self._scores(compute, predictions, references, pixel_values, model, ids, batch_size, seed=seed)
        )


class RelativeMetric(FaithfulnessMetric):
    """A metric of the family "relative" (Algorithm 2)."""

    inputs = _RELATIVE_INPUTS

    def _compute(self, predictions, references, pixel_values=None, model=None, ids=None, batch_size=32, **draws):
        """`draws` are n_masks, budget, target_stderr and seed, with the defaults of `faithfulness.relative_scores`."""
        compute = faithfulness.relative_scores
        scores = self._scores(compute, predictions, references, pixel_values, model, ids, batch_size, **draws)
        result = self._summary(scores)
        per_image = getattr(scores, f"{self.score}_stderr").double()  # [B]
        result["draw_stderr"] = (per_image.square().sum().sqrt() / len(per_image)).item()
        result["num_forwards"] = int(scores.num_forwards.sum())
        return result


class RegionMetric(AttributionMetric):
    """A metric of the family "region": it compares maps with annotated regions."""

    inputs = _REGION_INPUTS
    maps = [  # patch maps [B, N] or pixel maps [B, H, W]
        datasets.Features({"predictions": _VALUES}),
        datasets.Features({"predictions": datasets.Sequence(_VALUES)}),
    ]

    def _compute(self, predictions, masks=None, grid_size=None, upsampling="bilinear"):
        self._require(masks=masks)
        check_one_per_image(len(predictions), masks=masks)
        score = SCORES[self.score].of_region
        assert score is not None  # every score of this family has it
        scores = []
        # One by one, because the images of a data set, and so its masks, often differ in size.
        for index, (prediction, mask) in enumerate(zip(predictions, masks, strict=True)):
            try:
                mask = torch.as_tensor(mask).cpu()
                scores.append(score(pixel_map(prediction, mask, grid_size, upsampling)[None], mask[None]).item())
            except ValueError as error:
                raise ValueError(f"image {index}: {error}") from error
        per_image = torch.tensor(scores)
        mean, stderr = faithfulness.mean_and_stderr(per_image)
        undefined = int(per_image.isnan().sum())
        return {self.score: mean, "stderr": stderr, "num_undefined": undefined, "per_image": scores}
