"""Read the Arrow files of a dataset, with a limit for what they expand to.

They may be compressed, many texts may share the same bytes, and a text may be stated to lie outside of its file.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.texts.containers.decompression import (
    EXPANDED,
    MANY_RECORDS,
    MAX_EXPANSION,
    RECORD,
    ContentLimit,
    DamagedArchiveError,
)
from gpt_pretrain.texts.documents import MARKER
from gpt_pretrain.tokenizers.base import END_OF_TEXT

Function = Callable[..., Any]
LISTED = b"ARROW1"  # the beginning of a listed file: one with a list of its batches


class ArrowLimit:
    """A limit for the texts of the Arrow files that have been opened so far. Without such a file, nothing is counted."""

    def __init__(self) -> None:
        self._limit: ContentLimit | None = None

    def add_file(self, size: int) -> None:
        """Note that a file of this size has been opened."""
        if self._limit is None:
            self._limit = ContentLimit(0)
        self._limit.extend(size)

    def take(self, values: list[Any], *, n_bytes: int = 0) -> None:
        """Count texts.

        Args:
            n_bytes: Further bytes, such as those of all columns of a table.

        Raises:
            UserError: If the files do not explain them.
        """
        if self._limit is None:
            return
        n_documents = len(values) + sum(value.count(END_OF_TEXT) for value in values if isinstance(value, str))
        n_documents += sum(value.count(MARKER) for value in values if isinstance(value, bytes))
        try:
            self._limit.take(n_bytes + sum(len(value) for value in values if isinstance(value, str | bytes)), EXPANDED)
            self._limit.take(RECORD * n_documents, MANY_RECORDS)
        except DamagedArchiveError as error:
            raise UserError(
                f"The Arrow files of this dataset expand to more than {MAX_EXPANSION} times their size, or have far more records "
                "than it explains. If that is expected, save the dataset as JSON lines, and give that file as an input."
            ) from error

    def read_tables(self, _original: Function) -> Function:
        """Replace the method of datasets that reads Arrow files. Each table is counted, and then checked by Arrow."""

        def generate_tables(builder: Any, files: Any) -> Iterator[Any]:
            import pyarrow as pa
            from datasets.builder import Key

            opened = vars(sys.modules[type(builder).__module__]).get("open", open)  # datasets has its own, for URLs and archives
            for number, file in enumerate(files):
                with opened(file, "rb") as stream:
                    self.add_file(stream.seek(0, io.SEEK_END))
                    stream.seek(0)
                    for index, batch in enumerate(_batches(stream)):
                        table = pa.Table.from_batches([batch])
                        self._check(table)
                        yield Key(number, index), builder._cast_table(table)

        return generate_tables

    def check_before_cast(self, cast: Function) -> Function:
        """Wrap the function of datasets that casts a saved table to its stated types. It could read beyond the file."""

        def checked(table: Any, *arguments: Any, **options: Any) -> Any:
            self._check(table)
            return cast(table, *arguments, **options)

        return checked

    def _check(self, table: Any) -> None:
        """Count a table, and check that all of its values lie within it. Both take time even if no row has a text."""
        table.validate()  # the sizes of its buffers
        shared = sum(_shared_bytes(part) for column in table.columns for part in column.chunks)
        self.take([], n_bytes=table.get_total_buffer_size() + shared)
        table.validate(full=True)


def _batches(stream: Any) -> Iterator[Any]:
    """Return the batches of rows of an Arrow file, which is a stream or a listed file."""
    import pyarrow as pa

    try:
        return iter(pa.ipc.open_stream(stream))
    except (OSError, pa.ArrowInvalid):
        reader = pa.ipc.open_file(stream)
        return (reader.get_batch(number) for number in range(reader.num_record_batches))


def _shared_bytes(values: Any) -> int:
    """Return the bytes of an array's texts that may lie in the same place. Arrow reads each of them to check it."""
    import pyarrow as pa

    if pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type):
        views = np.frombuffer(values.buffers()[1], np.int32) if len(values) else np.zeros(0, np.int32)
        lengths = views[4 * values.offset : 4 * (values.offset + len(values)) : 4]
        return int(np.maximum(lengths, 0).sum(dtype=np.int64))
    if isinstance(values, pa.StructArray | pa.UnionArray):
        return sum(_shared_bytes(values.field(number)) for number in range(values.type.num_fields))
    inner = (getattr(values, name) for name in ("values", "dictionary", "storage") if hasattr(values, name))
    return sum(map(_shared_bytes, inner))


def refuse_listed(open_stream: Function) -> Function:
    """Wrap the function of Arrow that opens a stream. It would take the beginning of a listed file for a length of 1.3 GB."""

    def checked(source: Any, *arguments: Any, **options: Any) -> Any:
        if hasattr(source, "seek"):
            position = source.tell()
            beginning = source.read(len(LISTED))
            source.seek(position)
            if beginning == LISTED:
                raise OSError("a listed file is no stream")
        return open_stream(source, *arguments, **options)

    return checked
