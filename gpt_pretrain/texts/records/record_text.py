"""Get the text of a record, which is a line of JSON or a value of a table."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from gpt_pretrain.system.json_files import check_json_values, check_names
from gpt_pretrain.system.line_ends import unify_line_ends
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.recognition.json_recognition import ends_early
from gpt_pretrain.system.shown_values import describe_value
from gpt_pretrain.texts.chunks import CUT_OFF, FIELD_MISSING, LONGEST_RECORD, NOT_UTF8, TASK_ITEM, Chunk
from gpt_pretrain.texts.records.json_values import GLUED, split_glued

BROKEN_JSON, TOO_DEEP = "broken JSON", "it is nested too deeply"
LONG_NUMBER = 4000  # digits of a number that Python may refuse
FIELD_NAME = re.compile(r"[A-Za-z_]\w{0,50}", re.ASCII)  # a name that the program jq accepts without quotes
NOT_UTF8_BYTE = re.compile("[\udc80-\udcff]")  # a character that stands for an invalid byte in a table
EXCERPT = 100  # characters of a rejected record that are kept
# Values in a JSON line. Each may take 80 bytes of memory, but two bytes of the file, and far less in an archive.
MAX_VALUES = 1_000_000


class InvalidRecordError(Exception):
    """Raised for a record without usable text.

    Args:
        reason: One of a few fixed reasons, which are counted.
        detail: Description of the problem.
        ends_early: Whether the record is JSON without its end.
    """

    def __init__(self, reason: str, detail: str, *, ends_early: bool = False) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.ends_early = reason, detail, ends_early

    def reason_in(self, chunk: Chunk, record: Any) -> str:
        """Return the reason. It is `CUT_OFF` if the record is the last one of a file that was cut off."""
        content = chunk.content
        is_last = isinstance(content, bytes) and not content.endswith(b"\n") and content.endswith(record)
        return CUT_OFF if self.ends_early and is_last else self.reason


def chunk_records(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    """Yield the records of a chunk of JSON lines or values of a table, each with its number. Blank lines are skipped."""
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
    """Return the text of a record.

    Args:
        record: A line of JSON, or a value of a table.
        as_is: Whether to keep the line ends as they are.

    Raises:
        InvalidRecordError: If it has no text.
    """
    value = _json_value(record, text_field) if is_json else record
    if isinstance(value, bytes):
        value = _decode(value)
    if not isinstance(value, str):
        raise InvalidRecordError("text is not a string", f"it is {describe_value(value)}{_inside(value, text_field)}")
    if not is_json and not value.isascii() and (found := NOT_UTF8_BYTE.search(value)) is not None:
        byte = ord(found[0]) - 0xDC00
        raise InvalidRecordError(NOT_UTF8, f"invalid byte 0x{byte:02x} at character {found.start()}")
    return value if as_is else unify_line_ends(value)


def _json_value(line: bytes, text_field: str) -> Any:
    """Return the value of the field for the text in a line of JSON. A line that is a string is the text itself.

    Raises:
        InvalidRecordError: If the line is damaged, or has no such field.
    """
    if len(line) > LONGEST_RECORD:  # The reader rejects longer lines only if they do not fit into its buffer.
        raise InvalidRecordError("too long", f"more than {LONGEST_RECORD:,} bytes")
    # Concatenated files have byte order marks between lines. RFC 7464 has a record separator before each line.
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
    """Check that a record has the field for the text only once. The JSON decoder would silently drop all but the last one.

    Raises:
        InvalidRecordError: If it has the field twice.
    """
    try:
        check_names(text, only={text_field, *text_field.split(".")}, parse_int=_parse_int)
    except DamagedFileError as error:
        raise InvalidRecordError("ambiguous record", str(error)) from error
    except RecursionError as error:  # This second reading needs a slightly deeper stack than the first.
        raise InvalidRecordError(BROKEN_JSON, TOO_DEEP) from error


@functools.cache
def _quoted_names(text_field: str) -> list[bytes]:
    """Return the names of the fields that lead to the text, in quotation marks as in JSON."""
    names = {text_field, *text_field.split(".")}
    return [f'"{name}"'.encode(errors="surrogatepass") for name in names]


def _parse_int(digits: str) -> int | float:
    """Return a whole number. One with thousands of digits, which JSON allows and Python refuses, becomes a float."""
    return int(digits) if len(digits) < LONG_NUMBER else float(digits)


# JSON forbids control characters in strings. Some programs write them nevertheless, and their meaning is clear.
_DECODER = json.JSONDecoder(strict=False, parse_int=_parse_int)


def _inside(value: Any, text_field: str) -> str:
    """Return a hint if a value is an object with a text in it, or a column of a table, as pandas writes tables by default."""
    if not isinstance(value, dict) or not value:
        return ""
    if not all(isinstance(name, str) and name.isdecimal() for name in value):
        texts = (name for name, inner in value.items() if isinstance(inner, str) and FIELD_NAME.fullmatch(str(name)))
        name = next(texts, None)
        return "" if name is None else f"; a dot leads into it, as in {text_field}.{name}"
    return (
        ", as in a table that was saved by columns: pandas saves records with to_json('new.jsonl', orient='records', lines=True)"
    )


def find_field(record: Any, text_field: str, *, within: str = "") -> Any:
    """Return the value of a field in a JSON record. A dot leads into a nested object, unless the name of a field contains it.

    Args:
        within: For messages: the names of the fields that led to the record, each with a dot after it.

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
    """Return a hint if an object holds its records in a list."""
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
