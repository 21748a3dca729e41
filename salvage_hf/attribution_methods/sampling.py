"""Methods that ask the classifier about many subsets of patches, v(S)."""

from typing import Any

import numpy as np
import torch

from ..masking import MaskedClassifier, target_probability, value_at
from ..subsets import KeyedGenerator, image_keys
from .registry import Method, register


@register("rise", title="RISE", needs="masked forwards", source="Petsiuk et al., 2018")
def rise(classifier: MaskedClassifier, seed: int = 0, budget: int = 2000) -> Method:
    """Randomised input sampling: the mean of v(S) over random subsets that show the patch.

    On the patch grid and through v(S), every patch shown with probability 1/2: no upsampled masks and no shifts, which
    stand for a grid where the model has none.

    Args:
        classifier: the classifier to explain.
        seed: seed of the subsets.
        budget: subsets an image, each a forward.
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")

    @torch.no_grad()
    def attribute(pixel_values, targets):
        rows, columns = classifier.patch_grid(pixel_values)
        value, generator = value_at(classifier, pixel_values), KeyedGenerator((seed, 1), image_keys(pixel_values))
        total, shown = 0, 0
        for number in torch.arange(budget).split(512):  # the subsets never stand in memory at once
            masks = generator.uniform(len(number), rows * columns) < 0.5
            predictions = target_probability(value(masks), targets)
            total = total + (predictions.to(masks.device)[:, None] @ masks.float())[:, 0]
            shown = shown + masks.sum(dim=1)
        return total / shown.clamp_min(1)

    return attribute


def _by_shapiq(classifier: MaskedClassifier, seed: int, budget: int, approximator: str) -> Method:
    """Shapley values of v(S)[target] by an approximator of shapiq: one game an image, its subsets as a batch."""
    import shapiq

    def attribute(pixel_values, targets):
        rows, columns = classifier.patch_grid(pixel_values)
        # Fewer subsets than unknowns leave its regression singular, with values of any size.
        least = rows * columns + 1 if approximator == "KernelSHAP" else 1
        if budget < least:
            raise ValueError(f"budget must be at least {least} for {rows * columns} patches, got {budget}")
        value, keys = value_at(classifier, pixel_values), image_keys(pixel_values)
        maps = []
        for index, key in enumerate(keys.tolist()):
            image = torch.tensor([index], device=classifier.device)

            def game(coalitions: np.ndarray, image=image) -> np.ndarray:
                visible = torch.from_numpy(np.asarray(coalitions, dtype=bool))[None]
                return target_probability(value(visible, image), targets[image])[0].double().cpu().numpy()

            options: dict[str, Any] = {"n": rows * columns, "random_state": (key + seed) % 2**32}
            values = getattr(shapiq, approximator)(**options).approximate(budget, game)
            maps.append(torch.from_numpy(np.asarray(values.get_n_order_values(1), dtype=np.float32)))
        return torch.stack(maps).to(classifier.device)

    return attribute


@register("kernelshap", title="KernelSHAP", needs="masked forwards", source="Lundberg & Lee, 2017 (shapiq)")
def kernelshap(classifier: MaskedClassifier, seed: int = 0, budget: int = 2000) -> Method:
    """Shapley values of v(S) by weighted least squares over `budget` subsets an image; an estimate of reference."""
    return _by_shapiq(classifier, seed, budget, "KernelSHAP")


@register("svarm", title="SVARM", needs="masked forwards", source="Kolpaczki et al., 2024 (shapiq)")
def svarm(classifier: MaskedClassifier, seed: int = 0, budget: int = 2000) -> Method:
    """Shapley values of v(S) without marginal contributions, from `budget` subsets an image; for reference.

    shapiq's is the stratified variant without its warm-up: of the 2 N^2 strata, those that `budget` leaves empty count
    as v(empty), which spoils the sum of the values where `budget` is small for N.
    """
    return _by_shapiq(classifier, seed, budget, "SVARM")
