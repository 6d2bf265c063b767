"""Find the column that contains the text, also inside of structs."""

from __future__ import annotations

from typing import Any

from gpt_pretrain.errors import UserError

# Of the columns that a message names.
MAX_NAMED, LONGEST_NAME = 50, 100
# Types of columns with one text in each row. Bytes may be UTF-8. Texts of a fixed length, and lists, may be of any size.
TEXT_TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def find_column(text_field: str, schema: Any, name: str) -> list[str]:
    """Return the column of a field and the fields of structs that lead to it from there.

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
    """Return the number of the column in a Parquet file whose values are those of a field.

    Args:
        path: From `find_column`.
        schema: Parquet's own, which counts the fields of structs as columns.

    Raises:
        UserError: If the file stores something else there than its schema for Arrow says.
    """
    joined = ".".join(path)
    # One path at a time: all of them repeat the names of the groups that they are in, which may be long.
    same = [number for number in range(len(schema)) if _is_within(schema.column(number).path, joined)]
    column = schema.column(same[0])
    # Arrow writes a column without any values as numbers.
    if len(same) > 1 or column.max_repetition_level or column.physical_type not in ("BYTE_ARRAY", "INT32"):
        raise UserError(f"{name} stores no text, or several columns, as {joined}. Give a file with a plain column of text.")
    return same[0]


def _is_within(path: str, group: str) -> bool:
    return path.startswith(group) and path[len(group) : len(group) + 1] in ("", ".")


def _check_is_text(text_field: str, kind: Any, schema: Any, name: str) -> None:
    """Check that a column's type is text, also as a dictionary; one that is null everywhere may be anything.

    Raises:
        UserError: If not.
    """
    stored = getattr(kind, "storage_type", kind)  # of an extension of Arrow, such as JSON
    stored = stored.value_type if str(stored).startswith("dictionary") else stored
    if str(stored) not in (*TEXT_TYPES, "null"):
        columns = ", ".join(path for path in column_paths(schema) if path != text_field)
        raise UserError(
            f"{name}: its column {text_field} is of the type {str(kind)[:LONGEST_NAME]}, not text."
            + (f" Set text_field= to another column: {columns}." if columns else "")
        )


def column_paths(fields: Any, prefix: str = "") -> list[str]:
    """Return the first names of columns, and those of the fields in structs."""
    paths = list[str]()
    for field in fields:
        path = f"{prefix}{field.name[:LONGEST_NAME]}"
        is_struct = str(field.type).startswith("struct")
        paths += column_paths(field.type, f"{path}.") if is_struct else [path]
        if len(paths) >= MAX_NAMED:
            break
    return paths[:MAX_NAMED]


def check_column(text_field: str, columns: list[str], name: str) -> None:
    """Check that a table has a column, and only one of this name.

    Raises:
        UserError: If not.
    """
    if text_field not in columns:
        listed = ", ".join(column[:LONGEST_NAME] for column in columns[:MAX_NAMED])
        choice = f"Set text_field= to one of its columns: {listed}." if listed else "It has no columns at all."
        raise UserError(f"{name} has no column {text_field}. {choice}")
    if (count := columns.count(text_field)) > 1:
        raise UserError(f"{name} has {count} columns named {text_field}. Rename all of them except the column with the text.")
