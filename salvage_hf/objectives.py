"""What an explainer is trained to minimise: each objective is one entry of `OBJECTIVES`.

Training, validation, the attribution methods of trained explainers, the model card and the benchmark read all they need
to know about an objective from its entry. The name is stored in the explainer's config.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from .targets import activation


class SubsetValues(NamedTuple):
    """What the frozen classifier says, before softmax or sigmoid.

    Args:
        logits: [B, M, K], v(S) of the subsets that were drawn.
        ends: [B, 2, K], v of no patch and of all patches; None for an objective that does not ask for them.
    """

    logits: torch.Tensor
    ends: torch.Tensor | None = None


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
    """Adds one amount to all values, so that they sum to v(N) - v(empty) over patches (Covert et al., 2023).

    Args:
        values: [B, N, K].
        full: [B, K], v of all patches.
        empty: [B, K], v of no patch.

    Returns:
        [B, N, K]
    """
    return values + (full - empty - values.sum(dim=1))[:, None] / values.shape[1]


def _salvage_loss(model, output, subsets: torch.Tensor, values: SubsetValues) -> torch.Tensor:
    """The divergence of u(S) and v(S) (eqs. 4 and 5)."""
    return jensen_shannon(model.subset_logits(output, subsets), values.logits)


def _shapley_loss(model, output, subsets: torch.Tensor, values: SubsetValues, normalised: bool) -> torch.Tensor:
    """Least squares (eq. 2): N (v(S) - v(empty) - sum of phi over S)^2, mean over classes, v in probabilities."""
    assert values.ends is not None  # the registry says that the objective asks for them
    empty, full = (activation(logits) for logits in values.ends.unbind(1))
    with torch.autocast(subsets.device.type, enabled=False):  # half precision would round the sums
        phi = additive_efficient(output.attributions, full, empty) if normalised else output.attributions
        errors = subsets.to(phi.dtype) @ phi - (activation(values.logits) - empty[:, None])
    return subsets.shape[-1] * errors.square().mean(dim=-1)


@dataclass(frozen=True)
class Objective:
    """What an explainer is trained for, and what follows from it.

    Args:
        title: how tables call explainers of this objective.
        source: where it was published.
        loss: (model, its output, subsets bool [B, M, N], `SubsetValues` of them) -> losses [B, M].
        measure: what the loss is called among the validation scores.
        measure_description: what it measures and in which unit, in words that follow "it is".
        sampling: the law of `subsets.LAWS` that training draws from by default.
        validation_law: the law of the subsets on which validation measures the loss; one that reads no scores.
        learning_rate: AdamW's by default.
        guidance_exponent: the power of the weights by which a guided law draws by default; Algorithm 3 has 1.
        paired_values: whether each patch has two values per class, phi+ and phi- (eq. 3), or one.
        asks_ends: whether the loss needs v of no patch and of all patches.
        normalised: whether the explainer's values pass through `additive_efficient`, which needs both ends.
    """

    title: str
    source: str
    loss: Callable[..., torch.Tensor]
    measure: str
    measure_description: str
    sampling: str
    validation_law: str
    learning_rate: float
    guidance_exponent: float = 1.0
    paired_values: bool = True
    asks_ends: bool = False
    normalised: bool = False


def _shapley_objective(title: str, source: str, normalised: bool) -> Objective:
    """An objective whose single values estimate Shapley values of the class's probability."""
    return Objective(
        title=title,
        source=source,
        loss=partial(_shapley_loss, normalised=normalised),
        measure="mse",
        measure_description="the mean squared error of the summed values (probabilities), times the number of patches",
        sampling="shapley_kernel",
        validation_law="shapley_kernel",
        learning_rate=1e-4,
        paired_values=False,
        asks_ends=True,
        normalised=normalised,
    )


#: The name that an explainer's config stores -> objective.
OBJECTIVES = {
    "salvage": Objective(
        title="Salvage",
        source="Naouar et al., 2025",
        loss=_salvage_loss,
        measure="js",
        measure_description="the Jensen-Shannon divergence between explainer and classifier, in nats (0 to log 2)",
        sampling="guided",
        validation_law="uniform",
        learning_rate=1e-5,
        guidance_exponent=4.0,  # not the paper's 1: the maps of equally long runs were more faithful
    ),
    "vit_shapley": _shapley_objective("ViT-Shapley", "Covert et al., 2023", normalised=True),
    "fastshap": _shapley_objective("FastSHAP", "Jethani et al., 2022", normalised=False),
}
