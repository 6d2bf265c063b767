"""Check a Parquet file's footer before Arrow reads it, and makes the path of each column from it.

A path repeats the names of all groups that a column is in, so a file of 200 KB could make Arrow take gigabytes. So could a list
of columns with nothing but three bytes for each, for which Arrow has all that it may say of one.

Source: FileMetaData and SchemaElement in apache/parquet-format's parquet.thrift, in the compact protocol of Apache Thrift.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from gpt_pretrain.texts.decompression import DamagedArchiveError
from gpt_pretrain.texts.parquet_pages import field_number, read_number, read_varint

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
NOWHERE = (-1, -1)  # of a list within a list
# Bytes of memory that Arrow (26) takes for an element of a list: of structs by the depth and the field, of others by their type.
STRUCTS, ANY_STRUCT = {(0, 2): 200, (0, 4): 150, (2, 1): 640}, 100
OTHERS, ANY_OTHER = {BINARY: 40}, 8
# Arrow may take so many bytes, and so many for each byte of the footer. A column of a row group takes 60 there.
FREE_MEMORY, MEMORY_PER_BYTE = 64_000_000, 12
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
        elements = _Reader(stream.read(length)).read_struct(0, depth=0)[0].get(SCHEMA)
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


class _Reader:
    """Reads the structs of a footer, and counts the memory that Arrow will take for them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._memory = FREE_MEMORY + MEMORY_PER_BYTE * len(data)

    def read_struct(self, position: int, *, depth: int) -> tuple[Fields, int]:
        """Return those of the three fields that a struct has, and the position after it. The value of a text is its length.

        Raises:
            IndexError: If the data end before it.
            DamagedArchiveError: If it is not valid, or something that no footer contains.
        """
        data, fields, field = self._data, Fields(), 0
        while (mark := data[position]) != 0:
            step, kind = mark >> 4, mark & 15
            position += 1
            if not step:
                step, position = read_number(data, position)
                field = 0
            field = field_number(field + step)
            if kind in BOOLEANS:
                continue
            if kind in LISTS:
                value, position = self._read_list(position, (depth, field), depth=depth)
            else:
                value, position = self._read_value(position, kind, depth=depth)
            if (field, kind) in (SCHEMA, NAME, CHILDREN):
                fields[field, kind] = value
        return fields, position + 1

    def _read_value(self, position: int, kind: int, *, depth: int) -> tuple[Any, int]:
        if depth > DEEPEST:
            raise DamagedArchiveError(NO_FOOTER)
        if kind in NUMBERS:
            return read_number(self._data, position)
        if kind == BINARY:
            length, position = read_varint(self._data, position)
            return length, position + length
        if kind == STRUCT:
            return self.read_struct(position, depth=depth + 1)
        if kind in SIZES:
            return None, position + SIZES[kind]
        if kind in LISTS:
            return self._read_list(position, NOWHERE, depth=depth)
        raise DamagedArchiveError(NO_FOOTER)

    def _read_list(self, position: int, place: tuple[int, int], *, depth: int) -> tuple[list[Any], int]:
        """Return the structs in a list, and the position after it.

        Args:
            place: The depth and the field of the list. They determine the type of the elements of a list that Arrow reads.
        """
        count, kind = self._data[position] >> 4, self._data[position] & 15
        position += 1
        if count == 15:
            count, position = read_varint(self._data, position)
        # Each element has a byte at least. Those of a fixed size beyond the end would be counted for ever.
        if count > len(self._data) - position or (count and place in ELEMENTS and kind not in ELEMENTS[place]):
            raise DamagedArchiveError(NO_FOOTER)
        self._memory -= count * (STRUCTS.get(place, ANY_STRUCT) if kind == STRUCT else OTHERS.get(kind, ANY_OTHER))
        if self._memory < 0:
            raise DamagedArchiveError("its list of columns would take far more memory than the file explains")
        structs = list[Any]()
        for _ in range(count):
            value, position = self._read_value(position, BYTE if kind in BOOLEANS else kind, depth=depth + 1)
            if depth == 0 and kind == STRUCT and len(structs) <= MAX_COLUMNS:
                structs.append(value)
        return structs, position
