"""A trained explainer's map, improved by what the classifier says about subsets of the same image.

The effect of a patch is how much higher the mean prediction from subsets of one size is with it than without it, as a
mean over the sizes s = 1..N-1 with the weights s (N - s). The Shapley value gives all sizes the same weight; these are
the ones that a few subsets estimate best, because at the ends of the range nearly all subsets have the patch, or lack
it.

There are two estimates of the effects, whose errors are independent: the explainer's map, learned
from other images, and a measurement by a few hundred subsets of this image. Both are brought to one scale and averaged,
each weighted by the inverse of its variance. The explainer's error is measured once on validation images (`calibrate`)
and kept in its config; the measurement's error follows from the subsets. Without subsets the result is therefore the
explainer's, and with many it is the measurement's.

The order of the patches is that of the average. Their values are the explainer's own, handed out in this order, because
an average of standardised estimates has lost how far apart the patches are, which R-SRG asks about.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .keyed_random import KeyedGenerator, image_keys
from .masking import MaskedClassifier, value_at
from .subsets import positions, stratified_sizes, uniform
from .targets import activation, check_targets, target_attributions, target_probability
from .tensors import processed_images, whole_number, whole_numbers

#: With fewer subsets the error of a measurement is not known.
LEAST_BUDGET = 16

#: Subsets that are drawn and asked about at once.
_BLOCK_SIZE = 256

#: The least number of subsets on which the effects in the explainer's u(S) are measured, and how many for each subset
#: that the classifier is asked about; they cost no forward of the classifier.
_LEAST_CONTROLS, _CONTROLS_PER_SUBSET = 4096, 4


@dataclass(frozen=True)
class Calibration:
    """How much an explainer's maps and a few subsets say about the effects of patches, a mean over images.

    Args:
        correlation: of the explainer's map with the true effects of an image's patches, 0..1.
        signal: the variance of an image's effects, in units of the variance of its predictions that neither size nor
            u(S) explains.
    """

    correlation: float
    signal: float

    @classmethod
    def of(cls, explainer) -> "Calibration":
        """The calibration that an explainer's config states; raises ValueError where it states none."""
        stated = getattr(explainer.config, "calibration", None)  # older code does not have it
        if stated is None:
            raise ValueError(
                "explainer states no calibration, which refinement weighs its map by: run scripts/calibrate.py"
            )
        return cls(float(stated["correlation"]), float(stated["signal"]))


@dataclass(frozen=True)
class RefinedAttributions:
    """Refined maps of B images.

    Args:
        attributions: float32 [B, N], the explainer's values of the target class, in the order of `effects`.
        effects: float32 [B, N], the estimated effects, in standard deviations of the true effects of an image.
        stderr: float32 [B, N], their standard errors in the same unit: 1 where nothing is known.
    """

    attributions: torch.Tensor
    effects: torch.Tensor
    stderr: torch.Tensor


@torch.no_grad()
def refine(
    v: MaskedClassifier,
    explainer,
    pixel_values: torch.Tensor,
    targets: torch.Tensor,
    budget: int,
    seed: int = 0,
) -> RefinedAttributions:
    """Improves the maps of a trained explainer by `budget` forwards of the classifier on each image.

    An image that is given several times, with one target each, is asked about once.

    Args:
        v: the classifier.
        explainer: a calibrated `SalvageModel` that was trained for it.
        pixel_values: [B, C, H, W], processed images.
        targets: int64 [B], the explained classes.
        budget: subsets per image; 0 gives the explainer's map, otherwise at least 16.
        seed: seed of the subsets, which depend on it and on the pixels of the image.

    Raises:
        ValueError: where the explainer states no calibration or has other labels, the budget is too small, images are
            not what `MaskedClassifier.as_input` takes, or targets are not one class per image.
    """
    budget, calibration = checked_budget(budget), Calibration.of(explainer)
    output, pixel_values, targets = _explained(v, explainer, pixel_values, targets)
    attributions = target_attributions(output.attributions, targets).float()
    # The map says that the effects are correlation * map, with the variance 1 - correlation^2.
    precision = torch.full_like(attributions, 1 / (1 - calibration.correlation**2), dtype=torch.float64)
    weighted = precision * calibration.correlation * _standardised(attributions.double())
    variance = precision.clone()
    if budget and attributions.shape[1] > 1:
        measured = measure_effects(v, explainer, output, pixel_values, targets, budget, seed)
        unit = calibration.signal**0.5 * measured.residual[:, None]  # the standard deviation of the effects
        added = calibration.signal / measured.noise[:, None]
        precision += added
        weighted += added * _quotient(measured.effects, unit)
        variance += added**2 * _quotient(measured.stderr, unit).square()
    effects = weighted / precision
    ranks = positions(effects.argsort(dim=1, stable=True))
    values = attributions.sort(dim=1).values.gather(1, ranks)
    return RefinedAttributions(values, effects.float(), (variance.sqrt() / precision).float())


@torch.no_grad()
def calibrate(
    v: MaskedClassifier, explainer, batches: Iterable[dict[str, torch.Tensor]], budget: int = 256
) -> dict[str, Any]:
    """How well an explainer's maps agree with what the classifier says, for the `calibration` of its config.

    The effects of each image are measured twice, by `budget` / 2 subsets each. How far both agree gives the error of
    such a measurement, and how far the map agrees with them its own, freed of theirs (Spearman's correction for
    attenuation, 1904).

    Args:
        v: the classifier.
        explainer: a `SalvageModel` that was trained for it.
        batches: "pixel_values" [B, C, H, W] and "labels" int64 [B], the explained classes, of images that it was not
            trained on.
        budget: subsets per image, at least 32.

    Returns:
        "correlation" and "signal" as in `Calibration`, with "images" and "budget", the numbers they were measured with.

    Raises:
        ValueError: as in `refine`, and where there are no images, or they have a single patch.
    """
    half = whole_number("budget", budget, at_least=2 * LEAST_BUDGET) // 2
    rows = []
    for batch in batches:
        output, pixel_values, targets = _explained(v, explainer, batch["pixel_values"], batch["labels"])
        if (num_patches := output.attributions.shape[1]) < 2:
            raise ValueError(f"images must have at least 2 patches to be ranked, got {num_patches}")
        maps = _standardised(target_attributions(output.attributions, targets).double())
        inputs = v, explainer, output, pixel_values, targets, half
        measured = [measure_effects(*inputs, seed) for seed in (0, 1)]
        first, second = (_standardised(measurement.effects) for measurement in measured)
        noise = (measured[0].noise + measured[1].noise) / 2
        products = (first * second).mean(dim=1), (maps * (first + second) / 2).mean(dim=1)
        rows.append(torch.stack([*products, noise], dim=1))
    if not rows:
        raise ValueError("batches must hold at least one image, got none")
    agreement, with_map, noise = torch.cat(rows).mean(dim=0)
    agreement = agreement.clamp(0.01, 0.99)  # beyond, a few images cannot tell it from 0 and 1
    correlation = (with_map / agreement.sqrt()).clamp(0, 0.99)
    # Of a measurement's variance the share `agreement` is the effects', and the rest its error.
    signal = agreement / (1 - agreement) * noise
    return {
        "correlation": round(correlation.item(), 4),
        "signal": float(f"{signal:.4g}"),
        "images": len(torch.cat(rows)),
        "budget": 2 * half,
    }


def _explained(
    v: MaskedClassifier, explainer, pixel_values: torch.Tensor, targets: torch.Tensor
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The explainer's output, and the images [B, C, H, W] and targets int64 [B] as the classifier takes them."""
    asked = v.as_input(pixel_values)
    targets = whole_numbers("targets", targets, "B", B=len(asked)).to(v.device)
    check_targets(targets, v.num_labels)
    if (num_labels := explainer.config.num_labels) != v.num_labels:
        raise ValueError(f"explainer has {num_labels} labels, the classifier {v.num_labels}")
    # The explainer sees the images as they are given, because the classifier's type may round them.
    output = explainer(processed_images("pixel_values", pixel_values).to(v.device, explainer.dtype))
    return output, asked, targets


def checked_budget(budget: int) -> int:
    """A number of subsets per image; raises ValueError where it is neither 0 nor at least `LEAST_BUDGET`."""
    budget = whole_number("budget", budget, at_least=0)
    if 0 < budget < LEAST_BUDGET:
        raise ValueError(f"budget must be 0 or at least {LEAST_BUDGET}, got {budget}")
    return budget


@dataclass(frozen=True)
class MeasuredEffects:
    """The effects of the patches of B images, measured by subsets of them.

    Args:
        effects: float64 [B, N], probabilities; their mean over the patches is zero.
        stderr: float64 [B, N], their standard errors.
        residual: float64 [B], the standard deviation of the predictions that neither size nor u(S) explains.
        noise: float64 [B], the mean variance of the effects' errors in units of residual^2.
    """

    effects: torch.Tensor
    stderr: torch.Tensor
    residual: torch.Tensor
    noise: torch.Tensor


def measure_effects(
    v: MaskedClassifier,
    explainer,
    output,
    pixel_values: torch.Tensor,
    targets: torch.Tensor,
    budget: int,
    seed: int,
) -> MeasuredEffects:
    """Effects by a regression of the predictions from subsets, whose sizes are even over 1..N-1, on their patches.

    The explainer's u(S) is a control variate: what it explains of v(S) is replaced by its own effects, measured on many
    more subsets.

    Args:
        v, explainer, pixel_values, targets, budget, seed: as in `refine`.
        output: what the explainer returned for the images.
    """
    num_patches, device = output.attributions.shape[1], output.attributions.device
    sizes = _even_sizes(budget, num_patches, KeyedGenerator("sizes of refinement", seed, keys=_shared_key(device)))
    keys, image = image_keys(pixel_values).to(device).unique(return_inverse=True)
    places = torch.arange(len(image), device=device)
    first = torch.full_like(keys, len(image)).scatter_reduce(0, image, places, "amin")  # the place of each key's image
    drawn = _draw(len(keys), sizes, num_patches, KeyedGenerator("subsets of refinement", seed, keys=keys))
    value = value_at(v, pixel_values[first])
    blocks = drawn.split(_BLOCK_SIZE, dim=1)
    predictions = torch.cat([target_probability(value(block)[image], targets) for block in blocks], dim=1).double()
    subsets = drawn[image]
    basis = _size_basis(sizes, num_patches)
    predictions = _without(predictions, basis)
    estimates = _without(_estimates(explainer, output, subsets, targets), basis)
    spread = estimates.square().mean(dim=1).sqrt()
    slope = _quotient(_quotient((predictions * estimates).mean(dim=1), spread), spread).clamp_min(0)[:, None]
    residuals = predictions - slope * estimates
    unexplained = budget - basis.shape[1] - 1
    residual = (residuals.square().sum(dim=1) / unexplained).sqrt()
    effects, variance = _effects(residuals, subsets, sizes)
    added_effects, added_variance = _effects_in_estimates(explainer, output, targets, budget, seed)
    added_variance = slope.square() * added_variance
    noise = 1 / _information(sizes, num_patches) + _quotient(added_variance.mean(dim=1).sqrt(), residual).square()
    variance = variance * budget / unexplained + added_variance
    return MeasuredEffects(effects + slope * added_effects, variance.sqrt(), residual, noise)


def _effects_in_estimates(
    explainer, output, targets: torch.Tensor, budget: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The effects in the explainer's u(S), from many subsets that are the same for all images, and their variances.

    Both are float64 [B, N].
    """
    num_patches, device = output.attributions.shape[1], output.attributions.device
    generator = KeyedGenerator("subsets of the control variate", seed, keys=_shared_key(device))
    sizes = _even_sizes(max(_LEAST_CONTROLS, _CONTROLS_PER_SUBSET * budget), num_patches, generator)
    subsets = _draw(1, sizes, num_patches, generator)
    estimates = _estimates(explainer, output, subsets.expand(len(targets), -1, -1), targets)
    return _effects(_without(estimates, _size_basis(sizes, num_patches)), subsets, sizes)


def _shared_key(device: torch.device) -> torch.Tensor:
    """The key of what all images share."""
    return torch.zeros(1, dtype=torch.int64, device=device)


def _even_sizes(number: int, num_patches: int, generator: KeyedGenerator) -> torch.Tensor:
    """Sizes that are even over 1..N-1: int64 [M]."""
    return stratified_sizes(1, number, num_patches - 1, generator=generator)[0]


def _draw(batch_size: int, sizes: torch.Tensor, num_patches: int, generator: KeyedGenerator) -> torch.Tensor:
    """Subsets of these sizes [M], each equally likely: bool [B, M, N]; drawing them takes many times their memory."""
    blocks = sizes.split(_BLOCK_SIZE)
    return torch.cat(
        [uniform(batch_size, len(block), num_patches, generator=generator, sizes=block) for block in blocks], dim=1
    )


def _estimates(explainer, output, subsets: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """u(S) of the target class: subsets [B, M, N] -> probabilities, float64 [B, M]."""
    blocks = [activation(explainer.subset_logits(output, block)) for block in subsets.split(_BLOCK_SIZE, dim=1)]
    return torch.cat([target_probability(block, targets) for block in blocks], dim=1).double()


def _size_basis(sizes: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Orthonormal functions of size, whose span has 1, s, s^2 and the root of s: sizes [M] -> float64 [M, 4].

    With less than five patches there are fewer sizes to tell them apart, and fewer functions.
    """
    share = sizes.double() / num_patches
    functions = torch.stack([torch.ones_like(share), share, share.square(), share.sqrt()], dim=1)
    return torch.linalg.qr(functions[:, : num_patches - 1]).Q


def _without(values: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """What functions of size do not explain of values [B, M]."""
    return values - values @ basis @ basis.T


def _effects(values: torch.Tensor, subsets: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The effects in values that size does not explain, and the variances of their errors.

    A subset of size s counts for a patch by what its membership, 1 or 0, differs from s / N. This gives a size the
    weight s (N - s), and errors that follow from the values (White, 1980), whatever they depend on.

    Args:
        values: float64 [B, M].
        subsets: bool [B, M, N], or [1, M, N] where they are the same for all images.
        sizes: int64 [M].

    Returns:
        float64 [B, N] each.
    """
    num_patches = subsets.shape[-1]
    total = squares = torch.zeros((), dtype=torch.float64, device=values.device)
    parts = (tensor.split(_BLOCK_SIZE, dim) for tensor, dim in ((values, 1), (subsets, 1), (sizes, 0)))
    for part, shown, size in zip(*parts, strict=True):
        membership = shown.double() - (size.double() / num_patches)[:, None]
        total = total + (part[:, None] @ membership)[:, 0]
        squares = squares + (part[:, None].square() @ membership.square())[:, 0]
    information = _information(sizes, num_patches)
    return total / information, squares / information**2


def _information(sizes: torch.Tensor, num_patches: int) -> torch.Tensor:
    """The sum of the variances s (N - s) / N^2 of a patch's membership in subsets of these sizes: float64 []."""
    return (sizes * (num_patches - sizes)).double().sum() / num_patches**2


def _standardised(maps: torch.Tensor) -> torch.Tensor:
    """Maps [B, N] with mean 0 and variance 1; a constant map becomes zeros."""
    centred = maps - maps.mean(dim=1, keepdim=True)
    return _quotient(centred, centred.square().mean(dim=1, keepdim=True).sqrt(), maps.abs().amax(dim=1, keepdim=True))


def _quotient(numbers: torch.Tensor, divisors: torch.Tensor, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Numbers divided; 0 where a divisor is so small, for the scale of float32 numbers, that it can be rounding."""
    negligible = divisors <= torch.finfo(torch.float32).eps * scale
    return torch.where(negligible, 0, numbers / torch.where(negligible, 1, divisors))
