"""Translates the labels of a data set into those of the classifier."""

import logging
import re

from datasets import ClassLabel, Dataset

from ..targets import label_names, target_names

logger = logging.getLogger(__name__)


def match_labels(names: list[str], config) -> list[int]:
    """For each label of a data set, the label of the classifier.

    Names are compared without case, underscores and a leading WordNet id ("n01440764_tench" is "tench").
    Classifiers whose labels have no names (LABEL_0, ...) keep the data set's order.

    Args:
        names: label names of the data set, in its order.
        config: the classifier's, with `id2label`. With one label, that name becomes 1 and the other one 0.

    Returns:
        One index per name.

    Raises:
        ValueError: where a name has no or several counterparts.
    """
    wanted = [_plain(name) for name in label_names(config)]
    unnamed = all(re.fullmatch(r"label \d+", name) for name in wanted)
    num_classes = max(config.num_labels, 2)
    if unnamed and len(names) == num_classes:
        return list(range(num_classes))
    plain = [_plain(name) for name in names]
    if config.num_labels == 1 and len(plain) <= 2 and plain.count(wanted[0]) == 1:
        return [int(name == wanted[0]) for name in plain]
    matches = [[index for index, label in enumerate(wanted) if label == name] for name in plain]
    wrong = [name for name, found in zip(names, matches, strict=True) if len(found) != 1]
    if wrong or len(set(plain)) != len(plain):
        raise ValueError(
            f"labels of the data set cannot be matched to the classifier's: {wrong or names} against "
            f"{list(config.id2label.values())}; rename them, or train with target='predicted', which needs no labels"
        )
    return [found[0] for found in matches]


def translated_labels(dataset: Dataset, column: str, config) -> list[int]:
    """The classifier's label of every image; raises ValueError where a label is not one of the classifier's."""
    if column not in dataset.column_names:
        raise ValueError(f"no column {column!r} in the data set, its columns are {dataset.column_names}")
    feature, values = dataset.features[column], dataset[column]
    if not isinstance(feature, ClassLabel):
        _check_range(values, max(config.num_labels, 2), column)
        return list(values)
    mapping = match_labels(feature.names, config)
    _check_range(values, len(mapping), column)
    classifier_names = target_names(label_names(config))
    named = [f"{name} -> {classifier_names[index]}" for name, index in zip(feature.names, mapping, strict=True)]
    logger.info("Labels of the data set and of the classifier: %s", ", ".join(named))
    return [mapping[value] for value in values]


def _plain(name: str) -> str:
    """A name in the form in which names are compared."""
    return re.sub(r"^n\d{8}[_ ]", "", str(name)).replace("_", " ").strip().lower()


def _check_range(values, num_classes: int, column: str) -> None:
    wrong = [value for value in values if not isinstance(value, int) or not 0 <= value < num_classes]
    if wrong:
        raise ValueError(f"labels in column {column!r} contain {wrong[0]!r}; the labels are 0..{num_classes - 1}")
