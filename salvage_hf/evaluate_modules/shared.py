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
from ..localization import INTERPOLATIONS
from ..masking import MaskedClassifier, as_value_function
from ..targets import check_targets
from ..tensors import booleans, one_of, processed_images, reals, two_sides, whole_number, whole_numbers
from .inputs import check_one_per_image, in_eval_mode, patch_maps, pixel_map, region_maps

_VALUES = datasets.Sequence(datasets.Value("float64"))

_RANK_INPUTS = """
Args:
    predictions: real numbers [B, N], attributions of the explained class, one value per patch.
    references: whole numbers [B], the explained classes.
    pixel_values: [B, C, H, W], the images as the classifier takes them; a tensor, an array or a list of images.
    model: the classifier: a `MaskedClassifier`, a Hugging Face image classifier, its name, or a function
        (pixel_values [B, C, H, W], subsets bool [B, M, N]) -> probabilities [B, M, K].
    seed: seed of all random numbers.
    ids: whole numbers [B], the keys of the images' random numbers; their pixels when None.
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
    predictions: real numbers [B, N], one value per patch, or [B, H, W], one value per pixel.
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
        needed: the keyword arguments without which `compute` cannot do.
        maps: the features: the maps and, where they are needed, the explained classes.
    """

    score: str
    inputs: str
    needed: tuple[str, ...]
    maps: datasets.Features | list[datasets.Features]

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        if self.num_process != 1:
            raise ValueError(
                f"num_process must be 1, got {self.num_process}: a metric gathers maps over processes but neither "
                "images nor masks; gather all of them, and compute in one process"
            )

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=inspect.cleandoc(type(self).__doc__ or ""),
            citation=_CITATION,
            inputs_description=self.inputs,
            features=self.maps,
        )

    def compute(self, *, predictions=None, references=None, **arguments) -> dict[str, Any] | None:
        """Scores these maps, or those added by `add` and `add_batch`, in the order in which they were added.

        Arguments of this library's other metrics are taken and not used, because `evaluate.combine` gives every metric
        the arguments of all.
        """
        if predictions is None and self.writer is None:
            raise ValueError(f"{self.score} needs predictions")
        unknown = [name for name in arguments if name not in _ARGUMENTS]
        if unknown:
            raise ValueError(f"{self.score} has no argument {unknown[0]!r}; it has {', '.join(self._arguments())}")
        own = {name: arguments[name] for name in arguments if name in self._arguments()}
        missing = [f"{name}=" for name in self.needed if own.get(name) is None]
        if missing:  # found out before the maps that were added are taken out of the store
            raise ValueError(f"{self.score} needs {' and '.join(missing)}; give them to compute()")
        return super().compute(predictions=predictions, references=references, **own)

    def add(self, *, prediction=None, reference=None, **features) -> None:
        """Adds one map and, where the metric has them, its explained class."""
        features = {"predictions": prediction, "references": reference, **features}
        self.add_batch(**{name: None if value is None else [value] for name, value in features.items()})

    def add_batch(self, *, predictions=None, references=None) -> None:
        """Adds maps and, where the metric has them, the explained classes."""
        given = {"predictions": predictions, "references": references}
        missing = [name for name in self._feature_names() if given[name] is None]
        if missing:
            raise ValueError(f"{self.score} needs {' and '.join(missing)}")
        super().add_batch(**self._checked(predictions, references))

    def _checked(self, predictions: Any, references: Any) -> dict[str, Any]:
        """The features as numpy arrays in the types of the store, which would convert some values and print others."""
        raise NotImplementedError

    @classmethod
    def _arguments(cls) -> list[str]:
        """The names of what `compute` takes."""
        return [name for name in inspect.signature(cls._compute).parameters if name != "self"]


class FaithfulnessMetric(AttributionMetric):
    """A metric that asks the classifier about subsets of the patches."""

    needed = ("model", "pixel_values")
    maps = datasets.Features({"predictions": _VALUES, "references": datasets.Value("int64")})

    def _checked(self, predictions: Any, references: Any) -> dict[str, Any]:
        maps = reals("predictions", predictions, "B N").cpu().numpy()
        return {
            "predictions": maps,
            "references": whole_numbers("references", references, "B", B=len(maps)).cpu().numpy(),
        }

    def _scores(
        self, compute: Callable[..., Any], predictions, references, pixel_values, model, ids, batch_size, **options
    ) -> Any:
        """`faithfulness.rank_scores` or `relative_scores` of any number of images, `batch_size` at a time."""
        maps, targets = patch_maps(predictions), torch.tensor(references)
        check_one_per_image("pixel_values", pixel_values, len(maps))
        ids = None if ids is None else whole_numbers("ids", ids, "B", B=len(maps))
        batch_size = whole_number("batch_size", batch_size, at_least=1)
        parts = []
        with in_eval_mode(model):
            v = as_value_function(model)
            if isinstance(v, MaskedClassifier):  # a function shows its classes only in its answers
                check_targets(targets, v.num_labels)
            for start in range(0, len(maps), batch_size):
                part = slice(start, start + batch_size)
                images = processed_images("pixel_values", pixel_values[part])
                maps_and_targets = maps[part].to(images.device), targets[part].to(images.device)
                try:
                    parts.append(
                        compute(v, images, *maps_and_targets, ids=None if ids is None else ids[part], **options)
                    )
                except ValueError as error:
                    if start == 0:
                        raise
                    raise ValueError(f"in the batch that begins with image {start}: {error}") from error
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

    def _compute(
        self,
        predictions,
        references,
        pixel_values=None,
        model=None,
        n_masks=128,
        budget=None,
        target_stderr=None,
        seed=0,
        ids=None,
        batch_size=32,
    ):
        compute = faithfulness.relative_scores
        draws = {"n_masks": n_masks, "budget": budget, "target_stderr": target_stderr, "seed": seed}
        scores = self._scores(compute, predictions, references, pixel_values, model, ids, batch_size, **draws)
        result = self._summary(scores)
        per_image = getattr(scores, f"{self.score}_stderr").double()  # [B]
        result["draw_stderr"] = (per_image.square().sum().sqrt() / len(per_image)).item()
        result["num_forwards"] = int(scores.num_forwards.sum())
        return result


class RegionMetric(AttributionMetric):
    """A metric of the family "region": it compares maps with annotated regions."""

    inputs = _REGION_INPUTS
    needed = ("masks",)
    maps = [  # patch maps [B, N] or pixel maps [B, H, W]
        datasets.Features({"predictions": _VALUES}),
        datasets.Features({"predictions": datasets.Sequence(_VALUES)}),
    ]
    _stored_ndim = 0  # of the maps in the store: 1 for patch maps, 2 for pixel maps

    def _checked(self, predictions: Any, references: Any) -> dict[str, Any]:
        maps = region_maps(predictions)
        if self.writer is not None and maps[0].ndim != self._stored_ndim:
            raise ValueError("predictions must be all patch maps [N] or all pixel maps [H, W], both were added")
        self._stored_ndim = maps[0].ndim
        return {"predictions": maps}

    def _compute(self, predictions, masks=None, grid_size=None, upsampling="bilinear"):
        check_one_per_image("masks", masks, len(predictions))
        grid_size = None if grid_size is None else two_sides("grid_size", grid_size)
        upsampling = one_of("upsampling", upsampling, INTERPOLATIONS)
        score = SCORES[self.score].of_region
        assert score is not None  # every score of this family has it
        scores = []
        # One by one, because the images of a data set, and so its masks, often differ in size.
        for index, (prediction, mask) in enumerate(zip(predictions, masks, strict=True)):
            try:
                mask = booleans("masks", mask, "H W").cpu()
                scores.append(score(pixel_map(prediction, mask, grid_size, upsampling)[None], mask[None]).item())
            except ValueError as error:
                raise ValueError(f"image {index}: {error}") from error
        per_image = torch.tensor(scores)
        mean, stderr = faithfulness.mean_and_stderr(per_image)
        undefined = int(per_image.isnan().sum())
        return {self.score: mean, "stderr": stderr, "num_undefined": undefined, "per_image": scores}


#: The names of all arguments of `compute`, over all metrics.
_ARGUMENTS = {name for family in (RankMetric, RelativeMetric, RegionMetric) for name in family._arguments()}
