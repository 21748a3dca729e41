"""Translates the labels of a data set into those of the classifier."""

import logging
import re
from collections import Counter

from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from ..targets import label_names, target_names
from .folders import listed

logger = logging.getLogger(__name__)


def match_labels(names: list[str], config) -> list[int]:
    """For each label of a data set, the label of the classifier.

    Names are compared without case, underscores and a leading WordNet id ("n01440764_tench" is "tench"); names that are
    numbers ("3", "03", "LABEL_3", "class_3") by their value. Where the classifier's labels have no names (LABEL_0, ...)
    and the data set's are no numbers, the order is all there is: it is taken, with a warning that shows it.

    Args:
        names: label names of the data set, in its order.
        config: the classifier's, with `id2label`. With one label, that name becomes 1 and the other one 0.

    Returns:
        One index per name.

    Raises:
        ValueError: where a name has no or several counterparts.
    """
    plain, wanted = [plain_name(name) for name in names], [plain_name(name) for name in label_names(config)]
    unnamed = all(re.fullmatch(r"label \d+", name) for name in wanted)
    if plain == wanted and len(plain) > 1:  # also where two labels have one name, as ImageNet's two cranes
        return list(range(len(plain)))
    if config.num_labels == 1:
        if not unnamed and len(plain) <= 2 and plain.count(wanted[0]) == 1:
            return [int(name == wanted[0]) for name in plain]
        if unnamed:
            wanted = ["0", "1"]  # the label is absent or present
    numbers = [_number(name) for name in plain]
    by_name, by_number = _counterparts(plain, wanted), _counterparts(numbers, [_number(name) for name in wanted])
    for matches in (by_name, by_number):
        if None not in matches:
            return [match for match in matches if match is not None]
    if unnamed and None in numbers and len(names) == len(wanted):
        classes = target_names(label_names(config))
        pairs = listed([f"{name} -> {label}" for name, label in zip(names, classes, strict=True)])
        logger.warning("The classifier's labels have no names; the data set's are taken in their order: %s", pairs)
        return list(range(len(names)))
    closest = min(by_name, by_number, key=lambda matches: matches.count(None))
    wrong = [name for name, match in zip(names, closest, strict=True) if match is None]
    ours, theirs = (listed([repr(name) for name in list_of_names]) for list_of_names in (wrong, label_names(config)))
    raise ValueError(
        f"labels of the data set cannot be matched to the classifier's: [{ours}] against [{theirs}]; rename them, or "
        "train with target='predicted', which needs no labels"
    )


def encode_labels(dataset: Dataset, column: str, names: list[str] | None = None) -> Dataset:
    """The data set with a column of texts as a `ClassLabel`; columns of another type stay, as do data sets without it.

    `Dataset.class_encode_column` would write all images to its cache once more.

    Args:
        dataset: the data set.
        column: the column of the labels.
        names: all labels in their order; sorted by name when not given.

    Raises:
        ValueError: where a label is missing or is none of the names.
    """
    feature = dataset.features.get(column)
    if not (isinstance(feature, Value) and feature.dtype in ("string", "large_string")):
        return dataset
    texts = list(dataset[column])
    if None in texts:
        raise ValueError(f"column {column!r} holds no label at position {texts.index(None)}")
    names = names or sorted(set(texts))
    numbers = {name: number for number, name in enumerate(names)}
    found = [numbers.get(text) for text in texts]
    if wrong := sorted({text for text, number in zip(texts, found, strict=True) if number is None}):
        raise ValueError(f"column {column!r} holds the labels [{listed(wrong)}], which are not among [{listed(names)}]")
    labels = Dataset.from_dict({column: found}, Features({column: ClassLabel(names=names)}))
    return concatenate_datasets([dataset.remove_columns(column), labels], axis=1)


def translated_labels(dataset: Dataset, column: str, config, tell: bool = True) -> list[int]:
    """The classifier's label of every image.

    Names of labels (of a `ClassLabel`) are translated by `match_labels`. A column of plain integers has no names: they
    are taken for the classifier's own labels. With `tell`, the log says which label became which.

    Raises:
        ValueError: where there is no such column, or a label is not one of the classifier's.
    """
    if column not in dataset.column_names:
        raise ValueError(f"no column {column!r} in the data set, its columns are {dataset.column_names}")
    feature, values = dataset.features[column], dataset[column]
    if not isinstance(feature, ClassLabel):
        _check_range(values, max(config.num_labels, 2), column)
        return list(values)
    mapping = match_labels(feature.names, config)
    _check_range(values, len(mapping), column)
    if tell:
        classifier_names = target_names(label_names(config))
        named = [f"{name} -> {classifier_names[index]}" for name, index in zip(feature.names, mapping, strict=True)]
        logger.info("Labels of the data set and of the classifier: %s", ", ".join(named))
    return [mapping[value] for value in values]


def plain_name(name: str) -> str:
    """A name in the form in which names are compared."""
    return re.sub(r"^n\d{8}[_ ]", "", str(name)).replace("_", " ").strip().lower()


def _number(plain_name: str) -> int | None:
    """The value of a name that is a number; None for other names."""
    number = re.fullmatch(r"(?:(?:label|class)[ -]?)?([0-9]+)", plain_name)
    return int(number[1]) if number else None


def _counterparts(names: list, wanted: list) -> list[int | None]:
    """The index in `wanted` of every name; None where it or the name itself is not there exactly once."""
    index, number_wanted, number_own = {name: i for i, name in enumerate(wanted)}, Counter(wanted), Counter(names)
    return [
        index[name] if name is not None and number_wanted[name] == number_own[name] == 1 else None for name in names
    ]


def _check_range(values, num_classes: int, column: str) -> None:
    wrong = [value for value in values if not isinstance(value, int) or not 0 <= value < num_classes]
    if wrong:
        raise ValueError(f"labels in column {column!r} contain {wrong[0]!r}; the labels are 0..{num_classes - 1}")
