"""Check the list of columns in a Parquet file's footer before Arrow makes the path of each column from it.

A path repeats the names of all groups that a column is in, so a file of 200 KB could make Arrow take gigabytes.

Source: FileMetaData and SchemaElement in apache/parquet-format's parquet.thrift, in the compact protocol of Apache Thrift.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from gpt_pretrain.texts.decompression import DamagedArchiveError
from gpt_pretrain.texts.parquet_pages import field_number, read_varint

MAX_COLUMNS = 100_000  # With the groups that they are in.
MAX_PATHS = 20_000_000  # Bytes of all paths together. Ten thousand columns with long names take a tenth.
END = 8  # Bytes of the footer's length and the mark after it.
SCHEMA, NAME, CHILDREN = 2, 4, 5  # Fields of FileMetaData and of SchemaElement.
BOOLEANS, BYTE, NUMBERS, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 8, (9, 10), 12
SIZES = {BYTE: 1, 7: 8}  # A double is stored as it is.
DEEPEST = 12  # Structs and lists within one another.


def check_column_paths(stream: BinaryIO | io.RawIOBase) -> None:
    """Check that the paths of all columns fit into memory. What cannot be read is left for Arrow to refuse.

    Raises:
        DamagedArchiveError: If they do not.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - END, 0))
    end = stream.read(END)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or length > size - END:
        return
    stream.seek(size - END - length)
    try:
        elements = _read_struct(stream.read(length), 0, depth=0, last=SCHEMA)[0].get(SCHEMA)
    except (IndexError, ValueError):
        return
    # Of each open group, the children that are still to come and the length of its path.
    total, groups = 0, list[list[int]]()
    for number, element in enumerate(elements if isinstance(elements, list) else ()):
        name, children = (element.get(field) for field in (NAME, CHILDREN)) if isinstance(element, dict) else (0, 0)
        path = (groups[-1][1] if groups else 0) + (int(name or 0) + 1 if number else 0)
        if groups:
            groups[-1][0] -= 1
        if isinstance(children, int) and children > 0:
            groups.append([children, path])
        else:
            total += path
        while groups and groups[-1][0] <= 0:
            groups.pop()
        if total > MAX_PATHS:
            raise DamagedArchiveError(f"the names of its columns, with those of their groups, take more than {MAX_PATHS:,} bytes")


def _read_struct(data: bytes, position: int, *, depth: int, last: int | None = None) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct, and the position after it: whole numbers, the lengths of texts, and lists of structs.

    Args:
        last: The last field that is needed.

    Raises:
        IndexError: If the data end before it.
        ValueError: If it is not valid.
    """
    fields, field = dict[int, Any](), 0
    while data[position]:
        step, kind = data[position] >> 4, data[position] & 15
        position += 1
        if step:
            field += step
        else:
            number, position = read_varint(data, position)
            field = number >> 1 ^ -(number & 1)
        field = field_number(field)
        if kind not in BOOLEANS:
            fields[field], position = _read_value(data, position, kind, depth=depth)
        if field == last:
            break
    return fields, position + 1


def _read_value(data: bytes, position: int, kind: int, *, depth: int) -> tuple[Any, int]:
    if depth > DEEPEST:
        raise ValueError
    if kind in NUMBERS:
        number, position = read_varint(data, position)
        return number >> 1 ^ -(number & 1), position
    if kind == BINARY:
        length, position = read_varint(data, position)
        return length, position + length
    if kind == STRUCT:
        return _read_struct(data, position, depth=depth + 1)
    if kind in SIZES:
        return None, position + SIZES[kind]
    if kind not in LISTS:
        raise ValueError
    count, inner = data[position] >> 4, data[position] & 15
    position += 1
    if count == 15:
        count, position = read_varint(data, position)
    if count > MAX_COLUMNS:
        raise DamagedArchiveError(f"it has more than {MAX_COLUMNS:,} columns")
    values = list[Any]()
    for _ in range(count):
        value, position = _read_value(data, position, BYTE if inner in BOOLEANS else inner, depth=depth + 1)
        values.append(value)
    return values, position
