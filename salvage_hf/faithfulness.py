"""Faithfulness of attributions: what the classifier predicts as patches are added (section 5.3, appendix A.1).

A curve holds the probability (0..1) of the target class at the subset sizes 1..N; column s - 1 belongs to size s. LIF
and MIF are the insertion and the deletion curve of one order of the patches, both read by number of visible patches.
"""

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import subsets as sampling
from .keyed_random import KeyedGenerator, image_keys
from .masking import MaskedClassifier, ValueFunction, as_value_function, value_at
from .targets import check_targets, target_probability
from .tensors import described, processed_images, reals, whole_number, whole_numbers


@dataclass
class RankScores:
    """Algorithm 1, per image: scores [B] and curves [B, N]."""

    mif: torch.Tensor
    lif: torch.Tensor
    mif_curve: torch.Tensor
    lif_curve: torch.Tensor

    @property
    def srg(self) -> torch.Tensor:
        """Symmetric relevance gain, LIF - MIF (eq. 7): [B]."""
        return self.lif - self.mif


@dataclass
class RelativeScores:
    """Algorithm 2, per image: scores [B], standard errors over the draws [B], curves [B, N], and the cost [B]."""

    r_mif: torch.Tensor
    r_lif: torch.Tensor
    r_mif_stderr: torch.Tensor
    r_lif_stderr: torch.Tensor
    r_srg_stderr: torch.Tensor
    r_mif_curve: torch.Tensor
    r_lif_curve: torch.Tensor
    num_forwards: torch.Tensor

    @property
    def r_srg(self) -> torch.Tensor:
        """R-LIF - R-MIF (eq. 8): [B]."""
        return self.r_lif - self.r_mif


@torch.no_grad()
def rank_scores(
    v: "MaskedClassifier | ValueFunction | str",
    pixel_values: torch.Tensor,
    attributions: torch.Tensor,
    targets: torch.Tensor,
    seed: int = 0,
    ids: torch.Tensor | None = None,
) -> RankScores:
    """MIF, LIF and SRG (Algorithm 1).

    LIF adds patches from most to least important, MIF from least to most; a score is the mean prediction over sizes
    1..N. MIF's order is LIF's reversed, so both together need 2N - 1 subsets per image.

    Args:
        v: the classifier, in any form `as_value_function` takes.
        pixel_values: [B, C, H, W]; like the following arguments a tensor, an array or lists.
        attributions: [B, N], the map of each image's target class; of any real type, ranked without rounding.
        targets: whole numbers [B], the explained classes.
        seed: seed of the random order of patches with equal attributions, a whole number.
        ids: whole numbers [B], the keys of the images' random numbers; their pixels when None.

    Raises:
        ValueError: where types or shapes do not fit, attributions or predictions are NaN, or a target is no class.
        TypeError: where v is no classifier.
    """
    value, attributions, keys = _prepared(v, pixel_values, attributions, targets, ids)
    num_patches = attributions.shape[1]
    generator = KeyedGenerator("order of equal patches", seed, keys=keys)
    # The patches are shuffled before a stable sort, so that those of equal attribution stay in random order.
    shuffled = generator.uniform(num_patches).argsort(dim=-1)
    order = attributions.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    place = sampling.positions(shuffled.gather(1, order))[:, None]  # [B, 1, N], 0 is the most important
    sizes = torch.arange(1, num_patches + 1, device=attributions.device)[None, :, None]
    lif_subsets = place < sizes
    mif_subsets = place >= num_patches - sizes[:, :-1]
    curves = value(torch.cat([lif_subsets, mif_subsets], dim=1))  # [B, 2N - 1]
    lif_curve, full = curves[:, :num_patches], curves[:, num_patches - 1 : num_patches]
    mif_curve = torch.cat([curves[:, num_patches:], full], dim=1)
    return RankScores(mif_curve.mean(dim=1), lif_curve.mean(dim=1), mif_curve, lif_curve)


@torch.no_grad()
def relative_scores(
    v: "MaskedClassifier | ValueFunction | str",
    pixel_values: torch.Tensor,
    attributions: torch.Tensor,
    targets: torch.Tensor,
    n_masks: int = 128,
    seed: int = 0,
    ids: torch.Tensor | None = None,
    budget: int | None = None,
    target_stderr: float | None = None,
) -> RelativeScores:
    """R-MIF, R-LIF and R-SRG (Algorithm 2).

    For every size 1..N, n_masks subsets are drawn in proportion to the min-max normalised attributions (R-LIF), and as
    many in proportion to one minus them (R-MIF). One weighted order serves all sizes, so the n_masks orders of an image
    are independent samples of its score, and the standard error is taken over them. This costs
    2 * n_masks * (N - 1) + 1 forwards per image. All images of the call advance through the sizes together.

    With a budget the same expectations are estimated from that number of forwards per image. Sizes are stratified over
    1..N-1, and every stratum gets two draws, whose difference gives the standard error. R-LIF and R-MIF draw with the
    same sizes and random numbers, so that what they have in common cancels in R-SRG. The estimate has no bias, unless
    `target_stderr` stops an image early.

    Args:
        v: the classifier, in any form `as_value_function` takes.
        pixel_values: [B, C, H, W]; like the following arguments a tensor, an array or lists.
        attributions: [B, N], the map of each image's target class; of any real type, its weights are float64.
        targets: whole numbers [B], the explained classes.
        n_masks: draws per size and direction; 128 in the paper. With 1 the standard errors are NaN.
        seed: seed of the draws, a whole number.
        ids: whole numbers [B], the keys of the images' draws; their pixels when None.
        budget: forwards per image, at least 5; takes the place of n_masks. The curves are then means over strata.
        target_stderr: with a budget: spend it repeatedly on each image, until the standard error of the image's R-SRG
            over the draws is at most this, or its cost reaches that of the paper's 128 draws per size. Images whose
            error is small by chance stop early, so the reported errors are a little too small.

    Raises:
        ValueError: as in `rank_scores`, and where n_masks, budget or target_stderr is too small.
        TypeError: where v is no classifier.
    """
    n_masks = whole_number("n_masks", n_masks, at_least=1)
    if budget is not None:
        budget = whole_number("budget", budget, at_least=5)
    if target_stderr is not None:
        _check_target_stderr(target_stderr, budget)
    value, attributions, keys = _prepared(v, pixel_values, attributions, targets, ids)
    # One weight per patch and direction, [2, B, N]. R-MIF's are those of the negated map, which is one minus R-LIF's
    # without rounding, so that negating a map swaps both scores.
    weights = torch.stack([sampling.min_max_weights(attributions), sampling.min_max_weights(-attributions)])
    if budget is not None:
        return _budgeted(value, weights, keys, seed, budget, target_stderr)
    return _protocol(value, weights, keys, seed, n_masks)


def _check_target_stderr(target_stderr: Any, budget: int | None) -> None:
    """Raises ValueError where a target is no positive number, or there is no budget to reach it with."""
    is_number = isinstance(target_stderr, numbers.Real) and not isinstance(target_stderr, bool)
    if budget is None or not is_number or not 0 < target_stderr < float("inf"):
        raise ValueError(
            "target_stderr must be a positive number and needs a budget, "
            f"got {described(target_stderr)} and budget={budget}"
        )


def _protocol(value: Callable, weights: torch.Tensor, keys: torch.Tensor, seed: int, n_masks: int) -> RelativeScores:
    """`relative_scores` from `n_masks` weighted orders per direction, each of which serves every size."""
    batch_size, num_patches = weights.shape[1:]
    generator = KeyedGenerator("relative draws", seed, keys=keys)
    places = torch.cat([_places(w, n_masks, generator) for w in weights], dim=1)  # [B, 2 n_masks, N]
    # A block of sizes at a time: large enough for dense batches, but never all subsets in memory at once.
    step = max(1, 512 // (2 * n_masks))
    blocks = []
    for sizes in torch.arange(1, num_patches).split(step):
        if not len(sizes):  # a single patch has no subset but the full one
            break
        block = places[..., None, :] < sizes.to(places.device)[:, None]  # [B, 2 n_masks, sizes, N]
        blocks.append(value(block.flatten(1, 2)).unflatten(1, (2, n_masks, -1)))
    full = value(torch.ones(batch_size, 1, num_patches, dtype=torch.bool, device=places.device))
    blocks.append(full[:, None, None].expand(-1, 2, n_masks, -1))
    curves = torch.cat(blocks, dim=-1)  # [B, 2, n_masks, N]
    scores = curves.mean(dim=-1)
    r_lif, r_mif = scores.mean(dim=-1).unbind(1)
    variance = (scores - scores.mean(dim=-1, keepdim=True)).square().sum(dim=-1) / (n_masks - 1 or torch.nan)
    lif_stderr, mif_stderr = (variance / n_masks).sqrt().unbind(1)
    srg_stderr = (lif_stderr**2 + mif_stderr**2).sqrt()
    lif_curve, mif_curve = curves.mean(dim=2).unbind(1)
    num_forwards = torch.full_like(keys, 2 * n_masks * (num_patches - 1) + 1)
    return RelativeScores(r_mif, r_lif, mif_stderr, lif_stderr, srg_stderr, mif_curve, lif_curve, num_forwards)


#: An image stops only when its error is estimated from at least this many differences between two draws: a few
#: differences may all be 0 by chance.
_MIN_DIFFERENCES = 16

#: How many orders, or strata of sizes, are drawn at once: drawing takes many times the memory of what is drawn.
_BLOCK_SIZE = 16


def _places(weights: torch.Tensor, num_orders: int, generator: KeyedGenerator) -> torch.Tensor:
    """The place of each patch in weighted orders: weights [B, N] -> int16 [B, num_orders, N]."""
    blocks = [
        sampling.positions(sampling.weighted_orders(weights, len(block), generator=generator)).to(torch.int16)
        for block in torch.arange(num_orders).split(_BLOCK_SIZE)
    ]
    return torch.cat(blocks, dim=1)


def _budgeted(
    value: Callable, weights: torch.Tensor, keys: torch.Tensor, seed: int, budget: int, target_stderr: float | None
) -> RelativeScores:
    """`relative_scores` from a number of forwards: rounds of `budget` until the standard error is reached."""
    batch_size, num_patches = weights.shape[1:]
    num_strata = (budget - 1) // 4  # each takes two draws in two directions
    full = value(torch.ones(batch_size, 1, num_patches, dtype=torch.bool, device=weights.device))  # [B, 1]
    curves = full[:, None].expand(-1, 2, num_patches).clone()  # [B, (lif, mif), N]
    means = full.expand(-1, 2).clone()  # lif, mif
    variances = full.new_zeros(batch_size, 3)  # lif, mif, srg
    rounds = torch.zeros_like(keys)
    max_rounds = max(1, 2 * 128 * (num_patches - 1) // (4 * num_strata))
    share = (num_patches - 1) / num_patches  # of the sizes that are drawn; the rest is the full image
    active = torch.arange(batch_size)
    for number in range(max_rounds if num_patches > 1 else 0):  # a single patch has no subset but the full one
        draws = _stratified_draws(value, weights, keys, (seed, number), num_strata, active)
        scores = torch.cat([draws, draws[:, :1] - draws[:, 1:]], dim=1)  # [A, (lif, mif, srg), 2, strata]
        mean = share * draws.mean(dim=(-2, -1)) + (1 - share) * full[active]
        # (a - b)^2 / 4 is an unbiased estimate of the variance of the mean of two draws a and b.
        difference = scores[:, :, 0] - scores[:, :, 1]
        variance = (share / num_strata) ** 2 * (difference**2).sum(dim=-1) / 4
        curve = torch.nn.functional.adaptive_avg_pool1d(draws.mean(dim=2), num_patches - 1)
        means[active] = means[active].lerp(mean, 1 / (number + 1))
        curves[active, :, :-1] = curves[active, :, :-1].lerp(curve, 1 / (number + 1))
        variances[active] = (variances[active] * number**2 + variance) / (number + 1) ** 2
        rounds[active] += 1
        if target_stderr is not None and (number + 1) * num_strata >= _MIN_DIFFERENCES:
            active = active[(variances[active, 2].sqrt() > target_stderr).cpu()]
        if target_stderr is None or not len(active):
            break
    lif, mif = means.unbind(1)
    lif_stderr, mif_stderr, srg_stderr = variances.sqrt().unbind(1)
    num_forwards = 1 + 4 * num_strata * rounds
    return RelativeScores(mif, lif, mif_stderr, lif_stderr, srg_stderr, curves[:, 1], curves[:, 0], num_forwards)


def _stratified_draws(
    value: Callable, weights: torch.Tensor, keys: torch.Tensor, numbers: tuple[int, int], num_strata: int, active
) -> torch.Tensor:
    """Two draws in each stratum of sizes for the images at `active` [A]: predictions [A, (lif, mif), 2, strata]."""
    weights = weights[:, active]
    num_patches = weights.shape[-1]
    generator = KeyedGenerator("relative sizes within a budget", *numbers, keys=keys[active])
    # Only the sizes 1..N-1 are drawn: the full image is the same in every draw.
    shape = len(active), num_strata, num_patches - 1
    sizes = torch.stack([sampling.stratified_sizes(*shape, generator=generator) for _ in range(2)], dim=1)
    predictions = []
    for block in range(0, num_strata, _BLOCK_SIZE):
        block_sizes = sizes[..., block : block + _BLOCK_SIZE]  # [A, 2, strata]
        places = []
        for direction in weights:  # both draw the same random numbers
            generator = KeyedGenerator("relative draws within a budget", *numbers, block, keys=keys[active])
            places.append(_places(direction, 2 * block_sizes.shape[-1], generator))
        drawn = torch.stack(places, dim=1) < block_sizes.flatten(1)[:, None, :, None]  # [A, 2, 2 * strata, N]
        predictions.append(value(drawn.flatten(1, 2), active).view(len(active), 2, 2, -1))
    return torch.cat(predictions, dim=-1)


def mean_and_stderr(scores: torch.Tensor) -> tuple[float, float]:
    """Mean over images and its standard error, NaN scores left out: [B] -> (mean, standard error)."""
    scores = reals("scores", scores, "B", finite=False)
    scores = scores[~scores.isnan()]
    if len(scores) < 2:
        return (scores.item() if len(scores) else float("nan")), float("nan")
    return scores.mean().item(), (scores.std() / len(scores) ** 0.5).item()


def _prepared(
    v: "MaskedClassifier | ValueFunction | str",
    pixel_values: torch.Tensor,
    attributions: torch.Tensor,
    targets: torch.Tensor,
    ids: torch.Tensor | None,
) -> tuple[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor]:
    """The arguments of a score, checked and brought to one device and type.

    Returns:
        value(subsets [B, M, N]) -> probability of the targets [B, M], with an index of images as a second argument
        where only some are meant; the attributions in float64; the keys of the images' random numbers. All are on the
        device of the attributions.
    """
    pixel_values = processed_images("pixel_values", pixel_values)
    batch_size = pixel_values.shape[0]
    attributions = reals("attributions", attributions, "B N", B=batch_size)
    targets = whole_numbers("targets", targets, "B", B=batch_size)
    keys = image_keys(pixel_values) if ids is None else whole_numbers("ids", ids, "B", B=batch_size)
    v = as_value_function(v)
    if isinstance(v, MaskedClassifier):
        rows, columns = v.patch_grid(pixel_values)
        if attributions.shape[1] != rows * columns:
            raise ValueError(
                f"attributions have {attributions.shape[1]} patches per image, the classifier sees {rows} x {columns} "
                f"= {rows * columns} in images of {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels"
            )
        check_targets(targets, v.num_labels)
    probabilities = value_at(v, pixel_values)
    device = attributions.device
    targets = targets.to(device)

    def value(subsets: torch.Tensor, images: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        answer = probabilities(subsets, images)
        fits = isinstance(answer, torch.Tensor) and answer.ndim == 3 and answer.shape[:2] == subsets.shape[:2]
        if not fits or not answer.is_floating_point():
            raise ValueError(
                f"v must return probabilities [B, M, K] with B, M = {tuple(subsets.shape[:2])}, got {described(answer)}"
            )
        check_targets(targets, answer.shape[-1])
        answer = answer.to(device, torch.promote_types(answer.dtype, torch.float32))  # means in half precision round
        answer = target_probability(answer, targets[images])
        bad = ~answer.isfinite().all(dim=1)
        if bad.any():
            places = torch.arange(batch_size)[images][bad.cpu()]
            raise ValueError(f"v returned NaN or infinite numbers for the images at {places.tolist()[:10]}")
        return answer

    return value, attributions, keys.to(device)
