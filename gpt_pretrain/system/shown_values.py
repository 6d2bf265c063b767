"""Describe a value of a file in a message."""

from __future__ import annotations

import reprlib
from numbers import Number
from typing import Any


def describe_value(value: Any) -> str:
    """Return the JSON name of a value from a file, such as "an array", or "null"."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    names = ((dict, "an object"), (list, "an array"), (str, "a string"), (int | float, "a number"))
    return next((name for kinds, name in names if isinstance(value, kinds)), f"a value of the type {type(value).__name__}")


def short_repr(value: object) -> str:
    """Return a `repr` of at most a few hundred characters for a value of any size, for a message."""
    if value is None or isinstance(value, bool | int | float | str | bytes | list | tuple | dict | set | frozenset):
        return _SHORT.repr(value)
    return _named(value)


def _named(value: object) -> str:
    if isinstance(value, Number) and type(value).__module__ == "numpy":  # Other numbers may have any number of digits.
        return repr(value)
    name = type(value).__name__
    return f"<{'an' if name[0] in 'AEIOUaeio' else 'a'} {name}>"


class _ShortRepr(reprlib.Repr):
    """Show three levels of containers, six parts of each, and eighty characters of each text."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**40 else f"<a number of {x.bit_length():,} bits>"

    def repr_instance(self, x: object, level: int) -> str:
        if isinstance(x, bytes):
            return repr(x[: self.maxother])
        return repr(x) if x is None or isinstance(x, bool | float) else _named(x)


_SHORT = _ShortRepr()
