"""What users give, as tensors.

Public functions convert their arguments here. What they cannot take they therefore refuse in one form: a ValueError of
one sentence that names the argument, what it must be and what was given.
"""

import difflib
import numbers
import reprlib
import textwrap
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch


def reals(name: str, values: Any, shape: str, *, finite: bool = True, **sizes: int) -> torch.Tensor:
    """Real numbers in float64, which holds the values and the order of every smaller type exactly.

    Args:
        name: the argument's name.
        values: a tensor, an array, or nested lists, of floating-point or whole numbers.
        shape: the letters of its dimensions, as in "B N"; "B N | B H W" where there is a choice.
        finite: whether NaN and infinite numbers are refused.
        sizes: known sizes of dimensions by their letters.

    Returns:
        A tensor without gradient, on the device of `values`.

    Raises:
        ValueError: where `values` are something else, or not exact in float64.
    """
    tensor = _converted(name, values, "real numbers", _is_real, shape, sizes).detach()
    # As Python's numbers, because smaller types cannot be compared with the bound.
    if not tensor.is_floating_point() and max(int(tensor.max()), -int(tensor.min())) > _LARGEST_EXACT:
        raise ValueError(f"{name} hold whole numbers beyond 2^53, which floating-point numbers do not tell apart")
    tensor = tensor.double()
    bad = ~tensor.isfinite()
    if finite and bad.any():
        places = bad.flatten(1).any(dim=1) if tensor.ndim > 1 else bad
        items = "for the images at" if shape.startswith("B ") else "at"
        raise ValueError(f"{name} are NaN or infinite {items} {places.nonzero()[:10, 0].tolist()}")
    return tensor


def whole_numbers(name: str, values: Any, shape: str, **sizes: int) -> torch.Tensor:
    """Whole numbers in int64; floating-point numbers and booleans are refused. Arguments as in `reals`."""
    return _converted(name, values, "whole numbers", _is_whole, shape, sizes).long()


def booleans(name: str, values: Any, shape: str, **sizes: int) -> torch.Tensor:
    """Booleans; numbers are refused. Arguments as in `reals`."""
    return _converted(name, values, "boolean", lambda dtype: dtype == torch.bool, shape, sizes)


def processed_images(name: str, values: Any) -> torch.Tensor:
    """Images [B, C, H, W] in their own floating-point type, from a tensor, an array, or a list of either."""
    return _converted(name, values, "processed images, floating-point", lambda d: d.is_floating_point, "B C H W", {})


def whole_number(name: str, value: Any, at_least: int | None = None) -> int:
    """A whole number as Python's int; raises ValueError where it is something else, or too small."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or (at_least is not None and value < at_least):
        bound = "" if at_least is None else f" of at least {at_least}"
        raise ValueError(f"{name} must be a whole number{bound}, got {described(value)}")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """A finite positive number as Python's float; raises ValueError where it is something else."""
    try:
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else 0.0
    except OverflowError:  # Python's whole numbers have no bound
        number = float("inf")
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} must be a finite positive number, got {described(value)}")
    return number


def two_sides(name: str, value: Any) -> tuple[int, int]:
    """Two positive whole numbers, such as the rows and columns of a grid; raises ValueError where they are not."""
    try:
        first, second = value
        return whole_number(name, first, 1), whole_number(name, second, 1)
    except (TypeError, ValueError):
        given = _shortened(value) if isinstance(value, (list, tuple)) else described(value)
        raise ValueError(f"{name} must be two positive whole numbers, got {given}") from None


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """A choice; raises ValueError where it is not one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        hint = meant(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {described(value)}{hint}")
    return value


def meant(word: str, choices: Iterable[str]) -> str:
    """A question that names the choice which is spelt almost as a word; "" where none is."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds all its values: it is neither sparse nor quantised nor on the "meta" device."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def described(value: Any) -> str:
    """What was given, in a few words: the type and shape of what makes a tensor, otherwise the value or its items."""
    tensor = _as_tensor(value)
    if tensor is not None and (tensor.ndim or isinstance(value, torch.Tensor)):
        return f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
    if isinstance(value, torch.Tensor):
        kind = "meta" if value.is_meta else value.layout
        return f"{kind} {value.dtype} {list(value.shape)}".replace("torch.", "")
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{type(value).__name__} of {value.dtype} {list(value.shape)}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (torch.Tensor, np.ndarray)) for item in value):
        return f"[{', '.join(map(described, value[:3]))}{', ...' if len(value) > 3 else ''}]"
    return _shortened(value)


def _shortened(value: Any) -> str:
    return textwrap.shorten(reprlib.repr(value), 80)


#: Whole numbers up to this size are exact in float64.
_LARGEST_EXACT = 2**53


def _is_real(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or _is_whole(dtype)


def _is_whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _converted(
    name: str, values: Any, kind: str, is_kind: Callable[[torch.dtype], bool], shape: str, sizes: dict[str, int]
) -> torch.Tensor:
    """`values` as a tensor of a kind and shape; raises ValueError where they are something else, or empty."""
    tensor, shapes = _as_tensor(values), [part.split() for part in shape.split(" | ")]
    if tensor is not None and is_kind(tensor.dtype):
        for letters in shapes:
            if len(letters) == tensor.ndim and tensor.numel():
                known = zip(letters, tensor.shape, strict=True)
                if all(size == sizes.get(letter, size) for letter, size in known):
                    return tensor
    wanted = " or ".join(f"[{', '.join(letters)}]" for letters in shapes)
    wanted += f" with {', '.join(f'{letter} = {size}' for letter, size in sizes.items())}" if sizes else ""
    empty = ", not empty" if tensor is not None and not tensor.numel() else ""
    raise ValueError(f"{name} must be {kind} {wanted}{empty}, got {described(values)}")


def _as_tensor(values: Any) -> torch.Tensor | None:
    """A dense tensor of numbers or booleans, None where `values` are none. Tensors stay on their device."""
    if isinstance(values, torch.Tensor):
        return values if is_dense(values) else None
    if isinstance(values, (list, tuple)) and any(isinstance(value, torch.Tensor) for value in values):
        parts = [part for part in map(_as_tensor, values) if part is not None]
        alike = {(part.shape, part.dtype) for part in parts}
        return torch.stack(parts) if len(parts) == len(values) and len(alike) == 1 else None
    if isinstance(values, np.ma.MaskedArray):  # numpy would drop the mask
        return None
    try:
        array = np.asarray(values)
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")) if array.ndim else array
        if array.dtype.kind not in "biuf" or (array.dtype.kind == "u" and array.size and array.max() > 2**63 - 1):
            return None
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch computes little with these types
            array = array.astype(np.int64)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except Exception:  # whatever else an object's conversion raises
        return None
