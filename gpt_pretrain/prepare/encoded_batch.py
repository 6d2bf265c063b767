"""The result of encoding some chunks: token ids, and a row for each document."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from gpt_pretrain.texts.chunks import RejectedRecord

# The states of a row: the document continues in the next row, ends in this row, or was rejected.
CONTINUES, COMPLETE, REJECTED = 0, 1, 2
ROW = np.dtype([("hash", "V16"), ("tokens", "<u8"), ("bytes", "<u8"), ("state", "u1")])  # 33 bytes per document.

# The most rejected records that are listed, and the most characters of the reason for one. A few kilobytes of an archive can hold
# millions of such records. All of them are counted.
MAX_LISTED, LONGEST_DETAIL = 10_000, 500


@dataclass
class EncodedBatch:
    """The documents of several chunks as token ids.

    Args:
        tokens: Token ids of all documents, each followed by the end-of-text token; little-endian, in the size used in files.
        rows: One ROW for each document or part of a document.
        rejected: The files that cannot be read to their end, and the first MAX_LISTED records that were left out.
        by_reason: Number of records left out for each reason.
        records: Number of records, including rejected ones.
        empty: Number of records that contain only white space.
        markers: Number of documents that end at an end-of-text marker in the text.
        controls: Number of NUL and control characters in the text.
        nuls: Number of NUL characters in the text.
        marks: Number of byte order marks in the text, without those that begin a file.
        unknown: Number of tokens for text that the vocabulary lacks.
        unknown_example: A part of such text.
    """

    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, "<u2"))
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, ROW))
    rejected: list[RejectedRecord] = field(default_factory=list)
    by_reason: Counter[str] = field(default_factory=Counter)
    records: int = 0
    empty: int = 0
    markers: int = 0
    controls: int = 0
    nuls: int = 0
    marks: int = 0
    unknown: int = 0
    unknown_example: str = ""

    def reject(self, record: RejectedRecord) -> None:
        """Add a record that is left out, or the unread rest of a file that fails."""
        if not record.fails_file:
            self.records += 1
            self.by_reason[record.reason] += 1
            record = replace(record, detail=record.detail[:LONGEST_DETAIL])
        if record.fails_file or self.by_reason.total() <= MAX_LISTED:
            self.rejected.append(record)
