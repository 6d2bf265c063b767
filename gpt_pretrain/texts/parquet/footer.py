"""Check the footer of a Parquet file before Arrow reads it, since a small footer can take gigabytes or end the process.

Arrow makes a path for each column, which repeats the names of all groups around the column. For each element of a list, it
allocates a whole struct, although the element may have only three bytes in the file. pyarrow (26.0.1) does not catch what Arrow
throws in `RowGroupMetaData.column` and `ColumnChunkMetaData.compression`, so that the process ends.

Source: FileMetaData, SchemaElement, ColumnChunk and SizeStatistics in apache/parquet-format's parquet.thrift, in the compact
protocol of Apache Thrift.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from gpt_pretrain.texts.containers.decompression import DamagedArchiveError
from gpt_pretrain.texts.parquet.pages import field_number, read_number, read_varint

MAX_COLUMNS = 100_000  # columns and groups together
MAX_PATHS = 20_000_000  # bytes of all paths together; ten thousand columns with long names take a tenth
END = 8  # bytes at the end of the file: the footer's length and a mark
# Types of the compact protocol.
BOOLEANS, BYTE, INT, NUMBERS, BINARY, LIST, LISTS, STRUCT = (1, 2), 3, 5, (4, 5, 6), 8, 9, (9, 10), 12
SIZES = {BYTE: 1, 7: 8}  # bytes of the types that have a fixed size: a byte and a double
DEEPEST = 12  # levels of structs and lists within one another
# The fields that are read here, each with its type. Arrow skips a field of another type.
SCHEMA, NAME, CHILDREN, TYPE, REPETITION = (2, LIST), (4, BINARY), (5, INT), (1, INT), (3, INT)
OPTIONAL, REPEATED = 1, 2  # values of REPETITION
# The list of columns in a row group by its depth and field, and what can make a column unreadable by the fields that lead to it.
COLUMNS, IN_COLUMN = (2, 1), 4
ENCRYPTED, CODEC, HISTOGRAMS = [8, 2], [3, 4], ([3, 16, 2], [3, 16, 3])
DETAILS = {(ENCRYPTED[-1], STRUCT), (CODEC[-1], INT)}
TEXT_SIZE, LONG = [3, 16, 1], 6  # of a column of type BYTE_ARRAY, as a number of this type
BYTE_ARRAY = 6  # a value of TYPE
KNOWN_CODECS = range(8)
# The types of the elements in the lists that Arrow reads, by the depth of the struct and the number of the field.
ELEMENTS = {
    **dict.fromkeys([(0, 2), (0, 4), (0, 5), (0, 7), (2, 1), (2, 4), (5, 8), (5, 13)], (STRUCT,)),
    **dict.fromkeys([(5, 3), (6, 1)], (BINARY,)),
    **dict.fromkeys([(5, 2), (6, 2), (6, 3)], NUMBERS),
}
HISTOGRAM_LISTS = ((6, 2), (6, 3))
NOWHERE = (-1, -1)  # the depth and field of a list within a list
# Bytes of memory that Arrow (26) takes for an element of a list: for a struct by its depth and field, for others by their type.
STRUCTS, ANY_STRUCT = {(0, 2): 200, (0, 4): 150, (2, 1): 640}, 100
OTHERS, ANY_OTHER = {BINARY: 40}, 8
# Arrow may take FREE_MEMORY, and MEMORY_PER_BYTE for each byte of the footer. An honest column of a row group has 60 bytes there.
FREE_MEMORY, MEMORY_PER_BYTE = 64_000_000, 12
NO_FOOTER = "what should be its footer is something else"
IS_ENCRYPTED = "a column is encrypted. Write the file anew without encryption"
UNKNOWN_CODEC = "a column has an unknown kind of compression"
WRONG_HISTOGRAM = "the statistics of a column do not fit its nulls and lists"

Fields = dict[tuple[int, int], Any]


def check_footer(stream: BinaryIO | io.RawIOBase) -> dict[int, str]:
    """Check that the paths of all columns, and the lists in the footer, fit into memory.

    The footer is read to its end, since Arrow takes the last list of columns in it. Whatever no program writes is refused, since
    Arrow may read it in another way than this function.

    Returns:
        For each column that must not be touched, since it would end the process, what is wrong with it.

    Raises:
        DamagedArchiveError: If they do not fit, or the footer is not valid.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - END, 0))
    end = stream.read(END)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or length > size - END:
        return {}
    stream.seek(size - END - length)
    try:
        reader = _Reader(stream.read(length))
        elements = reader.read_struct(0, depth=0)[0].get(SCHEMA) or []
    except IndexError:
        raise DamagedArchiveError(NO_FOOTER) from None
    if len(elements) > MAX_COLUMNS:
        raise DamagedArchiveError(f"it has more than {MAX_COLUMNS:,} columns")
    levels = _measure_columns(elements)
    wrong = {
        column for column, field, count in reader.histograms if column < len(levels) and count != levels[column][field - 2] + 1
    }
    wrong |= {column for column in reader.text_sizes if column < len(levels) and levels[column][2] != BYTE_ARRAY}
    return dict.fromkeys(wrong, WRONG_HISTOGRAM) | reader.unreadable


def _measure_columns(elements: list[Fields]) -> list[tuple[int, int, int]]:
    """Check the lengths of the columns' paths, and return each column's highest repetition and definition levels and its type."""
    # For each open group: the number of children that are still to come, the length of its path, and its levels.
    total, groups, columns = 0, list[list[int]](), list[tuple[int, int, int]]()
    for number, element in enumerate(elements):
        name, children, repetition = element.get(NAME, 0), element.get(CHILDREN, 0), element.get(REPETITION)
        path, repeated, defined = groups[-1][1:] if groups else (0, 0, 0)
        if number:
            path += name + 1
            repeated += repetition == REPEATED
            defined += repetition in (OPTIONAL, REPEATED)
        if groups:
            groups[-1][0] -= 1
        if children > 0:
            groups.append([children, path, repeated, defined])
        else:
            total += path
            if children == 0 and TYPE in element:  # Arrow takes anything else for a group without columns.
                columns.append((repeated, defined, element[TYPE]))
        while groups and groups[-1][0] <= 0:
            groups.pop()
        if total > MAX_PATHS:
            raise DamagedArchiveError(f"the names of its columns, with those of their groups, take more than {MAX_PATHS:,} bytes")
    return columns


class _Reader:
    """Reads the structs of a footer, and counts the memory that Arrow would take for them.

    Attributes:
        histograms: The column, field and length of each histogram of levels that is not empty.
        text_sizes: The columns for which the size of their texts is stated.
        unreadable: For each column that must not be touched, what is wrong with it.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._memory = FREE_MEMORY + MEMORY_PER_BYTE * len(data)
        self._column, self._path = 0, dict[int, int]()  # the present column of a row group, and the present field at each depth
        self.text_sizes = set[int]()
        self.histograms, self.unreadable = set[tuple[int, int, int]](), dict[int, str]()

    def read_struct(self, position: int, *, depth: int) -> tuple[Fields, int]:
        """Return the fields SCHEMA to REPETITION of a struct, and the position after it. A text is given by its length.

        Raises:
            IndexError: If the data end within the struct.
            DamagedArchiveError: If the struct is not valid, or contains something that no footer contains.
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
            self._path[depth] = field
            if kind in LISTS:
                value, position = self._read_list(position, (depth, field), depth=depth)
            else:
                value, position = self._read_value(position, kind, depth=depth)
            if (field, kind) in (SCHEMA, NAME, CHILDREN, TYPE, REPETITION):
                fields[field, kind] = value
            if depth == IN_COLUMN + 1 and (field, kind) in DETAILS:
                self._check_column(kind, value)
            if depth == IN_COLUMN + 2 and (field, kind) == (TEXT_SIZE[-1], LONG) and self._fields_in_column(depth) == TEXT_SIZE:
                self.text_sizes.add(self._column)
        return fields, position + 1

    def _check_column(self, kind: int, value: Any) -> None:
        """Note whether a field in the details of a column, which has just been read, makes the column unreadable."""
        path = self._fields_in_column(IN_COLUMN + 1)
        if path == ENCRYPTED and kind == STRUCT:
            self.unreadable[self._column] = IS_ENCRYPTED
        elif path == CODEC and kind == INT and value not in KNOWN_CODECS:
            self.unreadable[self._column] = UNKNOWN_CODEC

    def _fields_in_column(self, depth: int) -> list[int | None]:
        return [self._path.get(upper) for upper in range(IN_COLUMN, depth + 1)]

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

    def _read_list(self, position: int, key: tuple[int, int], *, depth: int) -> tuple[list[Any], int]:
        """Return the structs in a list, and the position after it.

        Args:
            key: The depth and the field of the list. It is in ELEMENTS if Arrow reads the list.
        """
        count, kind = self._data[position] >> 4, self._data[position] & 15
        position += 1
        if count == 15:
            count, position = read_varint(self._data, position)
        # Each element has at least one byte. Without this check, elements beyond the end would be counted forever.
        if count > len(self._data) - position or (count and key in ELEMENTS and kind not in ELEMENTS[key]):
            raise DamagedArchiveError(NO_FOOTER)
        self._memory -= count * (STRUCTS.get(key, ANY_STRUCT) if kind == STRUCT else OTHERS.get(kind, ANY_OTHER))
        if self._memory < 0:
            raise DamagedArchiveError("its list of columns would take far more memory than the file explains")
        if count and key in HISTOGRAM_LISTS and self._fields_in_column(key[0]) in HISTOGRAMS:
            self.histograms.add((self._column, key[1], count))
        structs = list[Any]()
        for number in range(count):
            if key == COLUMNS:
                self._column = number
            value, position = self._read_value(position, BYTE if kind in BOOLEANS else kind, depth=depth + 1)
            if depth == 0 and kind == STRUCT and len(structs) <= MAX_COLUMNS:
                structs.append(value)
        return structs, position
