"""Decide how many rows of a Parquet file are read at a time, so that a small file does not fill the memory.

What the footer of the file says of sizes, numbers and dictionaries is not used for it: Arrow doesn't need it to be true.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from gpt_pretrain.texts.chunks import BATCH, LONGEST_RECORD
from gpt_pretrain.texts.decompression import MAX_EXPANSION, ContentLimit, DamagedArchiveError
from gpt_pretrain.texts.parquet_pages import DATA, DATA_V2, DICTIONARY, NO_PAGES, ParquetPage, read_pages, read_varint

MAX_ROWS, ROWS_MEMORY = 64, LONGEST_RECORD // 2  # Rows and bytes read at a time. One row may be as long as a page.
# A page is in memory as a whole. Text is compressed to a tenth; a page that is compressed more is smaller than a record may be.
MAX_PAGE_EXPANSION = 20
MAX_LENGTHS = 1 << 22  # Of the values of a page, if they stand before all values, as numbers that may take no space.
SMALLEST_BLOCK, SMALLEST_PART = 128, 32  # Such numbers of a block, and of one of its parts.
EXPANDED = f"its text is more than {MAX_EXPANSION} times as large as the file"
EXPANDED_PAGE = f"a part of it expands to more than {LONGEST_RECORD >> 20} MB and {MAX_PAGE_EXPANSION} times its size"
# Encodings: one value after the other; lengths, then values; and lengths of what begins as the value before and of the rest.
PLAIN, LENGTHS_FIRST, SHARED_BEGINNINGS = 0, 6, 7


def read_few_rows(
    table: Any, stream: BinaryIO | io.RawIOBase, *, group: int, column: int, limit: ContentLimit
) -> Iterator[tuple[Any, int]]:
    """Yield the rows of a column in a row group of a Parquet file, as many at a time as fit into memory.

    Each time, the bytes of all pages are yielded with them.

    Args:
        table: A ParquetFile of pyarrow.
        stream: The same file.
        limit: Of what the file expands to. The pages are counted before anything is yielded, whatever texts are in them.

    Raises:
        DamagedArchiveError: If a page is far larger than its part of the file, or all pages together than the file.
    """
    stated, leaf = table.metadata.row_group(group), table.schema.column(column)
    usual = min(max(BATCH * stated.num_rows // max(stated.total_byte_size, 1), 1), MAX_ROWS)
    fitting, n_bytes = _rows_at_a_time(stream, stated.column(column), is_nullable=leaf.max_definition_level > 0, limit=limit)
    for batch in table.iter_batches(min(usual, fitting), row_groups=[group], columns=[leaf.path], use_threads=False):
        yield batch, n_bytes


def _rows_at_a_time(stream: BinaryIO | io.RawIOBase, column: Any, *, is_nullable: bool, limit: ContentLimit) -> tuple[int, int]:
    """Return how many rows fit into memory even if all of them are the longest that a page of the column allows.

    The second number is that of the bytes of all pages.
    """
    longest, n_bytes = 1, 0
    for page in read_pages(stream, column):
        if page.size > max(LONGEST_RECORD + BATCH, MAX_PAGE_EXPANSION * page.compressed):
            raise DamagedArchiveError(EXPANDED_PAGE)
        limit.take(page.size, EXPANDED)
        n_bytes += page.size
        if is_nullable and not page.has_sized_levels:
            raise DamagedArchiveError(NO_PAGES)
        if page.encoding in (LENGTHS_FIRST, SHARED_BEGINNINGS) and page.kind != DICTIONARY:
            for values in decompress_values(stream, page, column):
                levels = 0 if page.kind == DATA_V2 or not is_nullable else 4 + int.from_bytes(values[:4], "little")
                _check_lengths(values[levels:], n_lists=1 + (page.encoding == SHARED_BEGINNINGS))
        # A few bytes of another encoding may stand for a long value that occurs elsewhere.
        is_plain = page.encoding in (PLAIN, LENGTHS_FIRST) and page.kind != DICTIONARY
        longest = max(longest, page.size // max(page.n_values, 1) if is_plain else page.size)
    return min(max(ROWS_MEMORY // longest, 1), MAX_ROWS), n_bytes


def decompress_values(stream: BinaryIO | io.RawIOBase, page: ParquetPage, column: Any) -> Iterator[bytes]:
    """Yield what the values of a page are in memory, also in the ways in which only some versions of Arrow read it."""
    import pyarrow as pa

    stream.seek(page.start + page.levels)
    data = stream.read(page.compressed - page.levels)
    is_surely_compressed = column.compression != "UNCOMPRESSED" and (page.kind == DATA or page.says_compressed)
    if not is_surely_compressed:
        yield data
    if column.compression == "UNCOMPRESSED":
        return
    # In the older of two formats, sizes stand before the content; Arrow takes whatever looks like it for this one.
    if column.compression == "LZ4" and int.from_bytes(data[4:8], "big") <= len(data) - 8:
        raise DamagedArchiveError("an old form of LZ4 is not supported here; write the file anew with another compression")
    try:
        codec = pa.Codec("lz4_raw" if column.compression == "LZ4" else column.compression.lower())
        yield codec.decompress(data, decompressed_size=page.content - page.levels, asbytes=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        if is_surely_compressed:
            raise DamagedArchiveError(f"a part of it cannot be decompressed: {error}") from error


def _check_lengths(values: bytes, *, n_lists: int) -> None:
    """Check that a page has no more lengths than fit into memory, since Arrow decodes all of them at once.

    Args:
        values: The values of the page, which begin with this many lists of lengths.

    Source: DELTA_BINARY_PACKED in apache/parquet-format's Encodings.md.
    """
    position = 0
    try:
        for _ in range(n_lists):
            block, position = _read_unsigned(values, position)
            n_parts, position = _read_unsigned(values, position)
            count, position = _read_unsigned(values, position)
            _, position = read_varint(values, position)
            if max(count, n_parts) > MAX_LENGTHS:
                raise DamagedArchiveError(f"a part of it has more than {MAX_LENGTHS:,} texts")
            # Many parts of a block, of which each has a byte, would be counted again for each block.
            if block < SMALLEST_BLOCK or block // n_parts < SMALLEST_PART:
                raise DamagedArchiveError(NO_PAGES)
            left = count - 1
            while left > 0:
                _, position = read_varint(values, position)
                widths = values[position : position + n_parts]
                position += len(widths)
                for width in widths[: -(-left // (block // n_parts))]:
                    position += width * (block // n_parts) // 8
                left -= block
    except (IndexError, ZeroDivisionError):
        raise DamagedArchiveError(NO_PAGES) from None


def _read_unsigned(values: bytes, position: int) -> tuple[int, int]:
    """Return a number as Arrow takes it, of 32 bits, and the position after it."""
    number, position = read_varint(values, position)
    return number & 0xFFFFFFFF, position
