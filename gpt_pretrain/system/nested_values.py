"""Limit nested values that come from a file: their number, their depth, and their length when they are written out.

A file of a few bytes can stand for a very long text: it holds a value once, and refers to it many times.
"""

from __future__ import annotations

from typing import Any

from gpt_pretrain.system.reading import DamagedFileError

CONTAINERS = (dict, list, tuple, set)
MAX_VALUES = 2_000_000  # values of one file, counted once for each alias; an empty list takes 64 bytes of memory
MAX_DEPTH = 100  # levels of nested containers; the settings of a run have five
# Written out, a file's texts and names may have FREE_CHARACTERS, and MAX_REPEATED more for each byte of the file.
MAX_REPEATED, FREE_CHARACTERS = 20, 1_000_000
FEW_VALUES = 8  # A flat container with so few values is counted again each time, which is as fast as remembering it.


def expand_aliases(value: Any, *, max_values: int = MAX_VALUES) -> Any:
    """Copy nested lists and dicts so that no part is shared.

    Raises:
        DamagedFileError: If the copy would have more than max_values values, or containers are nested too deeply or contain
            themselves.
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
    """Check the depth and the number of nested values. A shared container counts once for each reference.

    Raises:
        DamagedFileError: If there are more than max_values, or containers are nested too deeply or contain themselves.
    """
    if count_values(value) > max_values:
        raise DamagedFileError(f"its aliases stand for more than {max_values:,} values")


def count_values(value: Any) -> int:
    """Count the values in nested containers.

    The values of a shared container count once for each reference, although it is visited only once.

    Raises:
        DamagedFileError: If containers are nested too deeply or contain themselves.
    """
    return _measure(value, {}, 1)[0]


def _measure(value: Any, measured: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Return the number of values and the number of levels. `measured` has both for the containers visited so far."""
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
        if height or count > FEW_VALUES:  # A file of 3 MB may hold a million smaller ones.
            measured[id(value)] = found
    count, height = found
    if depth + height - 1 > MAX_DEPTH:
        raise DamagedFileError(f"it is nested more than {MAX_DEPTH} levels deep")
    return found


def check_written_length(value: Any, size: int, *, with_groups: bool = True) -> None:
    """Check that the values of a file do not become far longer than the file when they are written out.

    Args:
        size: Bytes of the file.
        with_groups: Whether the names of all groups around a value are written before it.

    Raises:
        DamagedFileError: If they do.
    """
    limit = FREE_CHARACTERS + MAX_REPEATED * size
    if isinstance(value, CONTAINERS) and written_length(value, limit, with_groups=with_groups) > limit:
        raise DamagedFileError("its names or texts would be repeated far too often")


def written_length(value: Any, limit: int, *, with_groups: bool = True) -> int:
    """Count the characters of all texts and dotted names in nested values. Stop counting beyond the limit.

    A few bytes of a file may become many characters: the name of a group is repeated before each of its settings, and an alias
    repeats a text.
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
