"""Decide how many rows of a Parquet file are read at a time, so that a small file does not fill the memory."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, BinaryIO

from gpt_pretrain.texts.chunks import BATCH, LONGEST_RECORD
from gpt_pretrain.texts.decompression import MAX_EXPANSION, DamagedArchiveError, max_content

MAX_ROWS = 64  # Rows read at a time. One of them may be as long as the rest of its row group.
SUSPICIOUS = 50  # Text is compressed to a tenth; a column that is compressed more is read row by row.
FIELD, LONGEST_HEADER = b"\x15", 64  # In a page's header: the next field is a whole number; bytes that hold the first two.
EXPANDED = f"its text is more than {MAX_EXPANSION} times as large as the file"
TEXT = "BYTE_ARRAY"  # The only type whose values may have any size.


def rows_at_a_time(source: str | BinaryIO, size: int, column: Any) -> int:
    """Return how many rows of a column fit into memory even if all of them are the longest entry of its dictionary.

    Args:
        source: The file, of `size` bytes.
        column: The metadata of the column in a row group; None if it has parts, as a list has.

    Raises:
        DamagedArchiveError: If the dictionary alone is far larger than the file.
    """
    if column is None or column.total_uncompressed_size > SUSPICIOUS * max(column.total_compressed_size, 1):
        return 1
    if not column.has_dictionary_page:
        return MAX_ROWS
    with open(source, "rb") if isinstance(source, str) else nullcontext(source) as stream:
        before = stream.tell()
        stream.seek(column.dictionary_page_offset)
        header = stream.read(LONGEST_HEADER)
        stream.seek(before)
    dictionary = _page_size(header)
    if dictionary > max_content(size):
        raise DamagedArchiveError(EXPANDED)
    return min(max(LONGEST_RECORD // max(dictionary, 1), 1), MAX_ROWS)


def read_few_rows(_: Callable[..., Any]) -> Callable[..., Any]:
    """Replace the method by which datasets 5.2 reads Parquet files; it takes a row group at a time, however large it is."""

    def generate_few(builder: Any, files: Any, row_groups_list: Any) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from datasets.builder import Key

        opened = vars(sys.modules[type(builder).__module__]).get("open", open)  # that of datasets, for URLs and archives
        filters = builder.config.filters
        expression = pq.filters_to_expression(filters) if isinstance(filters, list) else filters
        for file_index, (file, row_groups) in enumerate(zip(files, row_groups_list, strict=True)):
            with opened(file, "rb") as stream:
                batch_indices = itertools.count()
                for batch in _few_rows(stream, row_groups, builder.config.columns):
                    table = pa.Table.from_batches([batch])
                    table = table if expression is None else table.filter(expression)
                    yield Key(file_index, next(batch_indices)), builder._cast_table(table)

    return generate_few


def _few_rows(stream: BinaryIO, row_groups: Any, columns: list[str] | None) -> Iterator[Any]:
    """Yield the rows of some row groups, or all, of an open file."""
    import pyarrow.parquet as pq

    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    table = pq.ParquetFile(stream)
    for number in range(table.num_row_groups) if row_groups is None else row_groups:
        group = table.metadata.row_group(number)
        batch_size = min(max(BATCH * group.num_rows // max(group.total_byte_size, 1), 1), MAX_ROWS)
        texts = [column for column in map(group.column, range(group.num_columns)) if column.physical_type == TEXT]
        batch_size = min([batch_size, *(rows_at_a_time(stream, size, column) for column in texts)])
        yield from table.iter_batches(batch_size, row_groups=[number], columns=columns, use_threads=False)


def _page_size(header: bytes) -> int:
    """Return the size in bytes that a page has in memory, from the second number in its header.

    Source: PageHeader in apache/parquet-format's parquet.thrift; a number has seven bits in each byte, and its sign in the last.
    """
    numbers, position = list[int](), 0
    for _ in range(2):
        if header[position : position + 1] != FIELD:
            return LONGEST_RECORD  # An unknown form of the header allows one row at a time.
        number = shift = 0
        while True:
            position += 1
            byte = header[position] if position < len(header) else 0
            number, shift = number | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        position += 1
        numbers.append(number >> 1)
    return numbers[1]
