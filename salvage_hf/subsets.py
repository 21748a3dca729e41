"""Which patches are visible: the subset distributions of the paper, seeded and vectorised.

A subset is boolean, True where the patch is visible. Every function that draws takes a `torch.Generator` or a
`KeyedGenerator`; with the latter the draws of an image depend on its key alone, not on the batch it comes in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .keyed_random import KeyedGenerator
from .tensors import positive_number, reals, whole_number, whole_numbers

Generator = torch.Generator | KeyedGenerator


def _check_draw(generator: Generator, **counts: int) -> None:
    """Raises ValueError where a count is no whole number, or the generator none or one of other images.

    Every count is at least 1, apart from `num_subsets`.
    """
    for name, count in counts.items():
        whole_number(name, count, at_least=0 if name == "num_subsets" else 1)
    if not isinstance(generator, Generator):
        raise ValueError(f"generator must be a torch.Generator or a KeyedGenerator, got {type(generator).__name__}")
    # Another number of keys would be spread over the images, which would then share their draws.
    if isinstance(generator, KeyedGenerator) and generator.num_images != counts["batch_size"]:
        raise ValueError(f"generator has {generator.num_images} keys for {counts['batch_size']} images")


def _uniform_numbers(shape: tuple[int, ...], generator: Generator) -> torch.Tensor:
    """Uniform numbers in 0..1, float64 of a shape [B, ...]."""
    if isinstance(generator, KeyedGenerator):
        return generator.uniform(*shape[1:]).double()
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _exponentials(shape: tuple[int, int, int], generator: Generator) -> torch.Tensor:
    """Positive standard exponential numbers, float32 [B, M, N]."""
    if isinstance(generator, KeyedGenerator):
        return -generator.uniform(*shape[1:]).log()
    return torch.empty(shape, device=generator.device).exponential_(generator=generator)


def uniform_sizes(batch_size: int, num_subsets: int, num_patches: int, *, generator: Generator) -> torch.Tensor:
    """Independent sizes |S| ~ U{1..N} (Algorithm 3, line 6): int64 [B, M]."""
    _check_draw(generator, batch_size=batch_size, num_subsets=num_subsets, num_patches=num_patches)
    return (_uniform_numbers((batch_size, num_subsets), generator) * num_patches).long() + 1


def stratified_sizes(batch_size: int, num_subsets: int, num_patches: int, *, generator: Generator) -> torch.Tensor:
    """Sizes of which slot m comes from the m-th of M equal parts of 1..N: int64 [B, M].

    The size in a slot chosen at random is U{1..N}, as with `uniform_sizes`, but all slots together cover 1..N evenly.
    """
    _check_draw(generator, batch_size=batch_size, num_subsets=num_subsets, num_patches=num_patches)
    within = _uniform_numbers((batch_size, num_subsets), generator)
    strata = torch.arange(num_subsets, device=within.device)
    return ((strata + within) / num_subsets * num_patches).long().clamp_max(num_patches - 1) + 1


def shapley_kernel_sizes(batch_size: int, num_subsets: int, num_patches: int, *, generator: Generator) -> torch.Tensor:
    """Independent sizes 1..N-1 with p(s) in proportion to 1 / (s (N - s)), the Shapley kernel's: int64 [B, M]."""
    _check_draw(generator, batch_size=batch_size, num_subsets=num_subsets, num_patches=num_patches)
    if num_patches < 2:
        raise ValueError(f"num_patches must be at least 2 for the Shapley kernel, got {num_patches}")
    within = _uniform_numbers((batch_size, num_subsets), generator)
    sizes = torch.arange(1, num_patches, device=within.device, dtype=torch.float64)
    cumulative = (1 / (sizes * (num_patches - sizes))).cumsum(dim=0)
    return torch.searchsorted(cumulative / cumulative[-1], within).clamp_max(num_patches - 2) + 1


def weighted_orders(
    weights: torch.Tensor, num_subsets: int, *, generator: Generator, exponent: float = 1.0
) -> torch.Tensor:
    """Successive draws without replacement, each in proportion to `weight ** exponent`.

    The first s entries of an order are a weighted draw of size s, so one order serves every size. Patches of weight
    0 come after all others, in random order.

    Args:
        weights: [B, N], non-negative.
        num_subsets: M, orders per image.
        generator: source of randomness.
        exponent: a positive number; 1 draws in proportion to the weights themselves. From some 10,000 on, float32 is
            too coarse for draws among patches of nearly equal weight.

    Returns:
        int64 [B, M, N]; entry j is the patch drawn j-th.

    Raises:
        ValueError: where weights are negative, NaN or infinite, the exponent is not positive or not finite, or an
            argument is of another type.
    """
    weights = reals("weights", weights, "B N")
    batch_size, num_patches = weights.shape
    _check_draw(generator, batch_size=batch_size, num_subsets=num_subsets, num_patches=num_patches)
    if (weights < 0).any():
        raise ValueError(f"weights must not be negative, got {weights.min().item():g}")
    return _weighted_orders(weights, num_subsets, generator, positive_number("exponent", exponent))


def _weighted_orders(
    weights: torch.Tensor, num_subsets: int, generator: Generator, exponent: float = 1.0
) -> torch.Tensor:
    """`weighted_orders` of float64 weights that are known to be right: on a GPU, every check of values waits for it."""
    batch_size, num_patches = weights.shape
    # Exponential races (Gumbel top-k): the patch with the smallest E / w^e is drawn first. The logarithms of all
    # positive weights of float64, and their multiples, fit into float32, which the weights and their powers do not.
    noise = _exponentials((batch_size, num_subsets, num_patches), generator).to(weights.device)
    is_zero = weights == 0
    log_weights = (exponent * weights.masked_fill(is_zero, 1).log()).float()
    order = (noise.log() - log_weights[:, None]).argsort(dim=-1)
    drawn_zero = is_zero[:, None].expand_as(order).gather(-1, order)
    return order.gather(-1, drawn_zero.to(torch.uint8).argsort(dim=-1, stable=True))


def positions(orders: torch.Tensor) -> torch.Tensor:
    """The place of each patch in an order, which is the inverse permutation: int64 [..., N]."""
    places = torch.arange(orders.shape[-1], device=orders.device).expand_as(orders)
    return torch.empty_like(orders).scatter_(-1, orders, places)


def min_max_weights(scores: torch.Tensor) -> torch.Tensor:
    """Scores [..., N] scaled to 0..1 (Algorithms 2 and 3); a constant map gives zeros, which draw uniformly.

    One minus the weights, which R-MIF and the second half of Algorithm 3 draw with, are `min_max_weights(-scores)`:
    that is exact, where `1 - weights` would round small weights away. The result has the type of the scores; only the
    smallest score has the weight 0, whatever their range is.
    """
    limits = torch.finfo(scores.dtype)
    # The difference of two numbers may be too large for their type, that of their halves is not.
    halved = scores.abs().amax(dim=-1, keepdim=True) > limits.max / 2
    scores = torch.where(halved, scores / 2, scores)
    low, high = scores.amin(dim=-1, keepdim=True), scores.amax(dim=-1, keepdim=True)
    weights = (scores - low) / torch.where(high > low, high - low, 1)
    return torch.where(scores > low, weights.clamp_min(limits.tiny), 0)


def _sizes(sizes: torch.Tensor | None, shape: tuple[int, int], num_patches: int, generator: Generator) -> torch.Tensor:
    """Sizes [B, M]: those given ([B, M], or [M] shared by all images), or independent uniform ones."""
    if sizes is None:
        return uniform_sizes(*shape, num_patches, generator=generator)
    sizes = whole_numbers("sizes", sizes, "M | B M", B=shape[0], M=shape[1])
    if sizes.min() < 0 or sizes.max() > num_patches:
        raise ValueError(f"sizes must be 0..{num_patches}, got {sizes.min().item()}..{sizes.max().item()}")
    return sizes.expand(shape)


def uniform(
    batch_size: int, num_subsets: int, num_patches: int, *, generator: Generator, sizes: torch.Tensor | None = None
) -> torch.Tensor:
    """Uniform sampling: the size is U{1..N}, then all subsets of that size are equally likely.

    Args:
        batch_size: B.
        num_subsets: M.
        num_patches: N.
        generator: source of randomness.
        sizes: int64 [M] or [B, M], in place of drawing them. Sizes shared by all images ([M]) let a classifier see
            slot m of all images as one dense batch.

    Returns:
        bool [B, M, N]

    Raises:
        ValueError: where an argument is of another type, or a size is not 0..N.
    """
    _check_draw(generator, batch_size=batch_size, num_subsets=num_subsets, num_patches=num_patches)
    weights = torch.ones(batch_size, num_patches, device=generator.device, dtype=torch.float64)
    sizes = _sizes(sizes, (batch_size, num_subsets), num_patches, generator).to(weights.device)
    return positions(_weighted_orders(weights, num_subsets, generator)) < sizes[..., None]


def attribution_guided(
    scores: torch.Tensor,
    num_subsets: int,
    *,
    generator: Generator,
    sizes: torch.Tensor | None = None,
    exponent: float = 1.0,
) -> torch.Tensor:
    """Attribution-guided sampling (Algorithm 3).

    The patches of the first half of the subsets are drawn in proportion to the min-max normalised scores, those of
    the second half in proportion to one minus them. An exponent, which the paper does not have, raises both weights to
    a power: above 1 the first half shows the patches of the highest scores more often before the others, and the second
    half those of the lowest.

    Args:
        scores: [B, N], the current attributions of the target class.
        num_subsets: M; if it is odd, the first half has one more.
        generator: source of randomness.
        sizes: int64 [M] or [B, M], as in `uniform`.
        exponent: a positive number; 1 is Algorithm 3 as published.

    Returns:
        bool [B, M, N]

    Raises:
        ValueError: where scores are NaN or infinite, the exponent is not positive or not finite, an argument is of
            another type, or a size is not 0..N.
    """
    scores = reals("scores", scores, "B N")
    batch_size, num_patches = scores.shape
    _check_draw(generator, batch_size=batch_size, num_subsets=num_subsets, num_patches=num_patches)
    exponent = positive_number("exponent", exponent)
    sizes = _sizes(sizes, (batch_size, num_subsets), num_patches, generator).to(scores.device)
    half = (num_subsets + 1) // 2
    orders = [
        _weighted_orders(min_max_weights(scores), half, generator, exponent),
        _weighted_orders(min_max_weights(-scores), num_subsets - half, generator, exponent),
    ]
    return positions(torch.cat(orders, dim=1)) < sizes[..., None]


def shapley_kernel(
    batch_size: int, num_subsets: int, num_patches: int, *, generator: Generator, sizes: torch.Tensor | None = None
) -> torch.Tensor:
    """Subsets from the Shapley kernel: the size by `shapley_kernel_sizes`, then all of that size are equally likely.

    The second half holds the complements of the first, in its order (Covert et al., 2023). If M is odd, the last subset
    of the first half has no complement.

    Args:
        batch_size: B.
        num_subsets: M.
        num_patches: N, at least 2.
        generator: source of randomness.
        sizes: int64 [(M + 1) // 2] or [B, (M + 1) // 2], those of the first half, in place of drawing them.

    Returns:
        bool [B, M, N]
    """
    _check_draw(generator, batch_size=batch_size, num_subsets=num_subsets, num_patches=num_patches)
    half = (num_subsets + 1) // 2
    if sizes is None:
        sizes = shapley_kernel_sizes(batch_size, half, num_patches, generator=generator)
    first = uniform(batch_size, half, num_patches, generator=generator, sizes=sizes)
    return torch.cat([first, ~first[:, : num_subsets - half]], dim=1)


def shapley_kernel_published(
    batch_size: int, num_subsets: int, num_patches: int, *, generator: Generator
) -> torch.Tensor:
    """Subsets as ViT-Shapley's published code draws them, in pairs like `shapley_kernel`: bool [B, M, N].

    There each patch is visible independently of the others, if a uniform number exceeds (s - 1) / N, with a size s from
    the kernel. Sizes therefore scatter, and some subsets (12% at N = 196) are empty or full. Use this to compare with
    published numbers only.
    """
    _check_draw(generator, batch_size=batch_size, num_subsets=num_subsets, num_patches=num_patches)
    half = (num_subsets + 1) // 2
    threshold = (shapley_kernel_sizes(batch_size, half, num_patches, generator=generator) - 1) / num_patches
    first = _uniform_numbers((batch_size, half, num_patches), generator) > threshold[..., None]
    return torch.cat([first, ~first[:, : num_subsets - half]], dim=1)


@dataclass(frozen=True)
class Law:
    """A distribution of subsets, as training and validation ask for it.

    Args:
        draw: (scores [B, N], num_subsets M, generator, sizes=None) -> bool [B, M, N]; only a guided law reads the
            scores, and it takes the exponent of `attribution_guided` too.
        shared_sizes: (num_subsets M, num_patches N, generator of one key) -> sizes for `draw` that all images of a
            training step share, so that each slot is one dense batch of the classifier; None where images draw their
            own.
        guided: whether the scores guide the draws.
    """

    draw: Callable[..., torch.Tensor]
    shared_sizes: Callable[[int, int, Generator], torch.Tensor | None]
    guided: bool = False


def _guided(
    scores: torch.Tensor,
    num_subsets: int,
    generator: Generator,
    sizes: torch.Tensor | None = None,
    exponent: float = 1.0,
) -> torch.Tensor:
    return attribution_guided(scores, num_subsets, generator=generator, sizes=sizes, exponent=exponent)


def _unguided(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A law's `draw` that ignores the scores, from a function of (batch_size, num_subsets, num_patches)."""

    def draw_for_scores(scores: torch.Tensor, num_subsets: int, generator: Generator, sizes=None) -> torch.Tensor:
        batch_size, num_patches = scores.shape
        options = {} if sizes is None else {"sizes": sizes}
        return draw(batch_size, num_subsets, num_patches, generator=generator, **options)

    return draw_for_scores


def _stratified(num_subsets: int, num_patches: int, generator: Generator) -> torch.Tensor:
    return stratified_sizes(1, num_subsets, num_patches, generator=generator)[0]


def _stratified_halves(num_subsets: int, num_patches: int, generator: Generator) -> torch.Tensor:
    """Sizes stratified within each half of Algorithm 3: over all slots, the first half would get all small sizes."""
    half = (num_subsets + 1) // 2
    return torch.cat([_stratified(number, num_patches, generator) for number in (half, num_subsets - half)])


def _kernel_sizes(num_subsets: int, num_patches: int, generator: Generator) -> torch.Tensor:
    """Sizes of the first half only, because the second half holds the complements."""
    return shapley_kernel_sizes(1, (num_subsets + 1) // 2, num_patches, generator=generator)[0]


#: The laws by which an explainer can be trained: `--sampling` and an objective's own law are names of this table.
LAWS = {
    "guided": Law(_guided, _stratified_halves, guided=True),
    "uniform": Law(_unguided(uniform), _stratified),
    "shapley_kernel": Law(_unguided(shapley_kernel), _kernel_sizes),
    "shapley_kernel_published": Law(_unguided(shapley_kernel_published), lambda *_: None),
}
