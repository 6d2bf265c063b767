"""The chunks of records that a reader hands out, each with the position after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.recognition.encodings import is_blank

LONGEST_RECORD = 1 << 26  # bytes of a line, or characters of a text in a table; several records are in memory at a time
MAX_LINES = 8192  # lines of a chunk; a rejected line takes 500 bytes of memory, and as little as two in its file
BATCH = 1 << 20  # bytes of text that a worker gets in one job

# Reasons for rejecting a record.
FIELD_MISSING = "field missing"
NOT_UTF8 = "not UTF-8"
TASK_ITEM = "question of a task"  # The record has the fields that evaluate.py reads.
TASK_ADVICE = (
    "This is a file of questions, not a text to train on. To score a model on them: "
    f"{script_command('evaluate.py')} checkpoint=RUN tasks.path={{}}"
)
# Reasons for which a file cannot be read to its end. More than a single record is lost then.
DAMAGED_ARCHIVE, UNREADABLE, NOT_UTF8_FILE, CUT_OFF = "damaged file", "read error", "not a text in UTF-8", "cut off"
NOTHING_TO_READ, NOT_UNPACKED = "nothing to read", "not unpacked"
FILE_FAILURES = (
    DAMAGED_ARCHIVE,
    UNREADABLE,
    NOT_UTF8_FILE,
    CUT_OFF,
    NOTHING_TO_READ,
    NOT_UNPACKED,
    "damaged archive",
)  # the last by earlier versions


@dataclass(frozen=True)
class ReadPosition:
    """A position in the inputs where reading can start. The field names are keys of the journal.

    Args:
        file: Index of the file.
        offset: Bytes of the file's content, or rows of a table, before the position.
        record: Documents, lines or rows before the position.
        in_document: Whether the position is inside a document.
        member: Number of an archive's contents before the current one. Offset and record count within the current one.
        blank: Whether the document has been only white space so far.
    """

    file: int = 0
    offset: int = 0
    record: int = 0
    in_document: bool = False
    member: int = 0
    blank: bool = False


@dataclass(frozen=True)
class RejectedRecord:
    """A record that is left out of the corpus, or the rest of a file. The field names are keys of rejected.jsonl.

    Args:
        file: Name of its file.
        record: Its number in the file, from 1.
        reason: One of a few fixed reasons, which are counted.
        detail: Description of the problem.
        begins: The first characters of the record, if there are any.
    """

    file: str
    record: int
    reason: str
    detail: str = ""
    begins: str = ""

    @property
    def fails_file(self) -> bool:
        """Return whether the file cannot be read to its end."""
        return self.reason in FILE_FAILURES


@dataclass(frozen=True)
class Documents:
    """Undecoded text: several whole documents, or a part of one document.

    Args:
        data: The documents, with a separator after each of them; or the part.
        separators: The possible separators in UTF-8; empty for a part of a document.
    """

    data: bytes
    separators: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one file, or a part of a long document.

    Args:
        file: Name of the file.
        first: Number of the first record, from 1.
        content: JSON lines as bytes; values of a table's column; documents or a part of one; the text of one document or part,
            from `divide_documents`; or a rejected record.
        end: The position after the chunk.
        bytes_read: Bytes read so far from all files.
        begins: Whether a document begins with the chunk, if the content is text or a rejected record.
        ends: Whether a document ends with the chunk, if the content is text or a rejected record.
        at_marker: Whether it ends at an end-of-text marker in the text.
        blank: Whether the document has been only white space so far, if the content is text.
    """

    file: str
    first: int
    content: bytes | str | list[Any] | Documents | RejectedRecord
    end: ReadPosition
    bytes_read: int
    begins: bool = True
    ends: bool = True
    at_marker: bool = False
    blank: bool = False

    @property
    def size(self) -> int:
        """Approximate size of the text, in bytes."""
        if isinstance(self.content, list):
            return sum(len(value) if isinstance(value, str) else 0 for value in self.content) + 50 * len(self.content)
        if isinstance(self.content, RejectedRecord):
            return 50
        if isinstance(self.content, Documents):
            return 50 + len(self.content.data)
        lines = self.content.count(b"\n") if isinstance(self.content, bytes) else 0
        return 50 + 50 * lines + len(self.content)


class Cursor:
    """Builds the chunks of one file and keeps track of the position in it.

    Args:
        file: Name of the file.
        position: Where reading starts.
        bytes_read: Returns the number of bytes read so far from all files.

    Attributes:
        bytes_of_file: Bytes read from a file by a library, which `bytes_read` does not count.
    """

    def __init__(self, file: str, position: ReadPosition, *, bytes_read: Callable[[], int]) -> None:
        self.file = file
        self.offset, self.record, self.in_document = position.offset, position.record, position.in_document
        self._blank = position.blank
        self._file_index, self._member, self._bytes_read = position.file, position.member, bytes_read
        self.bytes_of_file = 0

    def records(self, content: bytes | list[Any], *, size: int, count: int) -> Chunk:
        """Return the next `count` records as a chunk. `size` is their length in bytes, or the number of their rows."""
        first = self.record + 1
        self.offset, self.record = self.offset + size, self.record + count
        return self._chunk(first, content)

    def documents(self, data: bytes, separators: tuple[bytes, ...], *, count: int) -> Chunk:
        """Return the next `count` whole documents as a chunk. In `data`, a separator follows each of them."""
        first = self.record + 1
        self.offset, self.record = self.offset + len(data), self.record + count
        return self._chunk(first, Documents(data, separators))

    def part(self, text: str, *, ends: bool, end: int | None = None, at_marker: bool = False) -> Chunk:
        """Return the next part of a document.

        Args:
            end: The offset after the part, if it is not the end of the text.
            at_marker: Whether the document ends at an end-of-text marker in the text.
        """
        begins, first = not self.in_document, self.record + 1
        data = text.encode()
        self.offset = self.offset + len(data) if end is None else end
        self.record, self.in_document = self.record + ends, not ends
        blank = (begins or self._blank) and is_blank(text)
        self._blank = blank and not ends
        return replace(self._chunk(first, Documents(data), begins=begins, ends=ends), at_marker=at_marker, blank=blank)

    def reject(self, reason: str, detail: str, *, size: int = 0) -> Chunk:
        """Return the next record, or the document that is being read, as rejected."""
        begins, self.in_document, self._blank = not self.in_document, False, False
        self.offset, self.record = self.offset + size, self.record + 1
        return self._chunk(self.record, RejectedRecord(self.file, self.record, reason, detail), begins=begins)

    def _chunk(
        self, first: int, content: bytes | str | list[Any] | Documents | RejectedRecord, *, begins: bool = True, ends: bool = True
    ) -> Chunk:
        end = ReadPosition(self._file_index, self.offset, self.record, self.in_document, self._member, self._blank)
        return Chunk(self.file, first, content, end, self._bytes_read() + self.bytes_of_file, begins, ends)
