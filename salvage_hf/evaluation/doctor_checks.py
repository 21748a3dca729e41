"""The checks of `salvage doctor`: pure functions of what was measured, and the thresholds of their verdicts.

Letters: I images, M subsets per image, N patches, K classes; L is K, or 2 where K = 1, the number of targets.

The thresholds were chosen between what was measured on a good pair and with planted faults: a DINOv2-S/14 classifier of
ten classes, fine-tuned on images with patches removed, and its Salvage explainer; 32 images, 64 patches. The comment
above a threshold has these figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..faithfulness import mean_and_stderr
from ..objectives import jensen_shannon

GOOD, DOUBTFUL, BAD, NOT_CHECKED = "good", "doubtful", "bad", "not checked"


class Limits(NamedTuple):
    """Where a value is good and where it is bad; larger values are better where `good` is the larger one."""

    good: float
    bad: float


#: What must not differ at all.
NO_DIFFERENCE = Limits(0, 0)

#: Mean absolute difference of pixel values, which have a standard deviation of about 1. One grey level of 255 is 0.02;
#: bilinear in place of bicubic resampling differs by 0.03, other means and deviations or another crop by 0.5.
PROCESSOR = Limits(0.02, 0.1)

#: Mean confidence less accuracy on whole images: -0.05 ± 0.03 of the good pair, 0.9 where labels are shifted by one.
LABELS = Limits(0.15, 0.3)

#: How often the class of the whole image is predicted from a quarter of it: 0.81 of the good pair, 0.51 where the same
#: classifier gets grey squares, which it never saw in training.
QUARTER = Limits(0.65, 0.45)

#: Absolute difference of mean confidence and accuracy, at the share where it is largest: 0.10 ± 0.03 of the good pair,
#: 0.62 ± 0.05 with grey squares, 0.17 ± 0.04 with logits three times as large.
CALIBRATION = Limits(0.2, 0.3)

#: Divergence of u(N) and v(N), in nats: 0.018 ± 0.004 of the good pair, 0.03 ± 0.01 where the classifier has another
#: head of the same labels, 0.41 ± 0.01 of an untrained explainer, 0.63 ± 0.01 where its classes are shifted by one.
FULL = Limits(0.04, 0.1)

#: Divergence of u(empty) and v(empty): 0.15 ± 0.01 of the good pair, because training seldom draws the empty subset;
#: 0.35 ± 0.02 with grey squares. An untrained explainer is good here, because without patches there is nothing to know.
EMPTY = Limits(0.2, 0.3)

#: Divergence of u(S) and v(S) at the share where it is largest: 0.064 ± 0.008 of the good pair, 0.13 ± 0.01 where the
#: classifier has another head of the same labels, 0.30 ± 0.02 with grey squares, 0.41 of an untrained explainer.
PARTIAL = Limits(0.085, 0.1)

#: How often both predict one class from whole images: 0.94 of the good pair, 0.16 of an untrained explainer.
AGREEMENT = Limits(0.75, 0.5)

#: Largest mean difference of a class's probability: 0.006 ± 0.004 of the good pair, 0.19 ± 0.02 with grey squares.
BIAS = Limits(0.05, 0.1)

#: SRG less that of a random order: 0.56 ± 0.06 of the good pair on 6 images. The difference of two random orders has an
#: error of about 0.06 on 16 images, which the threshold must exceed twice for an untrained explainer to be bad.
OVER_RANDOM = Limits(0.2, 0.15)

#: SRG less that of the last layer's attention, which asks for no training. Less than attention is worth nothing;
#: the good pair has 0.47 ± 0.11 on 6 images.
OVER_ATTENTION = Limits(0.0, -0.05)

#: Rank correlation of a map with that of the same model with random weights in all layers; 1 where no weight counts. On
#: 4 images the good explainer has 0.14 ± 0.07, saliency 0.38 ± 0.03 and attention 0.29 ± 0.13 of its classifier.
RANDOMISED = Limits(0.6, 0.8)

_FINE_TUNE = "fine-tune it on images with patches removed (salvage train-classifier --mask_patches)"

#: A shift of the labels is named only where it explains at least this share of the images.
_LEAST_SHIFTED = 0.5


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        name: what was checked.
        value: what was measured; None where it was not.
        stderr: its standard error over images; 0 where it has none, None where it is not known.
        unit: of value and error.
        threshold_good, threshold_bad: values up to the first are good, and beyond the second bad, or from the first on
            and below the second where larger values are better; None where nothing was measured.
        verdict: "good", "doubtful", "bad" or "not checked".
        advice: one sentence on what to do, or why it was not checked.
    """

    name: str
    value: float | None
    stderr: float | None
    unit: str
    threshold_good: float | None
    threshold_bad: float | None
    verdict: str
    advice: str


def verdict(value: float, stderr: float, limits: Limits) -> str:
    """The verdict on a value: "doubtful" where it is between the thresholds, or within two errors of the wrong side.

    An error that is not known (NaN) leaves every value doubtful.
    """
    good, bad = limits
    if good > bad:
        value, good, bad = -value, -good, -bad
    if value + 2 * stderr <= good:
        return GOOD
    return BAD if value - 2 * stderr > bad else DOUBTFUL


def finding(name: str, value: float, stderr: float, unit: str, limits: Limits, advice: str) -> Finding:
    """A finding with its verdict; the advice is left out where it is good."""
    judged = verdict(value, stderr, limits)
    advice = "Nothing to do." if judged == GOOD else advice
    error = None if math.isnan(stderr) else stderr
    return Finding(name, value, error, unit, limits.good, limits.bad, judged, advice)


def not_checked(name: str, reason: str) -> Finding:
    """What stands in place of a check that could not be made, and why."""
    return Finding(name, None, None, "", None, None, NOT_CHECKED, reason)


@dataclass(frozen=True)
class Answers:
    """What the classifier and the explainer say about the same subsets of the same images.

    Args:
        shares: float64 [M], the share of visible patches of each subset; equal for all images, 0 first and 1 last.
        classifier: [I, M, K], v(S) before softmax or sigmoid.
        explainer: [I, M, K], u(S) of the same subsets.
        labels: int64 [I], the true targets.
    """

    shares: torch.Tensor
    classifier: torch.Tensor
    explainer: torch.Tensor
    labels: torch.Tensor

    def by_share(self, values: torch.Tensor) -> dict[float, tuple[float, float]]:
        """Share -> mean and standard error over images of values [I, M], after the mean over an image's subsets."""
        columns = {share: self.shares == share for share in self.shares.unique().tolist()}
        return {share: mean_and_stderr(values[:, column].mean(dim=1)) for share, column in columns.items()}


def target_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities of all targets in float64: [..., K] -> [..., L]."""
    return target_log_probabilities(logits).exp()


def target_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Their natural logarithms, finite where the logits are: [..., K] -> float64 [..., L]."""
    if logits.shape[-1] == 1:  # sigmoid(z) is the softmax of (0, z)
        logits = torch.cat([torch.zeros_like(logits), logits], dim=-1)
    return logits.double().log_softmax(dim=-1)


def confidence_and_hits(answers: Answers) -> tuple[torch.Tensor, torch.Tensor]:
    """How probable the classifier's predictions are, and whether they are right: float64 [I, M] each."""
    confidence, predicted = target_probabilities(answers.classifier).max(dim=-1)
    return confidence, (predicted == answers.labels[:, None]).double()


def divergences(answers: Answers) -> torch.Tensor:
    """Jensen-Shannon divergences of u(S) and v(S) in nats: float64 [I, M]."""
    return jensen_shannon(answers.explainer, answers.classifier).double()


def class_bias(answers: Answers) -> torch.Tensor:
    """How much more probable the explainer finds each target than the classifier, mean over subsets: [I, L]."""
    return (target_probabilities(answers.explainer) - target_probabilities(answers.classifier)).mean(dim=1)


# The classifier


def check_labels(answers: Answers) -> Finding:
    """Whether the classifier, on whole images, is right as often as it says."""
    confidence, hits = (values[:, -1] for values in confidence_and_hits(answers))
    value, _ = mean_and_stderr(confidence - hits)
    stderr = _share_stderr(hits)  # the difference has no spread where all of a few images are right
    predicted = target_probabilities(answers.classifier[:, -1]).argmax(dim=-1)
    advice = (
        _shifted(predicted, answers.labels, answers, "the labels of the images", "the classifier's predictions")
        or "Compare the names of the data set's classes with the classifier's, and its image processor with that of "
        "its training."
    )
    return finding("labels: confidence less accuracy on whole images", value, stderr, "probability", LABELS, advice)


def check_quarter(answers: Answers) -> Finding:
    """How often a quarter of the patches gives the classifier the class that it predicts from all."""
    predicted = target_probabilities(answers.classifier).argmax(dim=-1)
    kept = answers.by_share((predicted == predicted[:, -1:]).double())
    value, stderr = kept[min(kept, key=lambda share: abs(share - 0.25))]
    advice = f"The classifier does not know partial images: {_FINE_TUNE}, and train the explainer anew."
    return finding("classifier: class kept with a quarter visible", value, stderr, "share", QUARTER, advice)


def check_calibration(answers: Answers) -> Finding:
    """Whether the classifier is right as often as it says, on partial images and without any patch."""
    confidence, hits = confidence_and_hits(answers)
    gaps = answers.by_share(confidence - hits)
    share = max((share for share in gaps if share < 1), key=lambda share: abs(gaps[share][0]))
    gap, stderr = gaps[share]
    more = "more" if gap > 0 else "less"
    advice = f"With {share:.0%} visible the classifier is {more} confident than it is right: {_FINE_TUNE}."
    name = "classifier: calibration on partial images"
    return finding(name, abs(gap), stderr, "probability", CALIBRATION, advice)


# The explainer


def check_divergences(answers: Answers) -> list[Finding]:
    """Whether u agrees with v about all patches, about none, and about parts of the image."""
    by_share = answers.by_share(divergences(answers))
    worst = max((share for share in by_share if 0 < share < 1), key=lambda share: by_share[share][0])
    train = "train it for longer, against this classifier and on images of this kind."
    spread = target_probabilities(answers.explainer[:, -1]).std(dim=0).max().item()
    constant = f"The explainer says the same of every image, as one that is not trained: {train}"
    full = constant if spread < 1e-3 else f"The explainer does not predict what the classifier does: {train}"
    empty = (
        "Do not compare maps of different classes, because the explainer starts from another prediction than the "
        "classifier: let its training draw small subsets more often."
    )
    partial = f"The explainer is furthest from the classifier with {worst:.0%} visible: {train}"
    return [
        finding("explainer: u(N) against v(N)", *by_share[1.0], "nats", FULL, full),
        finding("explainer: u(empty) against v(empty)", *by_share[0.0], "nats", EMPTY, empty),
        finding("explainer: u(S) against v(S)", *by_share[worst], "nats", PARTIAL, partial),
    ]


def check_agreement(answers: Answers) -> Finding:
    """How often both predict one class from whole images."""
    theirs, ours = (target_probabilities(x[:, -1]).argmax(dim=-1) for x in (answers.explainer, answers.classifier))
    agree = (theirs == ours).double()
    advice = (
        _shifted(theirs, ours, answers, "the explainer's classes", "the classifier's")
        or "The explainer is of another classifier, or hardly trained: give its own classifier, or train it for longer."
    )
    name = "explainer: predicts the classifier's class"
    return finding(name, agree.mean().item(), _share_stderr(agree), "share", AGREEMENT, advice)


def check_bias(answers: Answers, names: Sequence[str]) -> Finding:
    """Whether the explainer finds a class more, or less, probable than the classifier over all subsets."""
    bias = class_bias(answers)
    index = int(bias.mean(dim=0).abs().argmax())
    value, stderr = mean_and_stderr(bias[:, index])
    more = "more" if value > 0 else "less"
    advice = (
        f"The explainer finds {names[index]!r} {more} probable than the classifier does: train it for longer, with as "
        "many images of this class as of others."
    )
    return finding("explainer: largest bias of a class", abs(value), stderr, "probability", BIAS, advice)


def check_maps(srg: dict[str, torch.Tensor]) -> list[Finding]:
    """Whether the explainer's maps are more faithful than a random order, and than attention.

    Args:
        srg: "explainer", "random" and, where the classifier has tokens, "last_attention" -> SRG [I] of the same images.
    """
    over = {name: mean_and_stderr(srg["explainer"] - scores) for name, scores in srg.items()}
    advice = "Do not show these maps, which say little about the classifier: train the explainer for longer."
    simple = "Attention, which needs no training, is as faithful: train the explainer for longer, or show attention."
    attention = "maps: SRG less that of attention"
    return [
        finding("maps: SRG less that of random ones", *over["random"], "probability", OVER_RANDOM, advice),
        finding(attention, *over["last_attention"], "probability", OVER_ATTENTION, simple)
        if "last_attention" in over
        else not_checked(attention, "The patches are no tokens of this classifier, so that it has no such attention."),
    ]


def _share_stderr(hits: torch.Tensor) -> float:
    """The standard error of a share, from hits [I] of 0 and 1 (Agresti and Coull, 1998).

    The plain one is 0 where all of a few images agree, which is no certainty.
    """
    number = len(hits) + 4
    share = (hits.sum().item() + 2) / number
    return math.sqrt(share * (1 - share) / number)


def _shifted(given: torch.Tensor, wanted: torch.Tensor, answers: Answers, whose: str, others: str) -> str:
    """Advice where the classes [I] of two agree after a shift by one number, "" where they do not."""
    number = max(answers.classifier.shape[-1], 2)
    agree = {k: ((given + k) % number == wanted).double().mean().item() for k in range(number)}
    shift = max(agree, key=lambda k: agree[k])
    if shift == 0 or agree[shift] < _LEAST_SHIFTED:
        return ""
    shift = shift if shift <= number // 2 else shift - number
    return f"{whose[0].upper()}{whose[1:]} and {others} differ by {abs(shift)}: number both in one order."
