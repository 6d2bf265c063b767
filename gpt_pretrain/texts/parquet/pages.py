"""Read the headers of the pages in a Parquet file, which say what each page expands to. The footer need not be true.

Source: PageHeader in apache/parquet-format's parquet.thrift, in the compact protocol of Apache Thrift.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from gpt_pretrain.texts.containers.decompression import DamagedArchiveError

DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # types of pages that Arrow reads
# Fields of a page's header: its type, its size in memory and its size in the file.
KIND, SIZE, COMPRESSED = 1, 2, 3
# For each type of page: the field of the header with its details, and the fields of these with the number of values and the
# encoding.
DETAILS = {DATA: (5, 1, 2), DICTIONARY: (7, 1, 2), DATA_V2: (8, 1, 4)}
LEVELS, IS_COMPRESSED = (5, 6), 7  # further fields in the details of a DATA_V2 page
# The field in the details of a DATA page with the encoding of its levels, which say what is null; and the encoding of today.
LEVEL_ENCODING, RLE = 3, 3
LATE = 100  # Arrow reads this many bytes beyond a column, since some programs counted the dictionary's header wrongly.
HEADER_SIZES = (1 << 8, 1 << 14, 1 << 20)  # sizes of a header that are tried, in bytes; only statistics make it long
# Types of values in the compact protocol.
TRUE, FALSE, BYTE, SHORT, INT, LONG, BINARY, STRUCT = 1, 2, 3, 4, 5, 6, 8, 12
DEEPEST = 3
NO_PAGES = "what should be its pages is something else"


@dataclass(frozen=True)
class ParquetPage:
    """A page of a column.

    Args:
        start: Offset of its content in the file.
        size: Bytes in memory, as Arrow holds it.
        compressed: Bytes in the file.
        content: Bytes of the decompressed content.
        n_values: Number of values, including nulls.
        encoding: The encoding of the values.
        kind: DATA, DICTIONARY or DATA_V2.
        levels: Bytes of the levels, which say what is null. In a DATA_V2 page, they precede the values and are not compressed.
        says_compressed: Whether a DATA_V2 page says that its values are compressed.
        has_sized_levels: Whether the levels begin with their size, as in all but very old DATA pages.
    """

    start: int
    size: int
    compressed: int
    content: int
    n_values: int
    encoding: int | None
    kind: int
    levels: int = 0
    says_compressed: bool = False
    has_sized_levels: bool = True


def column_range(column: Any) -> tuple[int, int]:
    """Return the offset at which Arrow begins to read a column of a row group, and the most bytes that it reads."""
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    return start, column.total_compressed_size + LATE


def check_parts(metadata: Any, columns: Collection[int], *, size: int, unreadable: dict[int, str]) -> None:
    """Check that columns can be read, and that their parts in all row groups are together no larger than the file.

    Otherwise, a small file could list one part many times, and it would be read each time.

    Args:
        unreadable: What is wrong with the columns that cannot be read, as `check_footer` returns it.

    Raises:
        DamagedArchiveError: If they are larger, a row group has other columns than the file, or a column cannot be read.
    """
    if found := [unreadable[column] for column in columns if column in unreadable]:
        raise DamagedArchiveError(found[0])
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if any(group.num_columns != metadata.num_columns for group in groups):
        raise DamagedArchiveError("a part of it has more or fewer columns than the whole")
    if sum(max(group.column(column).total_compressed_size, 0) for column in columns for group in groups) > size:
        raise DamagedArchiveError("its parts are together larger than the file")


def read_pages(stream: BinaryIO | io.RawIOBase, column: Any) -> Iterator[ParquetPage]:
    """Yield the pages that Arrow reads for a column of a row group.

    Raises:
        DamagedArchiveError: If something else is in their place.
    """
    position, length = column_range(column)
    end, n_values = position + length, 0
    while n_values < column.num_values and position < end:
        header, header_size = read_page_header(stream, position)
        kind, size, compressed = header.get(KIND), header.get(SIZE), header.get(COMPRESSED)
        if type(kind) is not int or type(size) is not int or type(compressed) is not int or min(size, compressed) < 0:
            raise DamagedArchiveError(NO_PAGES)
        if compressed > length:  # Arrow would allocate the stated size before it finds the end of the file.
            raise DamagedArchiveError(NO_PAGES)
        position += header_size + compressed
        if kind not in DETAILS:
            continue
        details_field, count_field, encoding_field = DETAILS[kind]
        details = header.get(details_field)
        count = details.get(count_field) if isinstance(details, dict) else None
        if not isinstance(details, dict) or type(count) is not int or count < 0:
            raise DamagedArchiveError(NO_PAGES)
        n_values += count if kind != DICTIONARY else 0
        start, in_memory = position - compressed, max(size, compressed)
        page = ParquetPage(start, in_memory, compressed, size, count, details.get(encoding_field), kind)
        if kind == DATA:
            page = replace(page, has_sized_levels=details.get(LEVEL_ENCODING) == RLE)
        if kind == DATA_V2:
            levels = sum(max(details.get(field) or 0, 0) for field in LEVELS)
            if levels > min(size, compressed):
                raise DamagedArchiveError(NO_PAGES)
            page = replace(page, levels=levels, says_compressed=details.get(IS_COMPRESSED) is True)
        yield page


def read_page_header(stream: BinaryIO | io.RawIOBase, position: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the header at a position, and its size."""
    for size in HEADER_SIZES:
        stream.seek(position)
        data = stream.read(size)
        try:
            return _read_struct(data, 0, depth=1)
        except IndexError:
            if len(data) < size:
                break
    raise DamagedArchiveError(NO_PAGES)


def _read_struct(data: bytes, position: int, *, depth: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct, and the position after it. Only structs, booleans and whole numbers of 32 bits get a value.

    Raises:
        IndexError: If the data end within the struct.
        DamagedArchiveError: If the struct is not valid, or contains something that no page header contains.
    """
    fields, field = dict[int, Any](), 0
    while (mark := data[position]) != 0:
        position += 1
        kind, step = mark & 15, mark >> 4
        if step == 0:
            field, position = read_number(data, position)
        field = field_number(field + step)
        if field in fields or depth > DEEPEST:
            raise DamagedArchiveError(NO_PAGES)
        value: Any = None
        if kind == STRUCT:
            value, position = _read_struct(data, position, depth=depth + 1)
        elif kind in (SHORT, INT, LONG):
            number, position = read_number(data, position)
            value = number if kind == INT else None
        elif kind == BINARY:
            length, position = read_varint(data, position)
            position += length
        elif kind == BYTE:
            position += 1
        elif kind in (TRUE, FALSE):
            value = kind == TRUE
        else:
            raise DamagedArchiveError(NO_PAGES)
        fields[field] = value
    return fields, position + 1


def field_number(number: int) -> int:
    """Return the number of a field as Arrow reads it: cut to a signed number of 16 bits.

    There are too few such numbers to slow a dict down by collisions.
    """
    return (number + (1 << 15)) % (1 << 16) - (1 << 15)


def read_number(data: bytes, position: int) -> tuple[int, int]:
    """Return a signed number as Arrow reads it, and the position after it. It has 32 bits, and the lowest one is the sign."""
    number, position = read_varint(data, position)
    number &= 0xFFFFFFFF
    return number >> 1 ^ -(number & 1), position


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number of up to 64 bits, and the position after it. Each byte holds seven bits."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise DamagedArchiveError(NO_PAGES)
