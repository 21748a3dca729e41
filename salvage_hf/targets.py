"""The explained class: its probability, its map, its logit, its name.

A target is a class. With one label (`num_labels=1`, one sigmoid) it is 0 or 1: the probability of 0 is 1 - p, and its
map and logit are those of 1 with the sign changed.
"""

import torch

from .tensors import whole_numbers


def activation(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities [..., K] in float32, whatever the logits are in: softmax, or sigmoid where K = 1."""
    return logits.float().sigmoid() if logits.shape[-1] == 1 else logits.float().softmax(dim=-1)


def predicted_targets(logits: torch.Tensor) -> torch.Tensor:
    """The predicted class of each image: [B, K] -> int64 [B]."""
    return (logits[:, 0] > 0).long() if logits.shape[-1] == 1 else logits.argmax(dim=-1)


def target_probability(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The probability of each image's target class.

    Args:
        probabilities: [B, M, K]; with K = 1 that of label 1.
        targets: int64 [B].

    Returns:
        [B, M]
    """
    if probabilities.shape[-1] == 1:
        present = probabilities[..., 0]
        return torch.where(targets[:, None] == 1, present, 1 - present)
    return probabilities.gather(-1, targets[:, None, None].expand(-1, probabilities.shape[1], 1))[..., 0]


def target_attributions(attributions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The map of each image's target class: [B, N, K] and int64 [B] -> [B, N]."""
    if attributions.shape[-1] == 1:
        return attributions[..., 0] * (2 * targets[:, None] - 1)
    return attributions.gather(-1, targets[:, None, None].expand(-1, attributions.shape[1], 1))[..., 0]


def target_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What gradient methods explain, the score before softmax or sigmoid: [B, K] and int64 [B] -> [B]."""
    if logits.shape[-1] == 1:
        return logits[:, 0] * (2 * targets - 1)
    return logits.gather(1, targets[:, None])[:, 0]


def check_targets(targets: torch.Tensor, num_labels: int) -> None:
    """Raises ValueError where targets are no whole numbers [B], or one is no class of a classifier of `num_labels`."""
    targets, highest = whole_numbers("targets", targets, "B"), max(num_labels, 2) - 1
    if targets.min() < 0 or targets.max() > highest:
        wrong = targets[(targets < 0) | (targets > highest)][0].item()
        raise ValueError(f"targets contain {wrong}; the classifier's labels are 0..{highest}")


def target_names(label_names: list[str]) -> list[str]:
    """The names of all targets; with one label they are "not LABEL" and "LABEL"."""
    return [f"not {label_names[0]}", label_names[0]] if len(label_names) == 1 else list(label_names)


def label_names(config) -> list[str]:
    """The names of a classifier's labels, in their order."""
    return [config.id2label[index] for index in range(len(config.id2label))]
