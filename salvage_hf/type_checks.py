"""Checks of values against type hints: of arguments, and of what JSON files hold."""

import reprlib
import types
from textwrap import shorten
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict


def check_type(value: Any, hint: Any, name: str) -> None:
    """Raises ValueError where a value, or a part of it, has another type than its hint says.

    Args:
        value: what was given; of lists and dictionaries every part is checked.
        hint: a class, None, `Any`, a union, `Literal` (whose values are not compared), `list[...]`, `dict[str, ...]`,
            or a `TypedDict`, whose keys must all be there, apart from those that are `NotRequired`.
        name: the name of the value; the message adds to it where in the value the wrong part is.
    """
    hint = _without_none(hint) if value is not None else hint
    origin, parts = get_origin(hint), get_args(hint)
    if is_typeddict(hint) and isinstance(value, dict):
        for key, part in get_type_hints(hint, include_extras=True).items():
            if get_origin(part) is NotRequired:
                if key not in value:
                    continue
                part = get_args(part)[0]
            elif key not in value:
                raise ValueError(f"{name}.{key} is missing")
            check_type(value[key], part, f"{name}.{key}")
    elif origin is list and isinstance(value, list):
        for index, item in enumerate(value):
            check_type(item, parts[0], f"{name}[{index}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            check_type(item, parts[1], f"{name}.{key}")
    elif not _is_of(value, hint):
        raise ValueError(f"{name} must be of type {_in_words(hint)}, got {shorten(reprlib.repr(value), 80)}")


def _without_none(hint: Any) -> Any:
    """A hint without None, where it is a union of None and one other hint."""
    parts = [part for part in get_args(hint) if part is not types.NoneType]
    return parts[0] if _is_union(hint) and len(parts) == 1 else hint


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value that holds no other values is of a type. NaN is no number, and bool is no int."""
    if hint is Any or get_origin(hint) is Literal:
        return hint is Any or value is not None
    if _is_union(hint):
        return any(_is_of(value, part) for part in get_args(hint))
    if hint in (int, float):
        of_type = isinstance(value, (int, float) if hint is float else int)
        return of_type and not isinstance(value, bool) and value == value
    return isinstance(value, hint) if isinstance(hint, type) and not is_typeddict(hint) else False


def _in_words(hint: Any) -> str:
    """A hint as its source shows it."""
    if is_typeddict(hint) or get_origin(hint) is dict:
        return "dict"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
