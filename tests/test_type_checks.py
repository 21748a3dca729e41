"""Checks of values against type hints."""

import re
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage_hf.type_checks import check_type


class Inner(TypedDict):
    numbers: list[float | None]
    more: NotRequired[dict[str, Any]]


class Outer(TypedDict):
    inner: Inner
    by_name: dict[str, Inner]
    kind: Literal["a", "b"] | None


def right(**changes):
    inner = {"numbers": [1.0, 2, None]}
    return {"inner": inner, "by_name": {"x": {**inner, "more": {"y": [object()]}}}, "kind": "a", **changes}


def test_what_fits_is_taken():
    check_type(right(), Outer, "it")
    check_type(right(kind=None, by_name={}, other=1), Outer, "it")
    check_type([[1, "a"], []], list[list[int | str]], "it")
    check_type({"a": object()}, Any, "it")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "it must be of type dict, got []"),
        ({"by_name": {}, "kind": None}, "it.inner is missing"),
        (right(inner={}), "it.inner.numbers is missing"),
        (right(inner={"numbers": {}}), "it.inner.numbers must be of type list[float | None], got {}"),
        (right(inner={"numbers": [0, "1"]}), "it.inner.numbers[1] must be of type float, got '1'"),
        (right(inner={"numbers": [True]}), "it.inner.numbers[0] must be of type float, got True"),
        (right(inner={"numbers": [float("nan")]}), "it.inner.numbers[0] must be of type float, got nan"),
        (right(by_name={"x": None}), "it.by_name.x must be of type dict, got None"),
        (right(by_name={"x": {"numbers": [], "more": 0}}), "it.by_name.x.more must be of type dict, got 0"),
    ],
)
def test_what_does_not_fit_is_named(value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_type(value, Outer, "it")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=3), parts, max_size=3),
)


@settings(deadline=None, max_examples=60)
@given(value=ANYTHING)
def test_a_list_of_numbers_is_one_or_is_refused_in_a_line(value):
    fits = isinstance(value, list) and all(type(part) in (int, float) and part == part for part in value)
    try:
        check_type(value, list[float], "it")
    except ValueError as error:
        assert not fits
        assert len(str(error)) < 200  # noqa: PT017
    else:
        assert fits
