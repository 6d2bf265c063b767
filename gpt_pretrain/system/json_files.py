"""Read JSON that anybody may have written. Its number of values is limited before it is parsed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import first_line
from gpt_pretrain.system.nested_values import MAX_DEPTH, MAX_VALUES, check_written_length, count_values
from gpt_pretrain.system.reading import MAX_BYTES, DamagedFileError, read_bytes
from gpt_pretrain.system.shown_values import describe_value, short_repr

MAX_DIGITS = 100  # digits of an integer; transformers writes int(1e30) for "no limit"
MARKS = b"[{,:"  # JSON needs one of these characters for each value.


def read_json(path: Path, *, max_bytes: int = MAX_BYTES, within: Path | None = None) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        OSError: As `open_regular` does.
        DamagedFileError: If the file is too large, too deeply nested, or not a JSON object.
    """
    return parse_json(read_bytes(path, max_bytes=max_bytes, within=within))


def parse_json(content: bytes | str, *, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        DamagedFileError: If it is not an object, is nested too deeply, or has too many values or a number of hundreds of digits.
    """
    parsed = parse_json_value(content, max_values=max_values)
    if not isinstance(parsed, dict):
        raise DamagedFileError(f"it holds {describe_value(parsed)}, not an object")
    return parsed


def parse_json_value(content: bytes | str, *, max_values: int = MAX_VALUES) -> Any:
    """Parse any JSON value.

    Raises:
        DamagedFileError: As `parse_json` does.
    """
    data = content.encode(errors="replace") if isinstance(content, str) else content
    check_json_values(data, max_values=max_values)
    try:
        # From bytes, json.loads would also accept lone surrogates, which are not valid in UTF-8.
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        parsed = json.loads(text, parse_int=_parse_int)
    except RecursionError as error:
        raise DamagedFileError("it cannot be read as JSON (it is nested too deeply)") from error
    except UnicodeDecodeError as error:
        raise DamagedFileError("it cannot be read as JSON (it is not UTF-8)") from error
    except ValueError as error:
        raise DamagedFileError(f"it cannot be read as JSON ({first_line(error)})") from error
    # Most files have so few containers that they cannot be nested too deeply.
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        count_values(parsed)
    check_written_length(parsed, len(data))
    return parsed


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def check_names(
    content: bytes | str, *, only: Collection[str] = (), parse_int: Callable[[str], int | float] = _parse_int
) -> None:
    """Check that no object in a JSON value has a name twice, since only the last value would count.

    Args:
        only: The names that are checked. If there are none, all names are.
        parse_int: The function that reads whole numbers when the value is parsed.

    Raises:
        DamagedFileError: If an object has a name twice.
    """
    json.JSONDecoder(strict=False, object_pairs_hook=partial(check_pairs, only=only), parse_int=parse_int).decode(
        content if isinstance(content, str) else content.decode("utf-8-sig")
    )


def check_pairs(pairs: Sequence[tuple[str, Any]], *, only: Collection[str] = ()) -> None:
    """Check that no name occurs twice among the names and values of an object.

    Args:
        only: The names that are checked. If there are none, all names are.

    Raises:
        DamagedFileError: If a name occurs twice.
    """
    seen = set[str]()
    for name, _ in pairs:
        if name in seen and (not only or name in only):
            raise DamagedFileError(f"{short_repr(name)} is given twice")
        seen.add(name)


def check_json_values(data: bytes, *, max_values: int) -> None:
    """Check that JSON holds at most about max_values values, before it is parsed.

    Raises:
        DamagedFileError: If it holds more.
    """
    if len(data) <= max_values:  # Each value has a byte at least. Most lines of a corpus are much shorter.
        return
    if sum(data.count(mark) for mark in MARKS) > max_values and count_outer_marks(data) > max_values:
        raise DamagedFileError(f"it holds more than {max_values:,} values")


def count_outer_marks(data: bytes, marks: bytes = MARKS, *, block: int = 1 << 20) -> int:
    """Count the marks in JSON that are outside of strings. This needs little memory besides the data."""
    import numpy as np  # loaded here, since most programs that read a small file do not need it

    is_mark = np.zeros(256, np.uint8)
    is_mark[list(marks)] = 1
    total = in_string = start = 0
    while start < len(data):
        end = start + block
        while data[end - 1 : end] == b"\\":  # A backslash stays in one block with the character that it escapes.
            end += 1
        codes = np.frombuffer(data[start:end].replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
        inside = np.bitwise_xor.accumulate((codes == ord('"')).view(np.uint8)) ^ np.uint8(in_string)
        total += int(np.count_nonzero(is_mark[codes] > inside))
        in_string, start = int(inside[-1]), end
    return total
