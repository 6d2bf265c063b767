"""What a worker makes of the chunks that it gets: token ids, and a row for each document."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gpt_pretrain.texts.chunks import RejectedRecord

# The states of a row: the document continues in the next row, ends in this row, or was rejected.
CONTINUES, COMPLETE, REJECTED = 0, 1, 2
ROW = np.dtype([("hash", "V16"), ("tokens", "<u8"), ("bytes", "<u8"), ("state", "u1")])  # 33 bytes per document.


@dataclass
class EncodedBatch:
    """The documents of several chunks as token ids.

    Args:
        tokens: Token ids of all documents, each followed by the end-of-text token; little-endian.
        rows: One ROW for each document or part of a document.
        rejected: The records that were left out, and the files that cannot be read to their end.
        records: Number of records, rejected ones included.
        empty: Number of records that contain only white space.
        markers: Number of documents that end at an end-of-text marker in the text.
        controls: Number of NUL and control characters in the text.
        nuls: Number of NUL characters in the text.
        unknown: Number of tokens that stand for what the vocabulary lacks.
        unknown_example: A part of the text that such a token stands for.
    """

    tokens: bytes = b""
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, ROW))
    rejected: list[RejectedRecord] = field(default_factory=list)
    records: int = 0
    empty: int = 0
    markers: int = 0
    controls: int = 0
    nuls: int = 0
    unknown: int = 0
    unknown_example: str = ""
