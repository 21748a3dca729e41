"""The picture of `salvage doctor`: a panel for each group of checks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ..data.pictures import printable
from ..faithfulness import mean_and_stderr
from .doctor_checks import (
    BAD,
    DOUBTFUL,
    GOOD,
    NOT_CHECKED,
    PARTIAL,
    Answers,
    Finding,
    class_bias,
    confidence_and_hits,
    divergences,
)

#: The colour of a verdict.
COLORS = {GOOD: "tab:green", DOUBTFUL: "tab:orange", BAD: "tab:red", NOT_CHECKED: "tab:gray"}

#: The classes of the panel of biases, those of the largest ones.
_CLASSES = 10


def draw(
    findings: Sequence[Finding],
    answers: Answers,
    srg: Mapping[str, torch.Tensor],
    cascades: Mapping[str, Sequence[float]],
    names: Sequence[str],
) -> Figure:
    """Six panels: verdicts, divergence and calibration over the share of visible patches, bias, SRG, randomisation.

    Args:
        findings: all of them, in their order.
        answers: of classifier and explainer.
        srg: method -> SRG [I].
        cascades: method -> correlations after every layer; empty where this was not checked.
        names: of the targets.
    """
    figure = Figure(figsize=(16, 8.5), layout="constrained")
    axes = list(figure.subplots(2, 3).flat)
    _verdicts(axes[0], findings)
    axes[1].set_title("u(S) against v(S), Jensen-Shannon divergence in nats")
    _over_shares(axes[1], answers.by_share(divergences(answers)), "divergence")
    partial = sorted(answers.shares.unique().tolist())[1:-1]  # no patch and all patches have thresholds of their own
    for limit, verdict in ((PARTIAL.good, GOOD), (PARTIAL.bad, BAD)):
        axes[1].hlines(limit, partial[0], partial[-1], color=COLORS[verdict], linestyle="--", linewidth=1)
    axes[2].set_title("the classifier on partial images")
    confidence, hits = confidence_and_hits(answers)
    _over_shares(axes[2], answers.by_share(confidence), "mean confidence")
    _over_shares(axes[2], answers.by_share(hits), "accuracy")
    for axis in axes[1:3]:
        axis.set_xlabel("visible patches (share)")
        axis.set_ylim(bottom=0)
        axis.legend()
    _bias(axes[3], class_bias(answers), names)
    axes[4].set_title("SRG (probability)")
    means = {name: mean_and_stderr(scores) for name, scores in srg.items()}
    axes[4].bar([name.replace("_", " ") for name in means], [mean for mean, _ in means.values()])
    axes[4].errorbar(range(len(means)), *zip(*means.values(), strict=True), fmt="none", color="black")
    axes[5].set_title("maps while layers become random: rank correlation with the first map")
    for name, correlations in cascades.items():
        axes[5].plot(np.linspace(0, 1, len(correlations) + 1), [1, *correlations], label=name.replace("_", " "))
    if cascades:
        axes[5].set_xlabel("layers with random weights, from the top (share)")
        axes[5].legend()
    else:
        text = f"{NOT_CHECKED}: the verdicts say why"
        axes[5].text(0.5, 0.5, text, ha="center", color=COLORS[NOT_CHECKED], transform=axes[5].transAxes)
    return figure


def _verdicts(axis: Any, findings: Sequence[Finding]) -> None:
    """A line of text for each finding, with a mark in the colour of its verdict."""
    axis.set_title("verdicts")
    axis.axis("off")
    for row, found in enumerate(findings):
        height = 1 - (row + 0.5) / len(findings)
        axis.scatter([0.02], [height], color=COLORS[found.verdict], s=60)
        value = "" if found.value is None else f" {found.value:.3f}"
        axis.text(0.06, height, f"{found.verdict}: {found.name}{value}", fontsize=8, va="center")
    axis.set(xlim=(0, 1), ylim=(0, 1))


def _over_shares(axis: Any, by_share: Mapping[float, tuple[float, float]], label: str) -> None:
    """A line with error bars over the share of visible patches."""
    means, errors = np.array(list(by_share.values())).T
    axis.errorbar(list(by_share), means, np.nan_to_num(errors), label=label, marker="o", capsize=3)


def _bias(axis: Any, bias: torch.Tensor, names: Sequence[str]) -> None:
    """The largest biases of classes as bars: bias [I, L]."""
    axis.set_title("bias: probability by the explainer less that by the classifier")
    order = bias.mean(dim=0).abs().argsort(descending=True)[:_CLASSES].tolist()
    means, errors = np.array([mean_and_stderr(bias[:, index]) for index in order]).T
    axis.barh(range(len(order)), means, xerr=np.nan_to_num(errors))
    axis.set_yticks(range(len(order)), [printable(names[index])[:24] for index in order], parse_math=False)
    axis.invert_yaxis()
