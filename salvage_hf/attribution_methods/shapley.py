"""Estimates of the Shapley values of v(S)[target], from what the classifier says of random subsets of the patches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..keyed_random import KeyedGenerator, image_keys
from ..masking import MaskedClassifier, value_at
from ..subsets import uniform
from ..targets import target_probability
from .registry import REGISTRY, Method, register

#: The most subsets per image that are in memory at once.
_SUBSETS_AT_ONCE = 512


@register(
    "kernelshap",
    title="KernelSHAP",
    needs="masked forwards",
    source="Lundberg & Lee, 2017 (shapiq)",
    # With fewer subsets than unknowns the regression is singular, and its values may be of any size.
    least_budget=lambda num_patches: num_patches + 1,
)
def kernelshap(classifier: MaskedClassifier, seed: int = 0, budget: int = 2000) -> Method:
    """Shapley values of v(S) by weighted least squares over `budget` subsets per image; for reference.

    shapiq plays one game per image, whose subsets are a batch.
    """
    import shapiq

    def attribute(pixel_values, targets):
        rows, columns = classifier.patch_grid(pixel_values)
        _check_budget("kernelshap", budget, rows * columns)
        value, keys = value_at(classifier, pixel_values), image_keys(pixel_values)
        maps = []
        for index, key in enumerate(keys.tolist()):
            image = torch.tensor([index], device=classifier.device)

            def game(coalitions: np.ndarray, image=image) -> np.ndarray:
                visible = torch.from_numpy(np.asarray(coalitions, dtype=bool))[None]
                return target_probability(value(visible, image), targets[image])[0].double().cpu().numpy()

            options: dict[str, Any] = {"n": rows * columns, "random_state": (key + seed) % 2**32}
            values = shapiq.KernelSHAP(**options).approximate(budget, game)
            maps.append(torch.from_numpy(np.asarray(values.get_n_order_values(1), dtype=np.float32)))
        return torch.stack(maps).to(classifier.device)

    return attribute


@register(
    "svarm",
    title="SVARM",
    needs="masked forwards",
    source="Kolpaczki et al., 2024",
    least_budget=lambda num_patches: 2,
)
def svarm(classifier: MaskedClassifier, seed: int = 0, budget: int = 2000) -> Method:
    """Shapley values of v(S) without marginal contributions, from `budget` subsets per image: Stratified SVARM, varied.

    The Shapley value of a patch is 1/N times the sum, over the sizes s, of the mean of v over all subsets of s patches
    with it, less the mean over those of s - 1 patches without it. Each of these 2 N means is estimated by itself, and
    one subset serves a mean of every patch. No patch and all patches are asked about, and all subsets of 1 and of N - 1
    patches too where the budget has room for them and for one subset of every other size; the rest are random subsets,
    their sizes spread evenly over what is left.

    Three things are not the authors'. They begin with a subset for every mean, which takes more than a budget of 2,000
    where there are many patches; here a mean of which no subset was drawn is interpolated over the sizes, between the
    nearest of the same patch that are known, with v of no patch and of all patches at the ends. They draw sizes by
    another law. And they ask about all subsets of 1 and of N - 1 patches whatever the budget is.
    """

    @torch.no_grad()
    def attribute(pixel_values, targets):
        rows, columns = classifier.patch_grid(pixel_values)
        num_patches = rows * columns
        _check_budget("svarm", budget, num_patches)
        value = value_at(classifier, pixel_values)
        keys = image_keys(pixel_values).to(classifier.device)
        generator = KeyedGenerator("subsets of SVARM", seed, keys=keys)
        strata = _Strata(len(pixel_values), num_patches, classifier.device)
        for subsets in _subsets_of_svarm(num_patches, budget, generator):
            strata.add(subsets, target_probability(value(subsets), targets))
        return strata.shapley_values().float()

    return attribute


def _subsets_of_svarm(num_patches: int, budget: int, generator: KeyedGenerator) -> Iterator[torch.Tensor]:
    """The subsets that SVARM asks about, bool [B, M, N], part by part, because all would not fit into memory."""
    nothing = torch.zeros(1, num_patches, dtype=torch.bool, device=generator.device)
    fixed, smallest = torch.cat([nothing, ~nothing]), 1
    if budget >= 2 + 2 * num_patches + max(0, num_patches - 3):
        one_patch = torch.eye(num_patches, dtype=torch.bool, device=generator.device)
        fixed, smallest = torch.cat([fixed, one_patch, ~one_patch]), 2
    for part in fixed.split(_SUBSETS_AT_ONCE):
        yield part.expand(generator.num_images, -1, -1)
    num_sizes, num_random = num_patches + 1 - 2 * smallest, budget - len(fixed)
    if num_sizes > 0 and num_random > 0:  # few patches have no other sizes
        sizes = smallest + ((torch.arange(num_random) + 0.5) / num_random * num_sizes).long()
        for part in sizes.split(_SUBSETS_AT_ONCE):
            yield uniform(generator.num_images, len(part), num_patches, generator=generator, sizes=part)


class _Strata:
    """Sums of v over the subsets of each size that show a patch, and over all of each size.

    No patch and all patches must be among the subsets before `shapley_values` is called.

    Attributes:
        showing: float64 [2, B, N + 1, N], the sum of v and the number of subsets, for each image, size and shown patch.
        all: float64 [2, B, N + 1], the same for each image and size.
    """

    def __init__(self, batch_size: int, num_patches: int, device: torch.device):
        self.showing = torch.zeros(2, batch_size, num_patches + 1, num_patches, dtype=torch.float64, device=device)
        self.all = torch.zeros_like(self.showing[..., 0])

    def add(self, subsets: torch.Tensor, values: torch.Tensor) -> None:
        """Adds subsets, bool [B, M, N], and their v, [B, M]."""
        sizes = subsets.sum(dim=-1).expand(2, -1, -1)
        summands = torch.stack([values.double(), torch.ones_like(values, dtype=torch.float64)])  # [2, B, M]
        self.all.scatter_add_(2, sizes, summands)
        summands = summands[..., None] * subsets
        self.showing.scatter_add_(2, sizes[..., None].expand_as(summands), summands)

    def shapley_values(self) -> torch.Tensor:
        """The estimates, float64 [B, N]."""
        hiding = self.all[..., None] - self.showing
        return (self._means(self.showing)[:, 1:] - self._means(hiding)[:, :-1]).sum(dim=1) / hiding.shape[-1]

    def _means(self, sums_and_numbers: torch.Tensor) -> torch.Tensor:
        """The mean of v in each stratum, [2, B, N + 1, N] -> [B, N + 1, N], interpolated where nothing was drawn."""
        (sums, numbers), last = sums_and_numbers, self.all.shape[-1] - 1
        means, known = sums / numbers.clamp_min(1), numbers > 0
        for size in (0, last):  # where every patch is hidden or shown
            means[:, size], known[:, size] = (self.all[0, :, size] / self.all[1, :, size])[:, None], True
        sizes = torch.arange(last + 1, device=means.device)[:, None].expand_as(means)
        below = torch.where(known, sizes, 0).cummax(dim=1).values
        above = torch.where(known, sizes, last).flip(1).cummin(dim=1).values.flip(1)
        return torch.lerp(
            means.gather(1, below), means.gather(1, above), (sizes - below) / (above - below).clamp_min(1).double()
        )


def _check_budget(method: str, budget: int, num_patches: int) -> None:
    """Raises ValueError where a method of this module needs more subsets for so many patches."""
    if budget < (least := REGISTRY[method].least_budget(num_patches)):
        raise ValueError(f"budget must be at least {least} for {num_patches} patches, got {budget}")
