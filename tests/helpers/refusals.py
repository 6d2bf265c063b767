"""Calls of single parts that refuse their input, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Make = Callable[[Path], object]


def said(make: Make, folder: Path) -> str:
    """Return the message that a call raises, or the text that it returns."""
    try:
        return str(make(folder))
    except Exception as error:  # of any class; its text is what is tried
        return str(error)


def check_each(cases: dict[str, tuple[Make, str]], folder: Path) -> None:
    """Check all cases at once, so that a failure names each of them that is wrong."""
    heard = {}
    for name, (make, message) in cases.items():
        (folder / name).mkdir()
        heard[name] = said(make, folder / name)
        if message in heard[name]:
            del heard[name]
    assert heard == {}
