"""Compute how long nested values are if each is written out with the names of all groups around it."""

from __future__ import annotations

from typing import Any

CONTAINERS = (dict, list, tuple, set)


def written_length(value: Any, limit: int) -> int:
    """Return the characters of all texts and dotted names in nested values, up to the first number beyond the limit.

    A file needs few bytes for many of them: the name of a group stands before each of its settings, and an alias repeats a text.
    """
    total, waiting = 0, [(value, 0)]
    while waiting and total <= limit:
        node, before = waiting.pop()
        parts = node.values() if isinstance(node, dict) else node
        total += sum(len(part) for part in parts if isinstance(part, str))
        if isinstance(node, dict):
            lengths = [before + 1 + (len(name) if isinstance(name, str) else len(str(name))) for name in node]
            total += sum(lengths)
            waiting += [(part, length) for part, length in zip(parts, lengths, strict=True) if _has_parts(part)]
        else:
            waiting += [(part, before) for part in parts if _has_parts(part)]
    return total


def _has_parts(value: Any) -> bool:
    return isinstance(value, CONTAINERS) and len(value) > 0
