"""Read small files that anybody may have written: only regular files, and never more than their size allows."""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
import stat
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

from gpt_pretrain.system.written_length import CONTAINERS, written_length

MAX_BYTES = 20_000_000  # A config.json has about 1,000 bytes, the index of a sharded model about 100,000.
# Of YAML, which takes 50 times as long to parse as JSON. The settings of a run have about 3,000.
MAX_YAML_BYTES = 500_000
MAX_VALUES = 2_000_000  # In one file, each counted as often as an alias repeats it. An empty list takes 64 bytes of memory.
MAX_DEPTH = 100  # Of nested containers. The settings of a run have five levels.
MAX_REPEATED, FREE_CHARACTERS = 20, 1_000_000  # Times that a file's texts and names may be repeated when they are written out.
FEW_VALUES = 8  # Of a container without others in it, whose count is not kept.
MAX_DIGITS = 100  # Of an integer. transformers writes int(1e30) for "no limit".

# A plain YAML number. Python refuses decimal ones of more than 4,300 digits, but not hexadecimal ones and those of base 60.
LONG_NUMBER = re.compile(r"[-+0-9_:.xXoOa-fA-F]{1000,}")
# Whole numbers from 2**61 on can have the same hash, and a dict with many such keys takes quadratic time.
LARGE_NUMBER, MAX_LARGE_NUMBERS = re.compile(r"[-+0-9_:xXoOa-fA-F]{18,}"), 1000
MERGE_TAG = "tag:yaml.org,2002:merge"

MARKS = b"[{,:"  # JSON needs one of these for each value.


class DamagedFileError(ValueError):
    """A file is not what its name says, or is far too large. The message does not name the file."""


def open_regular(path: Path, *, within: Path | None = None) -> BufferedReader:
    """Open a regular file for reading; a device or a FIFO, which could wait or go on forever, is refused.

    Args:
        within: The folder that the file must be in after all links are followed; None allows any.

    Raises:
        OSError: If there is no such file, or it is not regular, or a link leads out of the folder.
    """
    if within is not None and not path.resolve().is_relative_to(within.resolve()):
        raise _leads_out(path)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if within is not None and not _is_inside(handle, path, within):
        os.close(handle)
        raise _leads_out(path)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        remedy = ". Save its content to a file first" * stat.S_ISFIFO(mode)
        raise OSError(errno.EINVAL, f"it is {kinds.get(stat.S_IFMT(mode), 'a socket')}, not a regular file{remedy}", str(path))
    return os.fdopen(handle, "rb")


def _is_inside(handle: int, path: Path, folder: Path) -> bool:
    """Return whether an open file is the one in a folder: the owner of the folder may have put a link there for a moment."""
    opened, real = os.fstat(handle), path.resolve()
    try:
        named = os.lstat(real)
    except OSError:
        return False
    is_same = (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)
    return is_same and real.is_relative_to(folder.resolve())


def _leads_out(path: Path) -> OSError:
    return OSError(errno.EPERM, "it is a link that leads out of its folder", str(path))


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


def read_lines(stream: BufferedReader, *, max_line_bytes: int, max_bytes: int) -> Iterator[str]:
    """Yield the lines of a text file with their ends, up to the first line that is too long, or to the largest size."""
    left = max_bytes
    while left > 0 and (line := stream.readline(max_line_bytes + 1)):
        if len(line) > max_line_bytes:
            return
        left -= len(line)
        yield line.decode(errors="replace").replace("\0", "")


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
        DamagedFileError: If it is not one, is too deeply nested, or holds too many values or a number of hundreds of digits.
    """
    parsed = parse_json_value(content, max_values=max_values)
    if not isinstance(parsed, dict):
        raise DamagedFileError(f"it holds {describe_value(parsed)}, not an object")
    return parsed


def parse_json_value(content: bytes | str, *, max_values: int = MAX_VALUES) -> Any:
    """Parse any JSON value, whose memory is bounded before it is parsed.

    Raises:
        DamagedFileError: As `parse_json` does.
    """
    data = content.encode(errors="replace") if isinstance(content, str) else content
    check_json_values(data, max_values=max_values)
    try:
        # Given bytes, json.loads also takes lone surrogates, which no UTF-8 file may hold.
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        parsed = json.loads(text, parse_int=_parse_int)
    except RecursionError as error:
        raise DamagedFileError("it cannot be read as JSON (it is nested too deeply)") from error
    except UnicodeDecodeError as error:
        raise DamagedFileError("it cannot be read as JSON (it is not UTF-8)") from error
    except ValueError as error:
        raise DamagedFileError(f"it cannot be read as JSON ({_first_line(error)})") from error
    # Most files have fewer containers than levels are allowed.
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        count_values(parsed)
    _check_written(parsed, len(data))
    return parsed


def check_names(content: bytes | str, *, only: Collection[str] = ()) -> None:
    """Check that no object in a JSON value has a name twice, since only the last value would count.

    Args:
        only: The names that are checked; if empty, all are.

    Raises:
        DamagedFileError: If one does.
    """

    json.JSONDecoder(strict=False, object_pairs_hook=partial(check_pairs, only=only), parse_int=_parse_int).decode(
        content if isinstance(content, str) else content.decode("utf-8-sig")
    )


def check_pairs(pairs: Sequence[tuple[str, Any]], *, only: Collection[str] = ()) -> None:
    """Check that no name is given twice in the names and values of an object.

    Args:
        only: The names that are checked; if empty, all are.

    Raises:
        DamagedFileError: If one is.
    """
    seen = set[str]()
    for name, _ in pairs:
        if name in seen and (not only or name in only):
            raise DamagedFileError(f"{short_repr(name)} is given twice")
        seen.add(name)


def describe_value(value: Any) -> str:
    """Return what a value of a file is called in JSON, such as "an array", or "null"."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    names = ((dict, "an object"), (list, "an array"), (str, "a string"), (int | float, "a number"))
    return next((name for kinds, name in names if isinstance(value, kinds)), f"a value of the type {type(value).__name__}")


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
    """Count these characters of JSON that are outside of strings, with little memory besides the data."""
    import numpy as np  # most programs that read a small file do without

    is_mark = np.zeros(256, np.uint8)
    is_mark[list(marks)] = 1
    total = in_string = start = 0
    while start < len(data):
        end = start + block
        while data[end - 1 : end] == b"\\":  # a backslash stays with the character that it escapes
            end += 1
        codes = np.frombuffer(data[start:end].replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
        inside = np.bitwise_xor.accumulate((codes == ord('"')).view(np.uint8)) ^ np.uint8(in_string)
        total += int(np.count_nonzero(is_mark[codes] > inside))
        in_string, start = int(inside[-1]), end
    return total


def read_yaml(path: Path, *, max_bytes: int = MAX_YAML_BYTES, within: Path | None = None) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, as plain data: `${...}` stays text, and aliases become copies.

    Raises:
        OSError: As `open_regular` does.
        DamagedFileError: If the file is too large, also after its aliases are copied, or not a mapping of plain values.
    """
    return parse_yaml(read_bytes(path, max_bytes=max_bytes, within=within))


def parse_yaml(content: bytes | str) -> dict[str, Any]:
    """Parse a YAML mapping as plain data, as `read_yaml` does.

    Raises:
        DamagedFileError: As `read_yaml` does.
    """
    parsed = parse_yaml_value(content)
    if not isinstance(parsed, dict):
        raise DamagedFileError(f"it holds {describe_value(parsed)}, not a mapping")
    return {str(name): value for name, value in parsed.items()}


def parse_yaml_value(content: bytes | str) -> Any:
    """Parse any YAML value as plain data, as `read_yaml` does.

    Raises:
        DamagedFileError: As `read_yaml` does.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_yaml_events(content, loader)
        parsed = expand_aliases(_construct_yaml(content, loader), max_values=len(content) + MAX_DEPTH)
    except DamagedFileError:
        raise
    # A tag such as !!bool or !!timestamp before another value makes PyYAML (6.0) fail in several ways.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"it cannot be read as YAML ({_first_line(error)})") from error
    _check_written(parsed, len(content))
    return parsed


def _check_written(value: Any, size: int) -> None:
    """Check that the values of a file are not far longer than the file, with the names of all groups before each of them.

    Raises:
        DamagedFileError: If they are.
    """
    limit = FREE_CHARACTERS + MAX_REPEATED * size
    if isinstance(value, CONTAINERS) and written_length(value, limit) > limit:
        raise DamagedFileError("its names or texts would be repeated far too often")


def expand_aliases(value: Any, *, max_values: int = MAX_VALUES) -> Any:
    """Copy nested lists and dicts so that no part is shared.

    Raises:
        DamagedFileError: If the copy would have more than max_values values, as one of a few aliases of aliases may have, or the
            value is nested too deeply or contains itself.
    """
    check_values(value, max_values=max_values)
    return _copy(value)


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


def short_repr(value: object) -> str:
    """Return what `repr` does, but in a few hundred characters however large the value is, for a message."""
    if value is None or isinstance(value, bool | int | float | str | bytes | list | tuple | dict | set | frozenset):
        return _SHORT.repr(value)
    return f"<a {type(value).__name__}>"


class _ShortRepr(reprlib.Repr):
    """Shows three levels of containers, six parts of each, and eighty characters of each text."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**40 else f"<a number of {x.bit_length():,} bits>"

    def repr_instance(self, x: object, level: int) -> str:
        if isinstance(x, bytes):
            return repr(x[: self.maxother])
        return repr(x) if x is None or isinstance(x, bool | float) else f"<a {type(x).__name__}>"


_SHORT = _ShortRepr()


def _check_yaml_events(content: bytes | str, loader: Any) -> None:
    """Check the depth, the numbers and the keys of a file by the parser's events, which need no deep stack and convert nothing.

    At some 10,000 levels, the stack of PyYAML's composer overflows, which ends the process. A merge key copies mappings before
    their size can be checked.
    """
    depth = n_large = 0
    for event in yaml.parse(content, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent):
            if event.tag == MERGE_TAG or (event.value == "<<" and event.implicit[0]):
                raise DamagedFileError("it holds the key <<, which merges mappings; write out what is merged")
            if LONG_NUMBER.fullmatch(event.value):
                raise DamagedFileError("it holds a number of more than a thousand digits")
            n_large += LARGE_NUMBER.fullmatch(event.value) is not None
        if depth > MAX_DEPTH:
            raise DamagedFileError(f"it is nested more than {MAX_DEPTH} levels deep")
        if n_large > MAX_LARGE_NUMBERS:
            raise DamagedFileError(f"it holds more than {MAX_LARGE_NUMBERS:,} numbers of 18 digits or more")


def _construct_yaml(content: bytes | str, loader: Any) -> Any:
    opened = loader(content)
    try:
        return opened.get_single_data()
    finally:
        opened.dispose()


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


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {_copy(name): _copy(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_copy(part) for part in value)
    return value


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
