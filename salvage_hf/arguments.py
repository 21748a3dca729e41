"""Arguments of the command line: dataclasses whose fields carry their rules.

A field is written `name: Annotated[int, AtLeast(1)] = arg(default, "What it does.")`. `HfArgumentParser` reads type,
default and help; `check_arguments` and the checkpoints read the rules. The choices of a `Literal` are a rule too.
"""

import types
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .type_checks import check_type


@dataclass(frozen=True)
class AtLeast:
    """The rule that an argument, if it is a number, is at least `least`."""

    least: int


@dataclass(frozen=True)
class AtMost:
    """The rule that an argument, if it is a number, is at most `most`."""

    most: int


class Rule:
    """A rule without a value: `MAY_CHANGE`, `PRIVATE` or `NOT_IN_RECIPE`."""


#: A resumed run may have another value of the argument, because a training step computes the same numbers with it. Only
#: the learning rate may differ: its schedule depends on the number of steps.
MAY_CHANGE = Rule()

#: A local path or a secret: it is written neither to model cards nor to experiment trackers.
PRIVATE = Rule()

#: It says nothing of what a run computes, or is a secret: the recipe that a run writes leaves it out.
NOT_IN_RECIPE = Rule()


def arg(default: Any, help: str) -> Any:
    """A field of a dataclass of arguments, with the help that the command line shows."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def rules_of(arguments: Any) -> dict[str, tuple[Any, ...]]:
    """Name -> rules of every field of a dataclass of arguments (or of an instance)."""
    hints = get_type_hints(arguments if isinstance(arguments, type) else type(arguments), include_extras=True)
    return {item.name: getattr(hints[item.name], "__metadata__", ()) for item in fields(arguments)}


def names_with(arguments: Any, rule: Rule) -> set[str]:
    """The names of the fields that have a rule."""
    return {name for name, rules in rules_of(arguments).items() if rule in rules}


def check_arguments(arguments: Any) -> None:
    """Raises ValueError where an argument has another type than its field, is an empty text, or breaks a rule.

    To be called by `__post_init__`.
    """
    hints, defaults = get_type_hints(type(arguments)), {item.name: item.default for item in fields(arguments)}
    for name, rules in rules_of(arguments).items():
        value = getattr(arguments, name)
        check_type(value, hints[name], name)
        if value == "" and defaults[name] != "":  # as a folder it would mean the working directory
            raise ValueError(f"{name} must not be empty")
        for rule in rules:
            if isinstance(rule, AtLeast) and isinstance(value, int) and value < rule.least:
                raise ValueError(f"{name} must be at least {rule.least}, got {value}")
            if isinstance(rule, AtMost) and isinstance(value, int) and value > rule.most:
                raise ValueError(f"{name} must be at most {rule.most}, got {value}")
        choices = _choices(hints[name])
        if choices and value is not None and value not in choices:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")


def _choices(hint: Any) -> tuple[str, ...]:
    """The values of a `Literal`, also of one that may be None; () for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(choice for part in get_args(hint) for choice in _choices(part))
    return ()


@dataclass
class ImageArguments:
    """Which images are read; every script that reads labelled images has these."""

    dataset_name: str | None = arg(
        None,
        "A data set: imagenette, pet, mura or wbc (NAME=REPOSITORY reads another repository than the default one); a "
        "repository on the Hub; or a folder of parquet files, of images with metadata.csv, or by save_to_disk.",
    )
    dataset_config_name: str | None = arg(None, "The configuration of the data set, where it has several.")
    dataset_dir: Annotated[str | None, PRIVATE] = arg(
        None, "For imagenette, pet, mura and wbc: the folder of the original archive, unpacked."
    )
    validation_split_name: str | None = arg(
        None,
        "The split of the data set that validates; when not given, 'validation' if there is one. Otherwise training "
        "takes a share of its images, and what compares methods takes 'test'.",
    )
    streaming: bool = arg(
        False,
        "Read a repository on the Hub only as far as max_train_samples and max_eval_samples images need, and keep them "
        "in memory. They are drawn from a buffer of 1,000, so that images that are sorted by class stay so in part.",
    )
    validation_dir: Annotated[str | None, PRIVATE] = arg(
        None, "A folder of validation images, one sub-folder per class, in place of the data set's validation split."
    )
    image_column_name: str = arg("image", "The column of the images.")
    label_column_name: str = arg("label", "The column of the labels.")
    on_bad_image: Literal["refuse", "skip"] = arg("refuse", "What happens to images that cannot be read.")
    pixel_range: list[float] | None = arg(
        None,
        "LOW and HIGH: the values that become black and white in grey images of more than 8 bits, for example 0 4095 "
        "for 12 bits; without it, images of 16 bits must use their whole range.",
    )
    max_eval_samples: Annotated[int | None, AtLeast(1)] = arg(
        None, "Use only this many of the validation images, chosen at random."
    )

    def __post_init__(self):
        check_arguments(self)
        of_dataset = ("dataset_config_name", "dataset_dir", "validation_split_name", "streaming")
        if self.dataset_name is None and (unused := [name for name in of_dataset if getattr(self, name)]):
            raise ValueError(f"{unused[0]} says more about a data set: give dataset_name too")
        if self.validation_dir is not None and self.validation_split_name is not None:
            raise ValueError(
                "give either validation_dir or validation_split_name, got "
                f"{self.validation_dir!r} and {self.validation_split_name!r}"
            )

    def check_one_source(self) -> None:
        """Raises ValueError unless the validation images come from one place; for scripts that do not train."""
        if (self.dataset_name is None) == (self.validation_dir is None):
            raise ValueError(
                f"give either dataset_name or validation_dir, got {self.dataset_name!r} and {self.validation_dir!r}"
            )
