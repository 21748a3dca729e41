"""What an explainer is trained to minimise."""

import math

import torch


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


OBJECTIVES = {"salvage": jensen_shannon}
