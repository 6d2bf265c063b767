"""Bound nested values of files before they are used: how many they are, how deep, and how long if they are written out."""

from __future__ import annotations

from typing import Any

from gpt_pretrain.system.reading import DamagedFileError

CONTAINERS = (dict, list, tuple, set)
MAX_VALUES = 2_000_000  # In one file, each counted as often as an alias repeats it. An empty list takes 64 bytes of memory.
MAX_DEPTH = 100  # Of nested containers. The settings of a run have five levels.
MAX_REPEATED, FREE_CHARACTERS = 20, 1_000_000  # Times that a file's texts and names may be repeated when they are written out.
FEW_VALUES = 8  # Of a container without others in it, whose count is not kept.


def expand_aliases(value: Any, *, max_values: int = MAX_VALUES) -> Any:
    """Copy nested lists and dicts so that no part is shared.

    Raises:
        DamagedFileError: If the copy would have more than max_values values, as one of a few aliases of aliases may have, or the
            value is nested too deeply or contains itself.
    """
    check_values(value, max_values=max_values)
    return _copy(value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {_copy(name): _copy(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_copy(part) for part in value)
    return value


def check_values(value: Any, *, max_values: int) -> None:
    """Check that nested containers are not too deep, and stand for at most max_values values if nothing in them is shared.

    Raises:
        DamagedFileError: If not.
    """
    if count_values(value) > max_values:
        raise DamagedFileError(f"its aliases stand for more than {max_values:,} values")


def count_values(value: Any) -> int:
    """Count the values in nested containers, and those of a shared container once for each reference, without visiting it again.

    Raises:
        DamagedFileError: If containers are nested too deeply or contain themselves.
    """
    return _measure(value, {}, 1)[0]


def _measure(value: Any, measured: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Return the number of values and of levels; each shared container is visited once."""
    if not isinstance(value, CONTAINERS):
        return 1, 0
    if (found := measured.get(id(value))) is None:
        if depth > MAX_DEPTH:
            raise DamagedFileError(f"it is nested more than {MAX_DEPTH} levels deep")
        count, height = 1, 0
        for parts in (value.keys(), value.values()) if isinstance(value, dict) else (value,):
            for part in parts:
                if not isinstance(part, CONTAINERS):
                    count += 1
                    continue
                part_count, part_height = _measure(part, measured, depth + 1)
                count, height = count + part_count, max(height, part_height)
        found = count, height + 1
        if height or count > FEW_VALUES:  # Others are as soon counted again; a file of 3 MB may hold a million of them.
            measured[id(value)] = found
    count, height = found
    if depth + height - 1 > MAX_DEPTH:
        raise DamagedFileError(f"it is nested more than {MAX_DEPTH} levels deep")
    return found


def check_written_length(value: Any, size: int, *, with_groups: bool = True) -> None:
    """Check that the values of a file are not far longer than the file, with the names of all groups before each of them.

    Args:
        with_groups: Whether the names of the groups count.

    Raises:
        DamagedFileError: If they are.
    """
    limit = FREE_CHARACTERS + MAX_REPEATED * size
    if isinstance(value, CONTAINERS) and written_length(value, limit, with_groups=with_groups) > limit:
        raise DamagedFileError("its names or texts would be repeated far too often")


def written_length(value: Any, limit: int, *, with_groups: bool = True) -> int:
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
            waiting += [(part, length * with_groups) for part, length in zip(parts, lengths, strict=True) if _has_parts(part)]
        else:
            waiting += [(part, before) for part in parts if _has_parts(part)]
    return total


def _has_parts(value: Any) -> bool:
    return isinstance(value, CONTAINERS) and len(value) > 0
