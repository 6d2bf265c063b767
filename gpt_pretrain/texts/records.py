"""The text in a record: a line of JSON, or a value of a table."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from gpt_pretrain.system.json_files import check_json_values, check_names
from gpt_pretrain.system.json_recognition import ends_early
from gpt_pretrain.system.line_ends import unify_line_ends
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import describe_value
from gpt_pretrain.texts.chunks import CUT_OFF, FIELD_MISSING, LONGEST_RECORD, NOT_UTF8, TASK_ITEM, Chunk
from gpt_pretrain.texts.json_values import GLUED, split_glued

BROKEN_JSON, TOO_DEEP = "broken JSON", "it is nested too deeply"
LONG_NUMBER = 4000  # Digits of a number.
FIELD_NAME = re.compile(r"[A-Za-z_]\w{0,50}", re.ASCII)  # one that the program jq takes without quotes
NOT_UTF8_BYTE = re.compile("[\udc80-\udcff]")  # what stands for a byte that is not UTF-8 in a value of a table
EXCERPT = 100  # Characters of a rejected record that are kept.
# Of a JSON line. Each may take 80 bytes of memory and two in the file, of which an archive needs a hundredth.
MAX_VALUES = 1_000_000


class InvalidRecordError(Exception):
    """Raised for a record without usable text.

    Args:
        reason: One of a few fixed reasons, which are counted.
        detail: Description of the problem.
        ends_early: Whether the record is JSON that lacks its end.
    """

    def __init__(self, reason: str, detail: str, *, ends_early: bool = False) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.ends_early = reason, detail, ends_early

    def reason_in(self, chunk: Chunk, record: Any) -> str:
        """Return the reason, which is another one if the file of the record, not the record itself, has been cut off."""
        content = chunk.content
        is_last = isinstance(content, bytes) and not content.endswith(b"\n") and content.endswith(record)
        return CUT_OFF if self.ends_early and is_last else self.reason


def chunk_records(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    """Yield the records of a chunk, which are JSON lines or values of a table, with their numbers; blank lines are skipped."""
    if isinstance(chunk.content, list):
        yield from enumerate(chunk.content, start=chunk.first)
        return
    assert isinstance(chunk.content, bytes), "a chunk of text has no records"
    any_glued = GLUED.search(chunk.content) is not None
    for number, line in enumerate(chunk.content.split(b"\n"), start=chunk.first):
        if not line or line.isspace():
            continue
        if any_glued:
            yield from ((number, value) for value in split_glued(line))
        else:
            yield number, line


def record_text(record: Any, text_field: str, *, is_json: bool, as_is: bool = False) -> str:
    """Return the text of a record, which is either a JSON line or a value from a table.

    Args:
        as_is: Keep the line ends.

    Raises:
        InvalidRecordError: If it has none.
    """
    value = _json_value(record, text_field) if is_json else record
    if isinstance(value, bytes):
        value = _decode(value)
    if not isinstance(value, str):
        raise InvalidRecordError("text is not a string", f"it is {describe_value(value)}{_by_columns(value)}")
    if not is_json and not value.isascii() and (found := NOT_UTF8_BYTE.search(value)) is not None:
        byte = ord(found[0]) - 0xDC00
        raise InvalidRecordError(NOT_UTF8, f"invalid byte 0x{byte:02x} at character {found.start()}")
    return value if as_is else unify_line_ends(value)


def _json_value(line: bytes, text_field: str) -> Any:
    """Return the field of a JSON line that should contain the text.

    A line may also be the text itself, as a string.

    Raises:
        InvalidRecordError: If the line is neither, or has no such field.
    """
    if len(line) > LONGEST_RECORD:  # The reader rejects only lines that are longer than what it buffers.
        raise InvalidRecordError("too long", f"more than {LONGEST_RECORD:,} bytes")
    # A mark, where files have been concatenated, or the record separator of RFC 7464.
    text = _decode(line).lstrip("\ufeff\x1e")
    try:
        check_json_values(line, max_values=MAX_VALUES)
        fields = _DECODER.decode(text)
    except DamagedFileError as error:
        raise InvalidRecordError("too many values", str(error)) from error
    except json.JSONDecodeError as error:
        is_cut = text.startswith("{") and ends_early(text, error)
        raise InvalidRecordError(BROKEN_JSON, str(error), ends_early=is_cut) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError(BROKEN_JSON, TOO_DEEP if isinstance(error, RecursionError) else str(error)) from error
    if isinstance(fields, str):
        return fields
    if any(line.count(name) > 1 for name in _quoted_names(text_field)):  # Perhaps in the text, or in another object.
        _check_names(text, text_field)
    return find_field(fields, text_field)


def _check_names(text: str, text_field: str) -> None:
    """Check that a record does not have its text twice, of which only the last one would be read.

    Raises:
        InvalidRecordError: If it does.
    """
    try:
        check_names(text, only={text_field, *text_field.split(".")}, parse_int=_parse_int)
    except DamagedFileError as error:
        raise InvalidRecordError("ambiguous record", str(error)) from error
    except RecursionError as error:  # which reading it once more takes a little deeper
        raise InvalidRecordError(BROKEN_JSON, TOO_DEEP) from error


@functools.cache
def _quoted_names(text_field: str) -> list[bytes]:
    """Return the names of the fields that lead to the text, as JSON has them."""
    names = {text_field, *text_field.split(".")}
    return [f'"{name}"'.encode(errors="surrogatepass") for name in names]


def _parse_int(digits: str) -> int | float:
    """Return a whole number; Python refuses those of thousands of digits, which JSON allows."""
    return int(digits) if len(digits) < LONG_NUMBER else float(digits)


# Control characters in a string are no JSON, but some programs write them, and what they mean is clear.
_DECODER = json.JSONDecoder(strict=False, parse_int=_parse_int)


def _by_columns(value: Any) -> str:
    """Return a hint on a value that is a whole column of a table, as pandas writes by default."""
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) and name.isdecimal() for name in value):
        return ""
    return (
        ", as in a table that was saved by columns: pandas saves records with to_json('new.jsonl', orient='records', lines=True)"
    )


def find_field(record: Any, text_field: str, *, within: str = "") -> Any:
    """Return the value of a field of a JSON record; a dot leads into a nested object, unless a field's own name contains it.

    Args:
        within: The fields that have led to the record, each with a dot, for messages.

    Raises:
        InvalidRecordError: If the record is not an object with this field.
    """
    if not isinstance(record, dict):
        raise InvalidRecordError("not an object", f"{describe_value(record)} instead of an object with the field {text_field}")
    if text_field in record:
        return record[text_field]
    outer, dot, inner = text_field.partition(".")
    while dot:
        if isinstance(record.get(outer), dict):
            return find_field(record[outer], inner, within=f"{within}{outer}.")
        more, dot, inner = inner.partition(".")
        outer = f"{outer}.{more}"
    present = ", ".join(within + name[:EXCERPT] for name in list(record)[:10])
    is_task = "context" in record and not {"choices", "continuation"}.isdisjoint(record)
    raise InvalidRecordError(
        TASK_ITEM if is_task else FIELD_MISSING,
        f"no field {within}{text_field} in an object with {present or 'no fields'}{_in_a_list(record)}",
    )


def _in_a_list(record: dict[Any, Any]) -> str:
    """Return a hint on an object whose records are a list in it."""
    for name, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and FIELD_NAME.fullmatch(name):
            return f"; to make the objects in {name} records of their own: jq -c '.{name}[]' FILE > new.jsonl"
    return ""


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRecordError(NOT_UTF8, f"{error.reason} at byte {error.start}") from error


def excerpt(record: Any) -> str:
    """Return the first characters of a record, for a message."""
    text = record[: 4 * EXCERPT].decode(errors="replace") if isinstance(record, bytes) else str(record)
    return text[:EXCERPT].encode(errors="replace").decode()
