"""Read small files that anybody may have written: only regular files, and never more than their size allows."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 20_000_000  # A config.json has about 1,000 bytes, the index of a sharded model about 100,000.
MAX_NODES = 2_000_000  # Values in one file, each counted as often as an alias repeats it.


class DamagedFileError(ValueError):
    """A file is not what its name says, or is far too large. The message does not name the file."""


def open_regular(path: Path, *, within: Path | None = None) -> BufferedReader:
    """Open a regular file for reading; a device or a FIFO, which could wait or go on for ever, is refused.

    Args:
        within: The folder that the file must be in after all links are followed; None allows any.

    Raises:
        OSError: If there is no such file, or it is not regular, or a link leads out of the folder.
    """
    if within is not None and not path.resolve().is_relative_to(within.resolve()):
        raise OSError(errno.EPERM, "it is a link that leads out of its folder", str(path))
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES, within: Path | None = None) -> bytes:
    """Read a regular file that has at most max_bytes.

    Raises:
        OSError: As `open_regular` does.
        DamagedFileError: If the file is larger.
    """
    with open_regular(path, within=within) as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DamagedFileError(f"it has more than {max_bytes:,} bytes")
    return content


def read_json(path: Path, *, max_bytes: int = MAX_BYTES, within: Path | None = None) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        OSError: As `open_regular` does.
        DamagedFileError: If the file is too large, too deeply nested, or not a JSON object.
    """
    return parse_json(read_bytes(path, max_bytes=max_bytes, within=within))


def parse_json(content: bytes | str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        DamagedFileError: If it is not one, is too deeply nested, or holds a number of thousands of digits.
    """
    try:
        # Given bytes, json.loads also takes lone surrogates, which no UTF-8 file may hold.
        parsed = json.loads(content if isinstance(content, str) else content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise DamagedFileError(f"it cannot be read as JSON ({_first_line(error)})") from error
    if not isinstance(parsed, dict):
        raise DamagedFileError(f"it holds a {type(parsed).__name__}, not a JSON object")
    return parsed


def read_yaml(path: Path, *, max_bytes: int = MAX_BYTES, within: Path | None = None) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, as plain data: `${...}` stays text, and aliases become copies.

    Raises:
        OSError: As `open_regular` does.
        DamagedFileError: If the file is too large, also after its aliases are copied, or not a mapping of plain values.
    """
    content = read_bytes(path, max_bytes=max_bytes, within=within)
    try:
        parsed = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        expanded = expand_aliases(parsed)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"it cannot be read as YAML ({_first_line(error)})") from error
    if not isinstance(expanded, dict):
        raise DamagedFileError(f"it holds a {type(expanded).__name__}, not a mapping")
    return {str(name): value for name, value in expanded.items()}


def expand_aliases(value: Any, *, max_nodes: int = MAX_NODES) -> Any:
    """Copy nested lists and dicts so that no part is shared.

    Raises:
        DamagedFileError: If the copy would have more than max_nodes values, as one of a few aliases of aliases may have.
        RecursionError: If the value is nested too deeply or contains itself.
    """
    if _count(value, {}) > max_nodes:
        raise DamagedFileError(f"its aliases stand for more than {max_nodes:,} values")
    return _copy(value)


def _count(value: Any, sizes: dict[int, int]) -> int:
    """Count the values in nested containers; each shared container is visited once."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in sizes:
        parts = [*value, *value.values()] if isinstance(value, dict) else list(value)
        sizes[id(value)] = 1 + sum(_count(part, sizes) for part in parts)
    return sizes[id(value)]


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {_copy(name): _copy(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_copy(part) for part in value)
    return value


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
