"""Maps improved by what the classifier says about subsets of the same image.

SRG (eq. 7) depends on the order of the patches alone. A map draws subsets as attribution-guided sampling does
(Algorithm 3): in one half its highest patches are shown before the others, in the other half its lowest. How much more
the classifier believes in the class where a patch is shown than where it is not is the patch's effect among these
subsets. To raise patches of high effect and to lower those of low effect is a step uphill on the SRG that such random
orders have. The slope is a sum over the subsets: a patch's membership, 1 or 0, less the probability of it, times the
prediction (the score-function estimator of Williams, 1992; exact for draws of maximum entropy, near for these).

Subsets are asked about in rounds, and each round is drawn by the map that the rounds before it have led to. Without
subsets the map is the given one. The more there are, the less it counts, because the sum grows with them.

The improved map has the given map's values, handed out in the new order, because a sum of standardised numbers has lost
how far apart the patches are, which R-SRG asks about.
"""

import math
from dataclasses import dataclass, fields

import torch

from .keyed_random import KeyedGenerator, image_keys
from .masking import MaskedClassifier, value_at
from .subsets import attribution_guided, min_max_weights, positions, stratified_sizes
from .targets import check_targets, target_probability
from .tensors import reals, whole_number, whole_numbers

#: With fewer subsets the part of the predictions that size explains is not known.
LEAST_BUDGET = 16

#: The most subsets that are drawn by one map: enough for a dense batch, and few enough for many rounds.
_ROUND_SIZE = 128

#: The power of the weights by which a map draws subsets, as in `subsets.attribution_guided`.
_EXPONENT = 2.0

#: How far a subset moves a map, in its standard deviations (docs/performance.md has the study).
_STEP = 0.1


@dataclass(frozen=True)
class RefinedAttributions:
    """Improved maps of B images.

    Args:
        attributions: float32 [B, N], the given values in the new order; equal values stay equal.
        effects: float64 [B, N], how much higher the probability of the target class is with the patch than without it,
            a mean over the subsets that were drawn; 0 where nothing was measured.
        stderr: float64 [B, N], the standard errors of the effects; infinite where nothing was measured.
    """

    attributions: torch.Tensor
    effects: torch.Tensor
    stderr: torch.Tensor


@torch.no_grad()
def refine(
    v: MaskedClassifier,
    attributions: torch.Tensor,
    pixel_values: torch.Tensor,
    targets: torch.Tensor,
    budget: int,
    seed: int = 0,
) -> RefinedAttributions:
    """Improves maps of any method by `budget` forwards of the classifier on each image.

    Args:
        v: the classifier.
        attributions: [B, N], maps of the target classes.
        pixel_values: [B, C, H, W], processed images; maps of several classes need their image once for each.
        targets: int64 [B], the explained classes.
        budget: subsets per map; 0 leaves the maps as they are, otherwise at least 16.
        seed: seed of the subsets, which depend on it, on the map and on the pixels of the image.

    Raises:
        ValueError: where maps are NaN or infinite or do not fit the images, images are not what
            `MaskedClassifier.as_input` takes, targets are not one class per image, or the budget is too small.
    """
    budget, pixel_values = checked_budget(budget), v.as_input(pixel_values)
    batch_size, num_patches = len(pixel_values), math.prod(v.patch_grid(pixel_values))
    attributions = reals("attributions", attributions, "B N", B=batch_size, N=num_patches).to(v.device)
    targets = whole_numbers("targets", targets, "B", B=batch_size).to(v.device)
    check_targets(targets, v.num_labels)
    given = _standardised(attributions.double())
    found, order = Measured.nothing(given), given
    if num_patches > 1:  # otherwise no subset has some of the patches, and not all
        value, keys = value_at(v, pixel_values), image_keys(pixel_values).to(v.device)
        for number, size in enumerate(_round_sizes(budget)):
            generator = KeyedGenerator("subsets of refinement", seed, number, keys=keys)
            sizes = _sizes(size, num_patches, seed, number).to(v.device)
            subsets = attribution_guided(order, size, generator=generator, sizes=sizes, exponent=_EXPONENT)
            found = found + measure(target_probability(value(subsets), targets), subsets, sizes, order)
            order = given + _STEP * found.slope
    ranks = positions(order.argsort(dim=1, stable=True))
    values = attributions.float().sort(dim=1).values.gather(1, ranks)
    return RefinedAttributions(values, found.effects, found.stderr)


def checked_budget(budget: int) -> int:
    """A number of subsets per map; raises ValueError where it is neither 0 nor at least `LEAST_BUDGET`."""
    budget = whole_number("budget", budget, at_least=0)
    if 0 < budget < LEAST_BUDGET:
        raise ValueError(f"budget must be 0 or at least {LEAST_BUDGET}, got {budget}")
    return budget


@dataclass(frozen=True)
class Measured:
    """Sums over subsets; those of several rounds are added up.

    The deviation of a patch in a subset is its membership, 1 or 0, less the probability of it. A residual is what the
    subset's size does not explain of the prediction.

    Args:
        products: float64 [B, N], of deviations and residuals.
        squares: float64 [B, N], of the squares of these products.
        information: float64 [B, N], of the deviations' variances.
        residuals: float64 [B, 1], of the squares of the residuals.
        num_subsets: how many subsets there are.
        free: how many of these the functions of size, which are fitted to them, leave.
    """

    products: torch.Tensor
    squares: torch.Tensor
    information: torch.Tensor
    residuals: torch.Tensor
    num_subsets: int = 0
    free: int = 0

    @classmethod
    def nothing(cls, maps: torch.Tensor) -> "Measured":
        """The sums over no subset, for maps [B, N]."""
        zeros = torch.zeros_like(maps)
        return cls(zeros, zeros, zeros, zeros[:, :1])

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def slope(self) -> torch.Tensor:
        """The direction in which the SRG of random orders grows, for residuals of variance 1: [B, N]."""
        deviation = (self.residuals / max(self.free, 1)).sqrt()
        said = deviation > torch.finfo(torch.float32).eps  # otherwise it is the rounding of probabilities
        return torch.where(said, self.products / torch.where(said, deviation, 1), 0)

    @property
    def effects(self) -> torch.Tensor:
        """How much higher predictions are with a patch than without it: [B, N], 0 where it never varied."""
        return torch.where(self._varied, self.products / self.information, 0)

    @property
    def stderr(self) -> torch.Tensor:
        """The errors of the effects, whatever the residuals depend on (White, 1980): [B, N]."""
        variance = self.squares * self.num_subsets / max(self.free, 1) / self.information**2
        return torch.where(self._varied, variance.sqrt(), torch.inf)

    @property
    def _varied(self) -> torch.Tensor:
        return self.information > 1e-6 * self.num_subsets


def measure(predictions: torch.Tensor, subsets: torch.Tensor, sizes: torch.Tensor, maps: torch.Tensor) -> Measured:
    """What the predictions from the subsets of one round say about the patches.

    Args:
        predictions: [B, M], probabilities of the target classes.
        subsets: bool [B, M, N], as `attribution_guided` draws them by the maps.
        sizes: int64 [M], those of the subsets.
        maps: float64 [B, N].
    """
    num_patches, half = maps.shape[1], (len(sizes) + 1) // 2
    total = Measured.nothing(maps)
    for scores, part in ((maps, slice(half)), (-maps, slice(half, None))):
        basis = _size_basis(sizes[part], num_patches)
        residuals = predictions[:, part].double()
        residuals = residuals - residuals @ basis @ basis.T
        probabilities = inclusion_probabilities(min_max_weights(scores) ** _EXPONENT, sizes[part])
        deviations = subsets[:, part].double() - probabilities
        total = total + Measured(
            (residuals[:, None] @ deviations)[:, 0],
            (residuals[:, None].square() @ deviations.square())[:, 0],
            (probabilities * (1 - probabilities)).sum(dim=1),
            residuals.square().sum(dim=1, keepdim=True),
            len(basis),
            len(basis) - basis.shape[1],
        )
    return total


def inclusion_probabilities(weights: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """How likely a patch is among the first s that are drawn in proportion to weights, without replacement.

    Such draws are a race of clocks, and patch i's has rung by the time t with the probability 1 - exp(-w_i t). Here t
    is the time by which s clocks have rung on average, which is near the one at which s have rung.

    Args:
        weights: float64 [B, N], not negative.
        sizes: int64 [M], from 1 to N - 1.

    Returns:
        float64 [B, M, N], which add to the sizes.
    """
    highest = weights.amax(dim=1, keepdim=True)
    weights = torch.where(highest > 0, weights / torch.where(highest > 0, highest, 1), 1).clamp_min(1e-9)[:, None]
    low = torch.full((len(weights), len(sizes), 1), -15.0, dtype=torch.float64, device=weights.device)
    high = torch.full_like(low, 25.0)  # the logarithm of t: no clock has rung at the one, and all at the other
    for _ in range(45):
        middle = (low + high) / 2
        too_early = -torch.expm1(-weights * middle.exp()).sum(dim=-1, keepdim=True) < sizes[:, None]
        low, high = torch.where(too_early, middle, low), torch.where(too_early, high, middle)
    return -torch.expm1(-weights * high.exp())


def _round_sizes(budget: int) -> list[int]:
    """The budget in as few rounds as there can be, of nearly equal sizes."""
    rounds = -(-budget // _ROUND_SIZE)
    return [budget // rounds + (number < budget % rounds) for number in range(rounds)]


def _sizes(number: int, num_patches: int, *stream: int) -> torch.Tensor:
    """Sizes that are even over 1..N-1 in each half, the same for all images: int64 [M]."""
    generator = KeyedGenerator("sizes of refinement", *stream, keys=torch.zeros(1, dtype=torch.int64))
    halves = (number + 1) // 2, number // 2
    return torch.cat([stratified_sizes(1, half, num_patches - 1, generator=generator)[0] for half in halves])


def _size_basis(sizes: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Orthonormal functions of size, whose span has 1, s, s^2 and the root of s: sizes [M] -> float64 [M, 4].

    With less than five patches there are fewer sizes to tell them apart, and fewer functions.
    """
    share = sizes.double() / num_patches
    functions = torch.stack([torch.ones_like(share), share, share.square(), share.sqrt()], dim=1)
    return torch.linalg.qr(functions[:, : num_patches - 1]).Q


def _standardised(maps: torch.Tensor) -> torch.Tensor:
    """Maps [B, N] with mean 0 and variance 1; a map whose differences can be rounding becomes zeros."""
    centred = maps - maps.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    said = deviation > torch.finfo(torch.float32).eps * maps.abs().amax(dim=1, keepdim=True)
    return torch.where(said, centred / torch.where(said, deviation, 1), 0)
