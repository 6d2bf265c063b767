"""Limit what the Arrow files of a dataset expand to: they may be compressed, and many texts may share the same bytes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

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


class ArrowLimit:
    """Counts the texts of Arrow files that have been opened so far. Without such a file, nothing is counted."""

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

    def count_files(self, generate: Function) -> Function:
        """Wrap the method of datasets that reads Arrow files, so that their sizes are known."""

        def generate_tables(builder: Any, files: Any) -> Iterator[Any]:
            from datasets.builder import Key

            opened = vars(sys.modules[type(builder).__module__]).get("open", open)  # datasets has its own, for URLs and archives
            for number, file in enumerate(files):
                with opened(file, "rb") as stream:
                    self.add_file(stream.seek(0, io.SEEK_END))
                for index, (_, table) in enumerate(generate(builder, [file])):
                    self.take([], n_bytes=table.get_total_buffer_size())  # It takes time even if no row has a text.
                    yield Key(number, index), table

        return generate_tables
