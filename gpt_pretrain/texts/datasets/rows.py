"""Read the column of text from the Parquet files of a dataset, a few rows at a time. datasets 5.2 would read whole row groups."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from gpt_pretrain.texts.containers.decompression import MANY_RECORDS, RECORD, ContentLimit
from gpt_pretrain.texts.parquet.footer import check_footer
from gpt_pretrain.texts.parquet.pages import check_parts, column_range
from gpt_pretrain.texts.parquet.rows import RowLimit, read_few_rows, text_values
from gpt_pretrain.texts.records.columns import find_column, find_leaf
from gpt_pretrain.tokenizers.base import END_OF_TEXT


def read_text_column(_: Callable[..., Any]) -> Callable[..., Any]:
    """Return a replacement for the method of datasets that reads Parquet files. It reads only the builder's one column."""

    def generate_tables(builder: Any, files: Any, row_groups_list: Any) -> Iterator[Any]:
        import pyarrow as pa
        from datasets.builder import Key

        opened = vars(sys.modules[type(builder).__module__]).get("open", open)  # datasets has its own, for URLs and archives
        (text_field,) = builder.config.columns
        for file_index, (file, row_groups) in enumerate(zip(files, row_groups_list, strict=True)):
            with opened(file, "rb") as stream:
                for number, batch in zip(itertools.count(), _read_column(stream, row_groups, text_field, str(file))):
                    yield Key(file_index, number), builder._cast_table(pa.Table.from_batches([batch]))

    return generate_tables


def _read_column(stream: BinaryIO, row_groups: Any, text_field: str, name: str) -> Iterator[Any]:
    """Yield the rows of the given row groups of an open file. None stands for all row groups."""
    import pyarrow.parquet as pq

    kept = _KeptRange(stream)
    unreadable = check_footer(kept)
    table = pq.ParquetFile(kept)
    fields = find_column(text_field, table.schema_arrow, name)
    column = find_leaf(fields, table.schema, name)
    size = stream.seek(0, io.SEEK_END)
    check_parts(table.metadata, [column], size=size, unreadable=unreadable)
    limit = ContentLimit(size)
    for group in range(table.num_row_groups) if row_groups is None else row_groups:
        kept.keep(*column_range(table.metadata.row_group(group).column(column)))
        row_limit = RowLimit(limit)
        for batch, page_bytes in read_few_rows(table, kept, group=group, column=column, limit=limit):
            values = text_values(batch, fields)
            row_limit.take(values, page_bytes)
            n_markers = sum(text.count(END_OF_TEXT) for text in values if isinstance(text, str))
            limit.take(RECORD * (len(values) + n_markers), MANY_RECORDS)
            yield batch


class _KeptRange(io.RawIOBase):
    """A file that keeps one part of its content in memory, so that nothing is downloaded twice."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._position = stream, 0
        self._size = stream.seek(0, io.SEEK_END)
        self._start, self._kept = 0, b""

    def keep(self, start: int, length: int) -> None:
        """Read a part of the file, and keep it in place of the part kept so far."""
        self._start, self._kept = start, b""
        if 0 <= start < self._size and length > 0:
            self._stream.seek(start)
            self._kept = self._stream.read(min(length, self._size - start))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), max(self._size - self._position, 0))
        start = self._position - self._start
        if start >= 0 and start + size <= len(self._kept):
            data = self._kept[start : start + size]
        else:
            self._stream.seek(self._position)
            data = self._stream.read(size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
