"""Recognize JSON by the beginning of a text, and the way in which its values follow one another."""

from __future__ import annotations

import json
import re
from typing import Any

from gpt_pretrain.system.recognition.file_kinds import JSON_ARRAY, JSON_LINES, JSON_OBJECTS, FileKind

SEPARATORS = " \t\r\n,\x1e"  # Between values: some programs write a comma, or the record separator of RFC 7464.
# Possible ends of incomplete JSON: a part of a word, of a number or of an escape.
UNFINISHED = re.compile(r"-?[a-z]*|\\?u?[0-9a-fA-F]*")
MAX_EMPTY = 100  # Values without content to examine.
_DECODER = json.JSONDecoder(strict=False, parse_int=float)


def ends_early(text: str, error: json.JSONDecodeError) -> bool:
    """Return whether JSON is broken only because its end is missing."""
    return error.msg.startswith("Unterminated") or UNFINISHED.fullmatch(text, error.pos) is not None


def json_kind(start: str, *, is_named: bool) -> FileKind | None:
    """Return the kind of JSON if a text begins with an object, or with an array of objects, arrays or strings.

    Args:
        start: The beginning of the text, without white space before it.
        is_named: Whether the file's name means JSON. Other text after the first value, or in it, is then damage.
    """
    if re.match(r'\{\s*["}]|\[\s*[\[{"\]]', start) is None or not (is_named or _begins_with_json(start)):
        return None
    if start.startswith("["):
        return JSON_ARRAY
    end = _first_value(start)[1]
    if end is not None:
        between = start[end:][: len(start) - end - len(start[end:].lstrip(SEPARATORS))]
        is_alone = not re.search(r"[\r\n]", start[:end]) and "," not in between
        return JSON_LINES if is_alone and (re.search(r"[\r\n]", between) or end + len(between) == len(start)) else JSON_OBJECTS
    _, line_end, rest = start.partition("\n")
    # A single long line is one record. A line that ends too early is damaged, or begins a value over several lines.
    return JSON_LINES if not line_end or _is_object(rest.partition("\n")[0]) else JSON_OBJECTS


def _begins_with_json(start: str) -> bool:
    """Return whether a text begins with a JSON value, and has another JSON value after it if it continues."""
    for _ in range(MAX_EMPTY):  # Many plain texts contain empty brackets.
        value, end = _first_value(start)
        rest = "" if end is None else start[end:].lstrip(SEPARATORS)
        if value or not rest.startswith(("{", "[")):
            break
        start = rest
    if end is not None:
        return not rest or rest.startswith(("{", "["))
    if value is not None:  # It ends early, so it may continue beyond the known part.
        return not re.match(r'[\[\s]*"', start)
    return _is_object(start.partition("\n")[2].partition("\n")[0])  # The first line is damaged.


def _first_value(start: str) -> tuple[Any, int | None]:
    """Return the first value of a text and its end; True and None if its end may be missing, and None if it is not a value."""
    try:
        return _DECODER.raw_decode(start)
    except json.JSONDecodeError as error:
        return ends_early(start, error) or None, None
    except RecursionError:
        return True, None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line, strict=False, parse_int=float), dict)
    except (ValueError, RecursionError):
        return False
