"""One line explains any image classifier: `Explainer(name)(image)`.

Letters: B images, N patches, K classes; L targets, which are the K labels, or 2 where K = 1; P maps, one per image and
explained class.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from . import attribution_methods
from .attribution_methods import REGISTRY
from .attribution_methods.pairs import load_pair
from .attribution_methods.trained import explainer_options
from .data.pictures import open_image
from .explanation import LEAST_SHARE, Explanation, drawn_copy
from .keyed_random import checked_seed
from .masking import MaskedClassifier
from .modeling import Geometry, picture_geometry, process
from .objectives import OBJECTIVES
from .pretrained import public_name
from .refinement import checked_budget, refine
from .targets import activation, label_names, target_attributions, target_names
from .tensors import described, one_of, whole_number

logger = logging.getLogger(__name__)

#: An image as it is given: a file, or a picture of Pillow.
Picture = str | Path | Image.Image

#: The methods of a classifier that has no explainer, the best for their cost first; the first that suits it is taken.
#: SRG on 200 photographs of ImageNette and the cost in forwards (model_cards/imagenette/README.md, 256 patches):
#: conservative LRP 49.8 for 1.8, GradCAM 34.8 for 1.1, GradCAM++ (which needs no captum) 29.4 for 1.1; the last layer's
#: attention (34.1 for 1.0) is the same for every class. Where none is possible, RISE: on 100 of them 31.2 for 256
#: (`RISE_BUDGET`), 41.2 for 2,000. Up to 1,024 no estimator was better.
DEFAULT_METHODS = ("conservative_lrp", "gradcam", "gradcam_plus_plus", "rise")
RISE_BUDGET = 256


@dataclass(frozen=True)
class Prepared:
    """An image, ready for a model.

    Args:
        picture: what is drawn of it (`explanation.drawn_copy`).
        image_size: (width, height) of the picture as it was given.
        geometry: where in it the model's view lies.
        pixel_values: float32 [1, C, H, W].
    """

    picture: Image.Image
    image_size: tuple[int, int]
    geometry: Geometry
    pixel_values: torch.Tensor


class Explainer:
    """Explains the predictions of an image classifier by maps of its patches.

    A trained explainer (`scripts/train.py`) explains by itself, in one forward. Any other classifier is explained by a
    method that needs no training.

    Args:
        name_or_model: a Salvage explainer or any image classifier: a name on the Hub, a folder, a loaded model, or a
            `MaskedClassifier`.
        method: a name of `attribution_methods.REGISTRY`. When None, an explainer's own method, and of a classifier the
            first of `DEFAULT_METHODS` that suits it.
        budget: forwards of the classifier for each map. A method that asks about subsets ("rise", "svarm", ...) asks so
            many times (2,000 when None; RISE, where it is the default, 256); the maps of all others are refined by them
            (`refinement.refine`, from 16 on).
        classifier: the classifier that an explainer explains, in the same forms. When None, the one that the explainer
            states, where it can be loaded and is the right one; otherwise a warning says that no classifier is asked.
        device: where to compute; when None a GPU if there is one, and for loaded models their own device.
        processor: the image processor; when None it is loaded with the model.
        patch_size: side of a patch in pixels of the processed image. When None that of the explainer or of the
            classifier's tokens; where tokens are no patches, the one that gives about 14 x 14 patches.
        seed: seed of everything random.
        allow_other_classifier: whether a given classifier that is not the explainer's is a warning, and not an error.

    Attributes:
        v: the classifier on partial images (`MaskedClassifier`), None where it is not asked.
        model: the explainer (`SalvageModel`), None where a classifier is explained without one.
        processor: the image processor.
        method: the name of the method.

    Raises:
        TypeError, ValueError: where models cannot be loaded, are no image classifiers or do not fit each other, where
            a method or a budget does not suit them, or the device is not there.

    Examples:
        >>> explanation = Explainer("org/dinov2-pet")("cat.png")
        >>> explanation.attributions  # [patches, classes]
        >>> explanation.save("cat_explained.png")
    """

    def __init__(
        self,
        name_or_model: Any,
        method: str | None = None,
        budget: int | None = None,
        classifier: Any = None,
        device: str | torch.device | None = None,
        *,
        processor: Any = None,
        patch_size: int | None = None,
        seed: int = 0,
        allow_other_classifier: bool = False,
    ):
        if method is not None:
            one_of("method", method, REGISTRY)
        budget, self.seed = whole_number("budget", 0 if budget is None else budget, 0), checked_seed(seed)
        self._pair = load_pair(name_or_model, classifier, processor, patch_size, device, allow_other_classifier)
        self.v, self.model, self.processor = self._pair.v, self._pair.model, self._pair.processor
        self.prepare(Image.new("RGB", (64, 64), "white"))  # a processor that fails does so now
        self._choose_method(method, budget, allow_other_classifier)
        if self._pair.problem:
            logger.warning("The classifier is not asked, and pictures say so: %s.", self._pair.problem)

    def __call__(
        self,
        images: Picture | list[Picture] | tuple[Picture, ...],
        classes: int | str | Sequence[int | str] | None = None,
        top: int = 3,
        batch_size: int = 8,
        pixel_range: Sequence[float] | None = None,
    ) -> Any:
        """Explains an image, or a list of them.

        Args:
            images: a file or a picture of Pillow, or a list of these.
            classes: what is explained: labels, or their numbers from 0 on. When None the most probable classes by the
                classifier (by the explainer where no classifier is asked); with one label, what is predicted.
            top: how many classes are explained when `classes` is None; those below 1% behind the first are left out.
            batch_size: images per batch; it changes no number.
            pixel_range: the values that are black and white in images of more than 8 bits, as in `data.open_image`.

        Returns:
            An `Explanation`, or a list of them where a list was given.

        Raises:
            ValueError: where an image cannot be read or processed, a class is none of the classifier's, or an answer of
                a model is NaN or infinite.
        """
        targets, top = self.targets(classes), whole_number("top", top, at_least=1)
        batch_size = whole_number("batch_size", batch_size, at_least=1)
        if not isinstance(images, (list, tuple)):
            return self([images], classes, top, batch_size, pixel_range)[0]
        found: list[Explanation] = []
        for start in range(0, len(images), batch_size):
            batch = [self.prepare(image, pixel_range) for image in images[start : start + batch_size]]
            found += self.explain(batch, targets, top)
        return found

    def prepare(self, image: Picture, pixel_range: Sequence[float] | None = None) -> Prepared:
        """Opens and processes an image; raises ValueError where that fails. Arguments as in `__call__`."""
        if not isinstance(image, (str, os.PathLike, Image.Image)):
            raise ValueError(f"images must be files or pictures of Pillow, or a list of these, got {described(image)}")
        picture = open_image(image, pixel_range)  # type: ignore[arg-type]  # any path
        pixel_values = process(self.processor, [picture])
        geometry = picture_geometry(self.processor, *picture.size)
        return Prepared(drawn_copy(picture), picture.size, geometry, pixel_values)

    def targets(self, classes: int | str | Sequence[int | str] | None) -> list[int] | None:
        """Labels or their numbers as numbers; raises ValueError where one is no class, or not one alone."""
        if classes is None:
            return None
        items = [classes] if isinstance(classes, (int, str)) else classes
        if not isinstance(items, Sequence) or not items:
            raise ValueError(f"classes must be labels or their numbers, got {described(classes)}")
        return [self._target(item) for item in items]

    def _target(self, item: int | str) -> int:
        places = [index for index, name in enumerate(self.label_names) if name == item]
        if len(places) == 1:
            return places[0]
        if places:
            raise ValueError(f"classes: {item!r} is the name of the labels {places}; give one of these numbers")
        number = int(item) if isinstance(item, str) and item.isdecimal() else item
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(self.label_names):
            return number
        names = ", ".join(self.label_names[:10]) + (", ..." if len(self.label_names) > 10 else "")
        raise ValueError(
            f"classes: {described(item)} is no label; there are {len(self.label_names)}, from 0 on: {names}"
        )

    @property
    def label_names(self) -> list[str]:
        """The names of the L targets."""
        return target_names(label_names(self._pair.asked.config))

    @property
    def classifies(self) -> bool:
        """Whether there is an explainer that predicts what it explains, and so has u(S)."""
        return self.model is not None and OBJECTIVES[self.model.config.objective].paired_values

    def _choose_method(self, method: str | None, budget: int, allow_other: bool) -> None:
        """Sets the method and how many forwards it, or the refinement of its maps, may take."""
        if method is None:
            method = self.model.config.objective if self.model is not None else _default_method(self.v)
            budget = RISE_BUDGET if method == "rise" and not budget else budget
        self.method, info = method, REGISTRY[method]
        if info.objective and (self.model is None or self.model.config.objective != info.objective):
            raise ValueError(
                f"method={method!r} needs an explainer of the objective {info.objective!r}: give it as name_or_model, "
                "and the classifier as classifier"
            )
        # One forward of an explainer gives the maps of all classes, where nothing else is needed.
        is_own = info.own_budget is None and info.objective and not OBJECTIVES[info.objective].normalised
        if self.v is None and (budget or not is_own):
            raise ValueError(
                f"method={method!r} with budget={budget} asks the classifier: {self._pair.problem}; give it as "
                "classifier"
            )
        self.budget, self._refines = budget or info.own_budget or 0, bool(budget and info.own_budget is None)
        if self._refines:
            checked_budget(budget)
        self._attribute: Callable[..., torch.Tensor] | None = None
        if not is_own:
            assert self.v is not None
            options: dict[str, Any] = explainer_options(self.model if info.objective else None, allow_other)
            if info.own_budget is not None:
                options["budget"] = self.budget
            self._attribute = attribution_methods.load(method, self.v, self.seed, **options)

    # Explaining

    def explain(
        self, batch: Sequence[Prepared], targets: list[int] | None = None, top: int = 3, output: Any = None
    ) -> list[Explanation]:
        """Explains prepared images as one batch, in parts where their sizes differ.

        Args:
            batch: the images.
            targets: the explained classes, as `targets` returns them.
            top: as in `__call__`.
            output: what `model` has returned for these images, which then have one size; computed when None.
        """
        places: dict[torch.Size, list[int]] = {}
        for place, image in enumerate(batch):
            places.setdefault(image.pixel_values.shape, []).append(place)
        found: dict[int, Explanation] = {}
        for alike in places.values():
            explained = self._explained([batch[place] for place in alike], targets, top, output)
            found |= dict(zip(alike, explained, strict=True))
        return [found[place] for place in range(len(batch))]

    @torch.no_grad()
    def _explained(
        self, images: Sequence[Prepared], targets: list[int] | None, top: int, output: Any
    ) -> Iterator[Explanation]:
        """Explains images of one size."""
        device = self._pair.asked.device
        pixel_values = torch.cat([image.pixel_values for image in images]).to(device)
        if output is None and self.model is not None:
            output = self.model(pixel_values.to(self.model.dtype))
        classifier = None if self.v is None else class_shares("classifier", self.v.whole_logits(pixel_values))
        explainer = None
        if self.classifies:
            explainer = class_shares("explainer", output.logits)
        said = classifier if classifier is not None else explainer
        assert said is not None  # an explainer that does not classify comes with its classifier
        chosen = [targets or self._most_probable(shares, top) for shares in said]
        index = torch.tensor([place for place, classes in enumerate(chosen) for _ in classes], device=device)
        explained = torch.tensor([number for classes in chosen for number in classes], device=device)
        maps, effects, stderr = self._maps(pixel_values, output, index, explained)
        side = self._pair.patch_size
        for place, (image, classes) in enumerate(zip(images, chosen, strict=True)):
            here = index.cpu() == place
            yield Explanation(
                image=image.picture,
                image_size=image.image_size,
                geometry=image.geometry,
                grid_size=(pixel_values.shape[-2] // side, pixel_values.shape[-1] // side),
                classes=tuple(classes),
                attributions=maps[here].T,
                label_names=tuple(self.label_names),
                classifier_probabilities=None if classifier is None else classifier[place],
                explainer_probabilities=None if explainer is None else explainer[place],
                method=self.method,
                budget=self.budget,
                classifier=None if self.v is None else _name(self.v.config),
                explainer=None if self.model is None else _name(self.model.config),
                problem=self._pair.problem,
                effects=None if effects is None else effects[here].T,
                stderr=None if stderr is None else stderr[here].T,
            )

    def _most_probable(self, shares: torch.Tensor, top: int) -> list[int]:
        """The most probable of the targets [L]; with one label, the one that is predicted."""
        number = 1 if self._pair.asked.config.num_labels == 1 else min(top, len(shares))
        values, indices = shares.topk(number)
        return [index for place, index in enumerate(indices.tolist()) if not place or values[place] >= LEAST_SHARE]

    def _maps(
        self, pixel_values: torch.Tensor, output: Any, index: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Maps [P, N] of the images at index [P] for targets [P], and effects and errors where they are refined."""
        parts: list[tuple[torch.Tensor, ...]] = []
        for places, classes in zip(index.split(len(pixel_values)), targets.split(len(pixel_values)), strict=True):
            if self._attribute is None:
                maps = target_attributions(output.attributions[places], classes).float()
            else:
                maps = self._attribute(pixel_values[places], classes)
            if not maps.isfinite().all():
                raise ValueError(f"method {self.method!r} gives values that are NaN or infinite")
            if self._refines:
                assert self.v is not None
                refined = refine(self.v, maps, pixel_values[places], classes, self.budget, self.seed)
                parts.append((refined.attributions.cpu(), refined.effects.cpu(), refined.stderr.cpu()))
            else:
                parts.append((maps.cpu(),))
        joined = [torch.cat(part) for part in zip(*parts, strict=True)]
        return (joined[0], joined[1], joined[2]) if self._refines else (joined[0], None, None)


def _default_method(v: MaskedClassifier | None) -> str:
    """The first of `DEFAULT_METHODS` that suits a classifier."""
    assert v is not None  # without an explainer there is a classifier
    for name in DEFAULT_METHODS[:-1]:
        try:
            attribution_methods.load(name, v)
        except (ValueError, ModuleNotFoundError) as error:  # captum is an extra
            logger.debug("The method %r does not suit this classifier: %s", name, error)
        else:
            return name
    return DEFAULT_METHODS[-1]


def class_shares(model: str, logits: torch.Tensor) -> torch.Tensor:
    """The probabilities [B, L] of all targets from logits [B, K]; raises ValueError where they are not finite."""
    if not logits.isfinite().all():
        raise ValueError(f"the {model} answers with values that are NaN or infinite")
    shares = activation(logits).cpu()
    return torch.cat([1 - shares, shares], dim=1) if shares.shape[1] == 1 else shares


def _name(config: Any) -> str:
    """A model's name without local paths."""
    return public_name(config.name_or_path) if config.name_or_path else config.model_type
