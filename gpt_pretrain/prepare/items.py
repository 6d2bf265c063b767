"""What goes from the reader to the workers, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

PART = 1 << 19  # characters of a document that are encoded at once; regular expressions give up at a million steps
LONGEST_RECORD = 1 << 26  # bytes of a line, characters of a text in a table: more than one of them are in memory at a time
BATCH = 1 << 20  # bytes of text that a worker gets at once

FIELD_MISSING, DAMAGED_ARCHIVE = "field missing", "damaged archive"  # reasons that the user is told more about
OPEN, WHOLE, REJECTED = 0, 1, 2  # the states of a row: the document goes on in the next row, ends here, or is left out
ROW = np.dtype([("hash", "V16"), ("tokens", "<u8"), ("bytes", "<u8"), ("state", "u1")])  # 33 bytes a document


@dataclass(frozen=True)
class ReadPosition:
    """Where reading goes on.

    Args:
        file: the number of the file.
        offset: bytes of its content, or rows of a table, that are behind.
        record: documents, lines or rows that are behind.
        in_document: whether it lies inside a document.
    """

    file: int = 0
    offset: int = 0
    record: int = 0
    in_document: bool = False


@dataclass(frozen=True)
class Bad:
    """A record that is left out, and why.

    Args:
        file: where it is.
        record: its number in the file, from 1.
        reason: one of a few, which are counted.
        detail: what exactly.
        begins: the first characters of it, if it has any.
    """

    file: str
    record: int
    reason: str
    detail: str = ""
    begins: str = ""


@dataclass(frozen=True)
class Item:
    """A stretch of one file.

    Args:
        file: its name.
        first: the number of the first record in it, from 1.
        content: lines of JSON as bytes; a document, or a part of one, as text; values of a table's column; or what is wrong.
        after: where reading goes on behind it.
        read: bytes of all files that have been read so far.
        begins: whether a document begins with it, if it is text.
        ends: whether a document ends with it, if it is text or something is wrong.
    """

    file: str
    first: int
    content: bytes | str | list[Any] | Bad
    after: ReadPosition
    read: int
    begins: bool = True
    ends: bool = True

    @property
    def size(self) -> int:
        """About how much there is in it to be encoded, in bytes."""
        if isinstance(self.content, list):
            return sum(len(value) if isinstance(value, str) else 0 for value in self.content) + 50 * len(self.content)
        return 50 + (0 if isinstance(self.content, Bad) else len(self.content))


@dataclass
class Encoded:
    """What a worker made of items.

    Args:
        tokens: of all documents, one after another, each with its end; little-endian.
        rows: one for each document or part of one.
        bad: what was left out.
        records: how many there were, good and bad.
        empty: how many of them held nothing but white space.
    """

    tokens: bytes = b""
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, ROW))
    bad: list[Bad] = field(default_factory=list)
    records: int = 0
    empty: int = 0
