"""Decide how many rows of a Parquet file are read at a time, so that a small file does not fill the memory.

The headers of the pages decide, not the footer: Arrow also reads a file whose footer states wrong sizes and numbers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from gpt_pretrain.texts.chunks import BATCH, LONGEST_RECORD
from gpt_pretrain.texts.containers.decompression import MAX_EXPANSION, ContentLimit, DamagedArchiveError
from gpt_pretrain.texts.parquet.pages import DATA, DATA_V2, DICTIONARY, NO_PAGES, ParquetPage, read_pages, read_varint

MAX_ROWS, ROWS_MEMORY = 64, LONGEST_RECORD // 2  # rows and bytes read at a time, but at least one row
# A page is in memory as a whole. If it expands further than this, it must not be larger than a record. Text expands tenfold.
MAX_PAGE_EXPANSION = 20
# If the lengths of all values in a page precede the values, they are encoded as numbers that may take no space at all.
MAX_LENGTHS = 1 << 22
SMALLEST_BLOCK, SMALLEST_PART = 128, 32  # numbers in a block of lengths, and in one of its parts
EXPANDED = f"its text is more than {MAX_EXPANSION} times as large as the file"
EXPANDED_PAGE = f"a part of it expands to more than {LONGEST_RECORD >> 20} MB and {MAX_PAGE_EXPANSION} times its size"
# Encodings: each value after its length; all lengths, then all values; and two lists of lengths, for the part that a value shares
# with the one before and for the rest, then all rests.
PLAIN, LENGTHS_FIRST, SHARED_BEGINNINGS = 0, 6, 7


def read_few_rows(
    table: Any, stream: BinaryIO | io.RawIOBase, *, group: int, column: int, limit: ContentLimit
) -> Iterator[tuple[Any, int]]:
    """Yield the rows of a column in a row group of a Parquet file, as many at a time as fit into memory.

    The number of bytes in all pages is yielded along with each batch of rows.

    Args:
        table: A ParquetFile of pyarrow.
        stream: The same file.
        limit: Limits what the file expands to. All pages are counted before the first rows are yielded.

    Raises:
        DamagedArchiveError: If a page expands too far, or all pages together do.
    """
    stated, leaf = table.metadata.row_group(group), table.schema.column(column)
    usual = min(max(BATCH * stated.num_rows // max(stated.total_byte_size, 1), 1), MAX_ROWS)
    fitting, n_bytes = _rows_at_a_time(stream, stated.column(column), is_nullable=leaf.max_definition_level > 0, limit=limit)
    for batch in table.iter_batches(min(usual, fitting), row_groups=[group], columns=[leaf.path], use_threads=False):
        yield batch, n_bytes


def text_values(batch: Any, fields: list[str]) -> list[Any]:
    """Return the values of the first column, or of the field in its structs that the other names lead to.

    A null struct gives a null. If a value is not UTF-8, all are returned as bytes.
    """
    column = batch.column(0)
    for field in fields[1:]:
        column = column.flatten()[[part.name for part in column.type].index(field)]
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        import pyarrow as pa

        values = column.cast(pa.large_binary()).to_pylist()
    return values


class RowLimit:
    """Counts the bytes of text in a row group beyond those of its pages, which `read_few_rows` has counted.

    A page may refer to a long text many times.
    """

    def __init__(self, limit: ContentLimit) -> None:
        self._limit = limit
        self._text_bytes = self._taken = 0

    def take(self, values: list[Any], page_bytes: int) -> None:
        """Count the values of the next rows.

        Args:
            page_bytes: Bytes in all pages of the row group.

        Raises:
            DamagedArchiveError: If the limit is exceeded.
        """
        self._text_bytes += sum(len(value) for value in values if isinstance(value, str | bytes))
        beyond = max(self._text_bytes - page_bytes, 0)
        self._limit.take(beyond - self._taken, EXPANDED)
        self._taken = beyond


def _rows_at_a_time(stream: BinaryIO | io.RawIOBase, column: Any, *, is_nullable: bool, limit: ContentLimit) -> tuple[int, int]:
    """Return the number of rows that fit into memory even if each is as long as the pages allow, and the bytes of all pages."""
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
                _check_lengths(values[levels:], n_lists=1 + (page.encoding == SHARED_BEGINNINGS), limit=limit)
        # In any other encoding, a few bytes may stand for a long value.
        is_plain = page.encoding in (PLAIN, LENGTHS_FIRST) and page.kind != DICTIONARY
        longest = max(longest, page.size // max(page.n_values, 1) if is_plain else page.size)
    return min(max(ROWS_MEMORY // longest, 1), MAX_ROWS), n_bytes


def decompress_values(stream: BinaryIO | io.RawIOBase, page: ParquetPage, column: Any) -> Iterator[bytes]:
    """Yield the decompressed values of a page. If versions of Arrow disagree on whether it is compressed, yield both readings."""
    import pyarrow as pa

    stream.seek(page.start + page.levels)
    data = stream.read(page.compressed - page.levels)
    is_surely_compressed = column.compression != "UNCOMPRESSED" and (page.kind == DATA or page.says_compressed)
    if not is_surely_compressed:
        yield data
    if column.compression == "UNCOMPRESSED":
        return
    # There are two formats named LZ4. In the older one, sizes precede the content, and Arrow guesses which one it is.
    if column.compression == "LZ4" and int.from_bytes(data[4:8], "big") <= len(data) - 8:
        raise DamagedArchiveError("an old form of LZ4 is not supported here; write the file anew with another compression")
    try:
        codec = pa.Codec("lz4_raw" if column.compression == "LZ4" else column.compression.lower())
        yield codec.decompress(data, decompressed_size=page.content - page.levels, asbytes=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        if is_surely_compressed:
            raise DamagedArchiveError(f"a part of it cannot be decompressed: {error}") from error


def _check_lengths(values: bytes, *, n_lists: int, limit: ContentLimit) -> None:
    """Check that the lengths in a page fit into memory, since Arrow decodes all of them at once.

    Args:
        values: The content of the page without its levels.
        n_lists: The number of lists of lengths at its beginning.
        limit: Limits what the file expands to. Each length counts as a byte, although it may take no space in the file.

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
            limit.take(count, EXPANDED)
            # A block with very many parts would make the loop below take quadratic time.
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
    """Return an unsigned number as Arrow reads it, cut to 32 bits, and the position after it."""
    number, position = read_varint(values, position)
    return number & 0xFFFFFFFF, position
