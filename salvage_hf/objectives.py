"""What an explainer is trained to minimise."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from .masking import activation


def jensen_shannon(logits: torch.Tensor, target_logits: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence between two distributions given by their logits (eq. 5), in nats, 0..log 2.

    Computed in float32 whatever autocast does; finite, with finite gradients, also where a probability is 0 (a logit
    of minus infinity).

    Args:
        logits: [..., K]; with K = 1 the logit of a Bernoulli distribution.
        target_logits: [..., K].

    Returns:
        [...]
    """
    log_p, log_q = _log_probabilities(logits), _log_probabilities(target_logits)
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean)).sum(dim=-1)


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    if logits.shape[-1] == 1:
        # sigmoid(z) is the softmax of (0, z)
        logits = torch.cat([torch.zeros_like(logits), logits], dim=-1)
    # A logit of minus infinity becomes a probability of exactly 0 whose logarithm is finite: 0 * log 0 stays 0.
    return logits.clamp(-1e30, 1e30).log_softmax(dim=-1)


def additive_efficient(values: torch.Tensor, full: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Values moved by the same amount each, so that they sum to v(N) - v(empty): ViT-Shapley's normalisation.

    Args:
        values: [B, N, K].
        full: [B, K], v of all patches.
        empty: [B, K], v of none.
    """
    return values + (full - empty - values.sum(dim=1))[:, None] / values.shape[1]


def _salvage_loss(model, output, subsets, logits, ends) -> torch.Tensor:
    return jensen_shannon(model.subset_logits(output, subsets), logits)


def _shapley_loss(model, output, subsets, logits, ends, normalise: bool) -> torch.Tensor:
    """Shapley values by regression: N (v(S) - v(empty) - sum of phi in S)^2, mean over classes; in probabilities."""
    empty, full = (activation(of_end) for of_end in ends.unbind(1))
    with torch.autocast(subsets.device.type, enabled=False):  # half precision would round the sums
        values = additive_efficient(output.attributions, full, empty) if normalise else output.attributions
        errors = subsets.to(values.dtype) @ values - (activation(logits) - empty[:, None])
    return subsets.shape[-1] * errors.square().mean(dim=-1)


@dataclass(frozen=True)
class Objective:
    """What an explainer is trained for.

    Args:
        loss: (model, its output, subsets bool [B, M, N], logits of v(S) [B, M, K], logits of v at both ends (no patch
            and all patches) [B, 2, K]) -> losses [B, M].
        measure: what the loss is called among the scores.
        shapley: whether it is of Shapley's own kind: one value a patch and class, subsets from the Shapley kernel, and
            both ends needed.
    """

    loss: Callable[..., torch.Tensor]
    measure: str
    shapley: bool = False


OBJECTIVES = {
    "salvage": Objective(_salvage_loss, "js"),
    "vit_shapley": Objective(partial(_shapley_loss, normalise=True), "mse", shapley=True),
    "fastshap": Objective(partial(_shapley_loss, normalise=False), "mse", shapley=True),
}
