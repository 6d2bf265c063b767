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
BOOLEANS, BYTE, INT, NUMBERS, BINARY, LIST, LISTS, STRUCT = (1, 2), 3, 5, (4, 5, 6), 8, 9, (9, 10), 12
SIZES = {BYTE: 1, 7: 8}  # A double is stored as it is.
DEEPEST = 12  # Structs and lists within one another.
# Fields of FileMetaData and of SchemaElement, each with its type: Arrow skips a field of another type.
SCHEMA, NAME, CHILDREN = (2, LIST), (4, BINARY), (5, INT)
# What Arrow reads from the lists that it knows, whatever the file says, by the depth of the struct and the field.
ELEMENTS = {
    **dict.fromkeys([(0, 2), (0, 4), (0, 5), (0, 7), (2, 1), (2, 4), (5, 8), (5, 13)], (STRUCT,)),
    **dict.fromkeys([(5, 3), (6, 1)], (BINARY,)),
    **dict.fromkeys([(5, 2), (6, 2), (6, 3)], NUMBERS),
}
NO_FOOTER = "what should be its footer is something else"

Fields = dict[tuple[int, int], Any]


def check_column_paths(stream: BinaryIO | io.RawIOBase) -> None:
    """Check that the paths of all columns fit into memory.

    The footer is read to its end, since Arrow takes the last list of columns. What no program writes is refused: Arrow may
    find another list of columns in it.

    Raises:
        DamagedArchiveError: If they do not, or the footer is not valid.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - END, 0))
    end = stream.read(END)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or length > size - END:
        return
    stream.seek(size - END - length)
    try:
        elements = _read_struct(stream.read(length), 0, depth=0)[0].get(SCHEMA)
    except IndexError:
        raise DamagedArchiveError(NO_FOOTER) from None
    if len(elements or ()) > MAX_COLUMNS:
        raise DamagedArchiveError(f"it has more than {MAX_COLUMNS:,} columns")
    # Of each open group, the children that are still to come and the length of its path.
    total, groups = 0, list[list[int]]()
    for number, element in enumerate(elements or ()):
        name, children = element.get(NAME, 0), element.get(CHILDREN, 0)
        path = (groups[-1][1] if groups else 0) + (name + 1 if number else 0)
        if groups:
            groups[-1][0] -= 1
        if children > 0:
            groups.append([children, path])
        else:
            total += path
        while groups and groups[-1][0] <= 0:
            groups.pop()
        if total > MAX_PATHS:
            raise DamagedArchiveError(f"the names of its columns, with those of their groups, take more than {MAX_PATHS:,} bytes")


def _read_struct(data: bytes, position: int, *, depth: int) -> tuple[Fields, int]:
    """Return those of the three fields that a struct has, and the position after it. The value of a text is its length.

    Raises:
        IndexError: If the data end before it.
        DamagedArchiveError: If it is not valid, or something that no footer contains.
    """
    fields, field = Fields(), 0
    while (mark := data[position]) != 0:
        step, kind = mark >> 4, mark & 15
        position += 1
        if not step:
            step, position = _read_number(data, position)
            field = 0
        field = field_number(field + step)
        if kind in BOOLEANS:
            continue
        known = ELEMENTS.get((depth, field))
        value, position = (
            _read_list(data, position, known, depth=depth) if kind in LISTS else _read_value(data, position, kind, depth=depth)
        )
        if (field, kind) in (SCHEMA, NAME, CHILDREN):
            fields[field, kind] = value
    return fields, position + 1


def _read_value(data: bytes, position: int, kind: int, *, depth: int) -> tuple[Any, int]:
    if depth > DEEPEST:
        raise DamagedArchiveError(NO_FOOTER)
    if kind in NUMBERS:
        return _read_number(data, position)
    if kind == BINARY:
        length, position = read_varint(data, position)
        return length, position + length
    if kind == STRUCT:
        return _read_struct(data, position, depth=depth + 1)
    if kind in SIZES:
        return None, position + SIZES[kind]
    if kind in LISTS:
        return _read_list(data, position, None, depth=depth)
    raise DamagedArchiveError(NO_FOOTER)


def _read_list(data: bytes, position: int, known: tuple[int, ...] | None, *, depth: int) -> tuple[list[Any], int]:
    """Return the structs in a list, and the position after it.

    Args:
        known: The types of which one must be that of the elements, since Arrow reads it.
    """
    count, kind = data[position] >> 4, data[position] & 15
    position += 1
    if count == 15:
        count, position = read_varint(data, position)
    if count and known and kind not in known:
        raise DamagedArchiveError(NO_FOOTER)
    structs = list[Any]()
    for _ in range(count):
        data[position]  # Elements of a fixed size beyond the end would be counted for ever.
        value, position = _read_value(data, position, BYTE if kind in BOOLEANS else kind, depth=depth + 1)
        if depth == 0 and kind == STRUCT and len(structs) <= MAX_COLUMNS:
            structs.append(value)
    return structs, position


def _read_number(data: bytes, position: int) -> tuple[int, int]:
    """Return a whole number as Arrow takes it, of 32 bits, and the position after it."""
    number, position = read_varint(data, position)
    number &= 0xFFFFFFFF
    return number >> 1 ^ -(number & 1), position
