"""Find the column that contains the text, also inside of structs."""

from __future__ import annotations

from typing import Any

from gpt_pretrain.errors import UserError

# Of the columns that a message names.
MAX_NAMED, LONGEST_NAME = 50, 100


def find_column(text_field: str, schema: Any, name: str) -> list[str]:
    """Return the column of a field and the fields of structs that lead to it from there.

    Raises:
        UserError: If there is no such column.
    """
    if text_field in schema.names:
        check_column(text_field, schema.names, name)
        return [text_field]
    parts, found = text_field.split("."), schema
    for part in parts:
        names = [field.name for field in found]
        if part not in names:
            check_column(text_field, column_paths(schema), name)
        found = found.field(part).type
        found = found if hasattr(found, "num_fields") and str(found).startswith("struct") else []
    return parts


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
        raise UserError(f"{name} has no column {text_field}. Choose one with text_field=: {listed}.")
    if (count := columns.count(text_field)) > 1:
        raise UserError(f"{name} has {count} columns named {text_field}. Rename all but the one that contains the text.")
