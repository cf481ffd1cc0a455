"""Copies that a file can hold: plain values and tensors, which any program can read back."""

from collections import Counter, OrderedDict
from typing import Any, cast

import numpy as np
import torch

from slime_core.errors import DataError

_VALUES = frozenset({type(None), bool, int, float, complex, str, bytes})
_SEQUENCES = (list, tuple, set)


class _OtherDataError(Exception):
    """Something else was met; ``path`` leads there."""

    def __init__(self, found: object) -> None:
        super().__init__()
        self.found, self.path = found, ""


def plain_copy(value: Any, name: str, makers: str = "") -> Any:
    """A copy of ``value`` that shares nothing with it; NumPy's values become Python's.

    ``makers``: the flags of functions that may have set something in it.

    Raises:
        DataError: something in it is no plain data; says where, of what class, and set by whom.
    """
    try:
        return _copy(value)
    except _OtherDataError as error:
        kind = type(error.found)
        whose = f", in what these return or set: {makers}" if makers else ""
        raise DataError(
            f"{name}{error.path} is a {kind.__module__}.{kind.__qualname__}, which cannot be read "
            "back from a dump or a checkpoint: keep numbers, strings, lists, dictionaries and "
            f"tensors there, or leave it out{whose}"
        ) from None


def _copy(value: Any) -> Any:
    kind = type(value)
    if kind in _VALUES:
        return value
    if kind in _SEQUENCES:
        return _sequence(value)
    if kind in (dict, OrderedDict, Counter):
        return kind(dict(_items(value)))
    if isinstance(value, np.generic | np.ndarray):
        plain: Any = cast("Any", value).tolist()
        if isinstance(plain, np.generic):  # a number that Python has no type for
            raise _OtherDataError(value)
        return _copy(plain)
    if kind is torch.Tensor:
        return value.detach().clone()
    raise _OtherDataError(value)


def _sequence(values: Any) -> Any:
    if set(map(type, values)) <= _VALUES:
        return values if type(values) is tuple else type(values)(values)
    copies: list[Any] = []
    for place, value in enumerate(values):
        try:
            copies.append(_copy(value))
        except _OtherDataError as error:
            error.path = f"[{place}]{error.path}"
            raise
    return type(values)(copies)


def _items(values: dict[Any, Any]) -> list[tuple[Any, Any]]:
    copies: list[tuple[Any, Any]] = []
    for key, value in values.items():
        try:
            copies.append((_copy(key), _copy(value)))
        except _OtherDataError as error:
            error.path = f"[{key!r:.80}]{error.path}"
            raise
    return copies
