"""Read small Parquet files of a dataset with all their columns. datasets 5.2 would read files of any size.

Before a row group is read, the headers of its pages tell how much memory it can take at most.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from gpt_pretrain.texts.containers.decompression import ContentLimit, DamagedArchiveError
from gpt_pretrain.texts.parquet.footer import check_footer
from gpt_pretrain.texts.parquet.pages import DICTIONARY, check_parts, read_pages
from gpt_pretrain.texts.parquet.rows import EXPANDED, LENGTHS_FIRST, PLAIN, SHARED_BEGINNINGS, decompress_values

MAX_TABLE_FILE, MAX_TABLE_MEMORY = 1 << 28, 1 << 29  # bytes of a file, and of a row group in memory
VALUE = 16  # bytes of memory that any value takes: itself and its levels, or the offsets of a text
DICTIONARY_TEXT = 160  # To limit time as well as memory, each text in a dictionary counts as this many bytes.
TEXT, LENGTH = "BYTE_ARRAY", 4  # the type whose values have any length, and the bytes of the length before each value
TOO_LARGE = f"a part of it needs more than {MAX_TABLE_MEMORY >> 20} MB of memory"


def read_small_tables(_: Callable[..., Any]) -> Callable[..., Any]:
    """Return a replacement for the method of datasets that reads Parquet files."""

    def generate_tables(builder: Any, files: Any, row_groups_list: Any) -> Iterator[Any]:
        import pyarrow.parquet as pq
        from datasets.builder import Key

        opened = vars(sys.modules[type(builder).__module__]).get("open", open)  # datasets has its own, for URLs and archives
        for number, (file, row_groups) in enumerate(zip(files, row_groups_list, strict=True)):
            with opened(file, "rb") as remote:
                data = remote.read(MAX_TABLE_FILE + 1)
            if len(data) > MAX_TABLE_FILE:
                raise DamagedArchiveError(f"it has a file of more than {MAX_TABLE_FILE >> 20} MB")
            stream = io.BytesIO(data)
            unreadable = check_footer(stream)
            table = pq.ParquetFile(stream)
            check_parts(table.metadata, range(table.metadata.num_columns), size=len(data), unreadable=unreadable)
            limit = ContentLimit(len(data))
            for group in range(table.num_row_groups) if row_groups is None else row_groups:
                check_row_group(stream, table.metadata.row_group(group), limit=limit)
                yield Key(number, group), builder._cast_table(table.read_row_group(group, use_threads=False))

    return generate_tables


def check_row_group(stream: BinaryIO, group: Any, *, limit: ContentLimit) -> None:
    """Check that all columns of a row group fit into memory together.

    Args:
        stream: The file.
        group: The metadata of the row group.
        limit: Limits what the file expands to.

    Raises:
        DamagedArchiveError: If they do not fit, or the encoding of a column hides its size.
    """
    left = MAX_TABLE_MEMORY
    for index in range(group.num_columns):
        column = group.column(index)
        longest = VALUE
        for page in read_pages(stream, column):
            limit.take(page.size + DICTIONARY_TEXT * page.n_values * (page.kind == DICTIONARY), EXPANDED)
            left -= page.size
            if page.kind != DICTIONARY:
                is_plain = page.encoding == PLAIN
                left -= page.n_values * (VALUE if is_plain else longest)
            if left < 0:
                raise DamagedArchiveError(TOO_LARGE)
            if page.kind == DICTIONARY and column.physical_type == TEXT:
                contents = decompress_values(stream, page, column)
                longest += max((_longest_text(values, page.n_values) for values in contents), default=0)
            elif page.encoding in (LENGTHS_FIRST, SHARED_BEGINNINGS):
                raise DamagedArchiveError("it has an encoding that is not supported here")


def _longest_text(values: bytes, count: int) -> int:
    """Return the length of the longest text in a dictionary. Each text follows its length, and Arrow reads `count` of them."""
    longest, position = 0, 0
    for _ in range(count):
        if position + LENGTH > len(values):
            break
        length = int.from_bytes(values[position : position + LENGTH], "little")
        position += LENGTH + length
        if position <= len(values):
            longest = max(longest, length)
    return longest
