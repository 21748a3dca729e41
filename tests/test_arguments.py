"""The rules of arguments: read from the fields, checked, and inherited."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from transformers import HfArgumentParser

from salvage_hf.arguments import MAY_CHANGE, PRIVATE, AtLeast, AtMost, arg, check_arguments, names_with, rules_of


@dataclass
class Base:
    folder: Annotated[str, PRIVATE] = arg("here", "A folder.")
    number: Annotated[int | None, AtLeast(2), MAY_CHANGE] = arg(None, "A number.")

    def __post_init__(self):
        check_arguments(self)


@dataclass
class Arguments(Base):
    kind: Literal["a", "b"] = arg("a", "A kind.")
    other: Literal["x", "y"] | None = arg(None, "Another kind.")
    names: list[str] = arg(["one"], "Names.")
    share: float = arg(0.5, "A share.")
    small: Annotated[int, AtMost(9)] = arg(3, "A small number.")


def test_rules_stand_beside_their_argument_and_are_inherited():
    assert names_with(Arguments, PRIVATE) == {"folder"}
    assert names_with(Arguments(), MAY_CHANGE) == {"number"}
    assert rules_of(Arguments)["number"] == (AtLeast(2), MAY_CHANGE)
    assert rules_of(Arguments)["kind"] == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"number": 1}, "number must be at least 2, got 1"),
        ({"kind": "c"}, "kind='c' is not one of a, b"),
        ({"other": "z"}, "other='z' is not one of x, y"),
        ({"small": 10}, "small must be at most 9, got 10"),
        ({"folder": ""}, "folder must not be empty"),
        ({"folder": None}, "folder must be of type str, got None"),
        ({"number": 2.5}, "number must be of type int, got 2.5"),
        ({"number": True}, "number must be of type int, got True"),
        ({"kind": None}, "kind must be of type Literal['a', 'b'], got None"),
        ({"names": "one"}, "names must be of type list[str], got 'one'"),
        ({"names": ["one", 2]}, "names[1] must be of type str, got 2"),
        ({"share": float("nan")}, "share must be of type float, got nan"),
    ],
)
def test_what_breaks_a_rule_is_named(given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Arguments(**given)


def test_what_keeps_the_rules_is_taken():
    arguments = Arguments(number=2, kind="b", other="y", share=1)
    assert (arguments.number, arguments.kind, arguments.other, Arguments().other) == (2, "b", "y", None)


def test_a_default_list_is_not_shared():
    Arguments().names.append("two")
    assert Arguments().names == ["one"]


def test_the_parser_reads_the_same_fields():
    words = ["--number", "3", "--kind", "b", "--names", "p", "q"]
    arguments = HfArgumentParser(Arguments).parse_args_into_dataclasses(words)[0]
    assert (arguments.number, arguments.kind, arguments.names, arguments.folder) == (3, "b", ["p", "q"], "here")
