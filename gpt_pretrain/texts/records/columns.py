"""Find the column that contains the text, also inside of structs."""

from __future__ import annotations

import re
from typing import Any

from gpt_pretrain.errors import UserError

MAX_NAMED, LONGEST_NAME = 50, 100  # columns that a message names, and characters of a name
# Arrow's types of columns with one text in each row; bytes may be text in UTF-8. Lists and texts of a fixed length are not among
# them, since a single value may have any size.
TEXT_TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
LIST_OF_TEXTS = re.compile(r"(?:large_|fixed_size_)?list(?:_view)?<\w+: (?:large_)?string(?:_view)?(?: not null)?>(?:\[\d+\])?")
# A list may hold sentences, paragraphs or messages, which are joined in different ways.
LISTS = (
    "To make one text of each list, join its parts first, for example with the package datasets: "
    """dataset.map(lambda row: {{"{0}": "\\n".join(row["{0}"])}}).to_parquet("joined.parquet")"""
)


def find_column(text_field: str, schema: Any, name: str) -> list[str]:
    """Return the name of a field's column, followed by the names of the fields in structs that lead to it.

    Raises:
        UserError: If there is no such column, or it contains no text.
    """
    if text_field in schema.names:
        check_column(text_field, schema.names, name)
        _check_is_text(text_field, schema.field(text_field).type, schema, name)
        return [text_field]
    parts, found = text_field.split("."), schema
    for part in parts:
        names = [field.name for field in found]
        if part not in names:
            check_column(text_field, column_paths(schema), name)
        kind = found.field(part).type
        found = kind if str(kind).startswith("struct") else []
    _check_is_text(text_field, kind, schema, name)
    return parts


def find_leaf(path: list[str], schema: Any, name: str) -> int:
    """Return the index of the column in a Parquet file that stores a field.

    Args:
        path: The path of the field, from `find_column`.
        schema: Parquet's own schema, in which each field of a struct is a column.

    Raises:
        UserError: If Parquet's schema has something else there than Arrow's.
    """
    joined = ".".join(path)
    # One path at a time: each path repeats the names of its groups, which may be long.
    same = [number for number in range(len(schema)) if _is_within(schema.column(number).path, joined)]
    column = schema.column(same[0])
    # Arrow writes a column without any values as numbers.
    if len(same) > 1 or column.max_repetition_level or column.physical_type not in ("BYTE_ARRAY", "INT32"):
        raise UserError(f"{name} stores no text, or several columns, as {joined}. Give a file with a plain column of text.")
    return same[0]


def _is_within(path: str, group: str) -> bool:
    return path.startswith(group) and path[len(group) : len(group) + 1] in ("", ".")


def _check_is_text(text_field: str, kind: Any, schema: Any, name: str) -> None:
    """Check that a column holds text, plain or as a dictionary. A column of nothing but nulls passes.

    Raises:
        UserError: If it holds something else.
    """
    stored = getattr(kind, "storage_type", kind)  # of an extension of Arrow, such as JSON
    stored = stored.value_type if str(stored).startswith("dictionary") else stored
    if str(stored) not in (*TEXT_TYPES, "null"):
        columns = ", ".join(path for path in column_paths(schema) if path != text_field)
        remedies = [f"Set text_field= to another column: {columns}."] if columns else []
        if LIST_OF_TEXTS.fullmatch(str(stored)):
            remedies.append(LISTS.format(text_field))
        raise UserError(
            " ".join([f"{name}: its column {text_field} is of the type {str(kind)[:LONGEST_NAME]}, not text.", *remedies])
        )


def column_paths(fields: Any, prefix: str = "") -> list[str]:
    """Return the names of the first columns. For a struct, return the dotted names of its fields."""
    paths = list[str]()
    for field in fields:
        path = f"{prefix}{field.name[:LONGEST_NAME]}"
        is_struct = str(field.type).startswith("struct")
        paths += column_paths(field.type, f"{path}.") if is_struct else [path]
        if len(paths) >= MAX_NAMED:
            break
    return paths[:MAX_NAMED]


def check_column(text_field: str, columns: list[str], name: str, *, advice: str = "") -> None:
    """Check that a table has exactly one column of a name.

    Args:
        advice: A further sentence of the message if the table has no such column.

    Raises:
        UserError: If it has none or several.
    """
    if text_field not in columns:
        listed = ", ".join(column[:LONGEST_NAME] for column in columns[:MAX_NAMED])
        choice = f"Set text_field= to one of its columns: {listed}." if listed else "It has no columns at all."
        raise UserError(f"{name} has no column {text_field}. {choice}{advice}")
    if (count := columns.count(text_field)) > 1:
        raise UserError(f"{name} has {count} columns named {text_field}. Rename all of them except the column with the text.")
