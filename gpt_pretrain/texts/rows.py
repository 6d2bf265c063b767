"""Read a column of text from a table in CSV: separated by commas, tabs, semicolons or bars, with a header."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.file_kinds import HEAD
from gpt_pretrain.texts.chunks import BATCH, LONGEST_RECORD, Chunk, Cursor
from gpt_pretrain.texts.contents import peek
from gpt_pretrain.texts.decompression import DamagedArchiveError

Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL or csv.QUOTE_NONE

DELIMITERS = ",\t;|"
MAX_ROWS = 4096  # Of a chunk.
MAX_COLUMNS = 100_000


def split_rows(blocks: Iterable[bytes], cursor: Cursor, text_field: str) -> Iterator[Chunk]:
    """Split the content of a table into chunks of the values in a column.

    Args:
        blocks: The content from its start, since the first row names the columns. What the cursor is behind of is skipped.

    Raises:
        UserError: If there is no such column.
        DamagedArchiveError: If a line is too long.
    """
    head, blocks = peek(iter(blocks))
    lines = _Lines(blocks)
    header, delimiter = _read_header(lines)
    quoting = _detect_quoting(head, delimiter, len(header))
    if text_field not in header:
        raise UserError(f"{cursor.file} has no column {text_field}. Choose one with text_field=: {', '.join(header)[:500]}.")
    column, n_columns = header.index(text_field), len(header)
    lines.skip_to(cursor.offset)
    cursor.offset = lines.position
    values, size, row_start = list[Any](), 0, lines.position
    for row in _rows(lines, delimiter, quoting):
        if isinstance(row, csv.Error) or len(row) not in (0, n_columns):
            yield from _take(cursor, values, row_start)
            problem = f"{row}" if isinstance(row, csv.Error) else f"{len(row)} columns instead of {n_columns}"
            yield cursor.reject("broken row", problem, size=lines.position - cursor.offset)
            values, size = [], 0
        elif row:
            values.append(row[column])
            size += len(row[column])
        if size >= BATCH or len(values) >= MAX_ROWS:
            yield from _take(cursor, values, lines.position)
            values, size = [], 0
        row_start = lines.position
    yield from _take(cursor, values, lines.position)


def read_columns(blocks: Iterable[bytes]) -> list[str]:
    """Return the names of the columns of a table.

    Raises:
        DamagedArchiveError: If the first line is too long.
    """
    return _read_header(_Lines(blocks))[0]


class _Lines:
    """The lines of a table as text, whatever ends them.

    Attributes:
        position: Bytes of the lines that have been handed out.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._waiting: Iterator[bytes] = iter(())
        self._rest = b""
        self._in_quotes = False
        self.position = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        while (line := next(self._waiting, None)) is None:
            if (block := next(self._blocks, None)) is None:
                line, self._rest = self._rest, b""
                if not line:
                    raise StopIteration
                break
            data = self._rest + block
            # The last line, and a carriage return that a line feed may follow, wait for the next block.
            end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
            self._rest = data[end:]
            if len(self._rest) > LONGEST_RECORD:
                raise DamagedArchiveError(f"a line is longer than {LONGEST_RECORD:,} bytes")
            self._waiting = iter(data[:end].splitlines(keepends=True))
        self.position += len(line)
        self._check_columns(line)
        # Bytes that are not UTF-8 are found when the value is encoded, and only if they are in the column.
        return line.decode(errors="surrogateescape")

    def _check_columns(self, line: bytes) -> None:
        """Check that a line does not divide into so many columns that their list would fill the memory.

        Raises:
            DamagedArchiveError: If it does.
        """
        if len(line) > MAX_COLUMNS:
            codes = np.frombuffer(line, np.uint8)
            inside = np.bitwise_xor.accumulate((codes == ord('"')).view(np.uint8)) ^ np.uint8(self._in_quotes)
            if max(int(np.count_nonzero((codes == ord(mark)) & (inside == 0))) for mark in DELIMITERS) > MAX_COLUMNS:
                raise DamagedArchiveError(f"a line has more than {MAX_COLUMNS:,} columns")
        self._in_quotes ^= bool(line.count(b'"') % 2)

    def skip_to(self, position: int) -> None:
        """Skip the lines before a position."""
        while self.position < position and next(self, None) is not None:
            pass


def _read_header(lines: _Lines) -> tuple[list[str], str]:
    """Return the names of the columns and the most frequent delimiter of the first line."""
    csv.field_size_limit(LONGEST_RECORD)
    first = next(lines, "").removeprefix("\ufeff")
    outside = "".join(first.split('"')[::2])
    delimiter = max(DELIMITERS, key=outside.count)
    try:
        return next(csv.reader(itertools.chain([first], lines), delimiter=delimiter), []), delimiter
    except csv.Error as error:
        raise DamagedArchiveError(f"its first row is no list of names: {error}") from error


def _detect_quoting(head: bytes, delimiter: str, n_columns: int) -> Quoting:
    """Return csv.QUOTE_NONE if the first lines of a table with tabs make sense only without quoting."""
    lines = head.decode(errors="replace").splitlines(keepends=True)
    lines = lines[:-1] if len(head) >= HEAD else lines

    def fits(quoting: Quoting) -> bool:
        rows = _rows(iter(lines), delimiter, quoting)
        return all(not isinstance(row, csv.Error) and len(row) in (0, n_columns) for row in rows)

    if delimiter == "\t" and '"' in head.decode(errors="replace") and not fits(csv.QUOTE_MINIMAL) and fits(csv.QUOTE_NONE):
        return csv.QUOTE_NONE
    return csv.QUOTE_MINIMAL


def _rows(lines: Iterator[str], delimiter: str, quoting: Quoting) -> Iterator[list[str] | csv.Error]:
    """Yield the rows, and the error in place of a row that cannot be read."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _take(cursor: Cursor, values: list[Any], position: int) -> Iterator[Chunk]:
    if values:
        yield cursor.records(values, size=position - cursor.offset, count=len(values))
