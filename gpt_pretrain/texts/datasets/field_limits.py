"""Limit the number of different fields in the JSON of a dataset, before pyarrow or pandas make a column for each.

A column has a value in every row. If each row has a field of its own, time and memory grow with the square of the file's size:
145 kB took pyarrow (26.0) half a minute.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

from gpt_pretrain.errors import UserError

MAX_FIELDS = 2000  # fields at any depth

_DECODER = json.JSONDecoder()


def limit_fields(read: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that reads JSON from a stream in memory, so that the fields are counted first."""

    def limited(source: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(source, io.BytesIO | io.StringIO):
            content = source.getvalue()
            check_fields(content if isinstance(content, str) else content.decode(errors="replace"))
        return read(source, *arguments, **options)

    return limited


def limit_fields_of_examples(look_at: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function of datasets that visits the first records once for each field, so that the fields are counted first."""

    def limited(examples: list[Any], *arguments: Any, **options: Any) -> Any:
        _check_count(len({name for example in examples if isinstance(example, dict) for name in example}))
        return look_at(examples, *arguments, **options)

    return limited


def check_fields(text: str) -> None:
    """Check that a JSON text, or all lines of JSON in it together, have at most MAX_FIELDS different fields.

    Raises:
        UserError: If there are more, or if a record has too many brackets within brackets.
    """
    known: dict[str, Any] = {}
    count = 0
    for line in text.split("\n"):
        position = 0
        while position < len(line):
            try:
                value, position = _DECODER.raw_decode(line, position)
                count += _add_fields(value, known)
            except RecursionError:  # pyarrow (26.0) may end the whole program for lack of memory
                raise UserError(
                    "A record of this dataset has far too many brackets within brackets. Give the files themselves as inputs: "
                    "the message names the record then."
                ) from None
            except ValueError:  # pyarrow may read it nevertheless
                count += line.count(":", position)
                position = len(line)
            while line[position : position + 1].isspace():
                position += 1
            _check_count(count)


def _check_count(count: int) -> None:
    if count > MAX_FIELDS:
        raise UserError(
            f"The records of this dataset have more than {MAX_FIELDS:,} different fields, for each of which the package datasets "
            "makes a column. Give the files themselves as inputs: only the field with the text is read then."
        )


def _add_fields(value: Any, known: dict[str, Any]) -> int:
    """Add the fields of nested objects to a tree of known fields, and return the number of new ones."""
    count, waiting = 0, [(value, known)]
    while waiting:
        part, fields = waiting.pop()
        if isinstance(part, dict):
            count += sum(name not in fields for name in part)
            waiting += [(inner, fields.setdefault(name, {})) for name, inner in part.items()]
        elif isinstance(part, list):
            waiting += [(inner, fields) for inner in part if isinstance(inner, dict | list)]
    return count
