"""Read a column of text from a CSV table with a header. Commas, tabs, semicolons or bars separate the columns."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any, Literal

from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.recognition.file_kinds import HEAD
from gpt_pretrain.system.recognition.file_recognition import content_name
from gpt_pretrain.system.shell import quote_word
from gpt_pretrain.texts.chunks import BATCH, LONGEST_RECORD, Chunk, Cursor
from gpt_pretrain.texts.containers.blocks import peek
from gpt_pretrain.texts.containers.decompression import DamagedArchiveError
from gpt_pretrain.texts.records.columns import MAX_NAMED, check_column

Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL or csv.QUOTE_NONE

TABBED = (".tsv", ".tab")  # suffixes of tables with tabs
DELIMITERS = ",\t;|"
EXCEL = re.compile(rf'"?sep=([{DELIMITERS}])"?\s*')
MAX_ROWS = 4096  # rows of a chunk
MAX_COLUMNS = 100_000
MOST_WORDS = 7  # of a column's name; "What do you think of it?" has six
QUOTATION_MARK, ESCAPED_MARK = b'"', b'\\"'
OTHER_DELIMITER = re.compile(r"\w[\w .-]*+([~^\xa6\xa7\x01-\x08\x0e-\x1f])\w.*")  # a name, and a mark before the next one
QUOTED = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')  # the rest of a quoted value; two quotation marks stand for one


def split_rows(blocks: Iterable[bytes], cursor: Cursor, text_field: str) -> Iterator[Chunk]:
    """Split the content of a table into chunks of the values in a column.

    Args:
        blocks: The content from its start, since the first row names the columns. Rows before the cursor are skipped.

    Raises:
        UserError: If no column has the name of the text field.
        DamagedArchiveError: If a line is too long.
    """
    head, blocks = peek(iter(blocks))
    lines = _Lines(blocks)
    header, delimiter = _read_header(lines, text_field, cursor.file)
    quoting = _detect_quoting(head, delimiter, len(header))
    check_column(text_field, header, cursor.file, advice=_advice_without_names(header, text_field, delimiter))
    column, n_columns = header.index(text_field), len(header)
    lines.quoting = quoting
    lines.skip_to(cursor.offset)
    cursor.offset = lines.position
    values, size, row_start = list[Any](), 0, lines.position
    for row in _rows(lines, delimiter, quoting):
        lines.end_row()
        if isinstance(row, csv.Error) or len(row) not in (0, n_columns):
            yield from _take_values(cursor, values, row_start)
            yield cursor.reject("broken row", _describe_broken(row, lines, n_columns), size=lines.position - cursor.offset)
            values, size = [], 0
        elif row:
            values.append(row[column])
            size += len(row[column])
        if size >= BATCH or len(values) >= MAX_ROWS:
            yield from _take_values(cursor, values, lines.position)
            values, size = [], 0
        row_start = lines.position
    yield from _take_values(cursor, values, lines.position)


def _advice_without_names(columns: list[str], text_field: str, delimiter: str) -> str:
    """Return a sentence on names of columns that look like text, so that their line may be missing, or hold another delimiter."""
    if len(columns) == 1 and (found := OTHER_DELIMITER.fullmatch(columns[0])) is not None:
        shown, command = found[1], rf"tr {quote_word(found[1])} '\t' < FILE"
        if not shown.isprintable():
            shown, command = f"the control character {ord(shown)}", rf"tr '\{ord(shown):03o}' '\t' < FILE"
        elif not shown.isascii():  # tr would replace each of its bytes, which other characters have too
            command = rf"perl -pe 's/{shown}/\t/g' FILE"
        return f" The columns seem to be separated by {shown}, which is not read. Replace it by tabs: {command} > new.tsv"
    texts = [len(column.split()) > MOST_WORDS for column in columns]
    if True not in texts or len(texts) > MAX_NAMED:
        return ""
    at = texts.index(True)
    names = delimiter.join(text_field if index == at else f"column{index + 1}" for index in range(len(texts)))
    command = f"echo {quote_word(names)}"
    if "\t" in names:  # A tab that is pasted into a shell would complete a name.
        command = "printf " + quote_word(names.replace("\t", r"\t") + r"\n")
    return (
        " Its first line looks like text, not like names of columns. If it is text, add a line of names: "
        f"{command} | cat - FILE > new.csv"
    )


def _describe_broken(row: list[str] | csv.Error, lines: _Lines, n_columns: int) -> str:
    if not isinstance(row, csv.Error):
        return f"{format_count(len(row), 'column')} instead of {n_columns}"
    escaped = "; within a value, a quotation mark is doubled in CSV, not escaped by a backslash"
    return f"{row}{escaped * lines.has_escape}"


def read_columns(blocks: Iterable[bytes], text_field: str, name: str) -> list[str]:
    """Return the names of the columns of a table.

    Args:
        name: The name of its file.

    Raises:
        DamagedArchiveError: If the first line is too long.
    """
    return _read_header(_Lines(blocks), text_field, name)[0]


class _Lines:
    """The lines of a table as text, with line ends of any kind.

    A row may have several lines. Its size and its columns are counted line by line, before the whole row is in memory.

    Attributes:
        position: Bytes of the lines that have been yielded.
        has_escape: Whether the last line has a quotation mark after a backslash.
        delimiter: The character between columns. Before it is known, the most frequent candidate counts.
        quoting: Whether quotation marks at the beginning of a value enclose it.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._waiting: list[bytes] = []  # In reverse order: a line that is taken from the end leaves the memory.
        self._rest = b""
        self._row_size, self._columns = 0, _ColumnCounter()
        self._first_line = b""  # the first line of the current row, until its columns are counted
        self.position, self.has_escape = 0, False
        self.delimiter: bytes | None = None
        self.quoting: Quoting = csv.QUOTE_MINIMAL

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if not (line := self._next_line()):
            raise StopIteration
        if self._row_size and QUOTATION_MARK not in line:
            line = self._with_rest_of_value(line)
        self._check_row(line)
        # Invalid bytes are found later, when a value of the column is encoded. In other columns they do no harm.
        return line.decode(errors="surrogateescape")

    def _with_rest_of_value(self, line: bytes) -> bytes:
        """Return a line within a quoted value, joined with the following lines of its block up to the next quotation mark.

        The module csv is slow for values of many lines.
        """
        last = next((at for at in range(len(self._waiting) - 1, -1, -1) if QUOTATION_MARK in self._waiting[at]), 0)
        more = b"".join(reversed(self._waiting[last:]))
        del self._waiting[last:]
        self.has_escape = ESCAPED_MARK in more
        self.position += len(more)
        return line + more

    def end_row(self) -> None:
        """Note that the row ends with the last line."""
        self._row_size, self._first_line, self._columns = 0, b"", _ColumnCounter()

    def _check_row(self, line: bytes) -> None:
        """Check that the current row, with a further line, has neither too many bytes nor too many columns.

        Raises:
            csv.Error: If it has too many. The module csv raises the same error for other damaged rows.
        """
        is_first, self._row_size = self._row_size == 0, self._row_size + len(line)
        if self._row_size > LONGEST_RECORD:
            raise csv.Error(f"the row is longer than {LONGEST_RECORD:,} bytes")
        delimiter = self.delimiter or max((mark.encode() for mark in DELIMITERS), key=line.count)
        if is_first and len(line) <= BATCH and line.count(delimiter) <= MAX_COLUMNS:
            self._first_line = line  # Its columns are counted only if a second line follows, which is rare.
            return
        for part in (self._first_line, line):
            self._columns.add(part, delimiter, self.quoting)
        self._first_line = b""

    def skip_to(self, position: int) -> None:
        """Skip the lines before a position."""
        while self.position < position and self._next_line():
            pass

    def _next_line(self) -> bytes:
        """Return the next line, or b"" at the end.

        Raises:
            DamagedArchiveError: If it is too long.
        """
        while not self._waiting:
            if (block := next(self._blocks, None)) is None:
                self._waiting, self._rest = [self._rest], b""
                break
            data = self._rest + block
            # The last line may be incomplete, and a line feed may follow a carriage return. Both wait for the next block.
            end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
            self._rest = data[end:]
            if len(self._rest) > LONGEST_RECORD:
                raise DamagedArchiveError(f"a line is longer than {LONGEST_RECORD:,} bytes")
            self._waiting = data[:end].splitlines(keepends=True)[::-1]
        line = self._waiting.pop()
        self.has_escape = ESCAPED_MARK in line
        self.position += len(line)
        return line


class _ColumnCounter:
    """Counts the columns of a row line by line, as the module csv divides them."""

    def __init__(self) -> None:
        self._count = 1
        self._in_quotes = False

    def add(self, line: bytes, delimiter: bytes, quoting: Quoting) -> None:
        """Count the columns of another line of the row.

        Raises:
            csv.Error: If there are too many.
        """
        position = 0
        while position < len(line):
            if quoting == csv.QUOTE_MINIMAL and (self._in_quotes or line.startswith(b'"', position)):
                closed = QUOTED.match(line, position + (not self._in_quotes))
                self._in_quotes = closed is None
                if closed is None:
                    return
                position = closed.end()
            if (position := line.find(delimiter, position) + 1) == 0:
                return
            self._count += 1
            if self._count > MAX_COLUMNS:
                raise csv.Error(f"more than {MAX_COLUMNS:,} columns")


def _read_header(lines: _Lines, text_field: str, name: str) -> tuple[list[str], str]:
    """Return the names of the columns and the delimiter, which a line for Excel may state."""
    csv.field_size_limit(LONGEST_RECORD)
    try:
        first = next(lines, "").removeprefix("\ufeff")
        while first and not first.strip(" \r\n"):  # Some programs write empty lines before the table.
            lines.end_row()
            first = next(lines, "")
        if named := EXCEL.fullmatch(first):
            lines.end_row()
            first = next(lines, "")
        delimiter = named[1] if named else _likely_delimiter(first, text_field, name)
        lines.delimiter = delimiter.encode()
        header = next(csv.reader(itertools.chain([first], lines), delimiter=delimiter), [])
    except csv.Error as error:
        raise DamagedArchiveError(f"its first row is not a list of column names: {error}") from error
    lines.end_row()
    return [name.strip() for name in header], delimiter


def _likely_delimiter(first: str, text_field: str, name: str) -> str:
    """Return the delimiter of the first row: a tab if the file's name says so, or else the one beside the text's column.

    If that does not decide, it is the most frequent one.
    """
    has_tabs = PurePath(content_name(name)).suffix.lower() in TABBED
    outside, unquoted = "".join(first.split('"')[::2]), first.replace('"', "")

    def rank(mark: str) -> tuple[bool, bool, int]:
        has_column = text_field in map(str.strip, unquoted.split(mark, MAX_COLUMNS))
        return has_tabs and mark == "\t" in outside, has_column, outside.count(mark)

    return max(DELIMITERS, key=rank)


def _detect_quoting(head: bytes, delimiter: str, n_columns: int) -> Quoting:
    """Return csv.QUOTE_NONE if the table has tabs, and only without quoting all its first lines have the right columns."""
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


def _take_values(cursor: Cursor, values: list[Any], position: int) -> Iterator[Chunk]:
    if values:
        yield cursor.records(values, size=position - cursor.offset, count=len(values))
