"""The encoded documents of all segments, as one list of rows and one stream of tokens."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.encoded_batch import ROW
from gpt_pretrain.prepare.segments import Segment, read_journal
from gpt_pretrain.system.reading import open_regular

ROWS_AT_A_TIME = 1 << 17  # 4 MB.


class EncodedCorpus:
    """All segments, read as one list of documents and one stream of tokens.

    Args:
        segments: The segments, in the order of the inputs.
        itemsize: Bytes per token.
    """

    def __init__(self, segments: Sequence[Segment], *, itemsize: int) -> None:
        self.itemsize = itemsize
        self._segments = list(segments)
        self._token_starts = [0, *itertools.accumulate(segment.tokens for segment in segments)]
        self._row_starts = [0, *itertools.accumulate(segment.rows for segment in segments)]
        self.n_tokens, self.n_rows = self._token_starts[-1], self._row_starts[-1]

    @classmethod
    def open(cls, folders: Sequence[Path], *, itemsize: int) -> EncodedCorpus:
        """Open the segments of several folders.

        Raises:
            UserError: If a journal is damaged, or a file has another size than its journal says.
        """
        segments = [segment for folder in folders for segment in read_journal(folder)[0]]
        for segment in segments:
            _check_size(segment.path, segment.tokens * itemsize)
            _check_size(segment.rows_path, segment.rows * ROW.itemsize)
        return cls(segments, itemsize=itemsize)

    def rows(self, start: int = 0, *, count: int = ROWS_AT_A_TIME) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the rows from an index on, up to `count` at a time, with the index of the first one."""
        while start < self.n_rows:
            data = self._read(self._row_starts, start, count, ROW.itemsize, rows=True)
            rows = np.frombuffer(data, ROW)
            # Counting the shards of a document of any stated length could take forever.
            if int(rows["tokens"].max(initial=0)) > self.n_tokens:
                path = self._segments[bisect_right(self._row_starts, start) - 1].rows_path
                raise UserError(f"{path} is damaged: it has longer documents than the corpus. Start over with overwrite=true.")
            yield start, rows
            start += len(rows)

    def tokens(self, start: int, count: int) -> np.ndarray:
        """Return `count` token ids from an index on, shape (count,)."""
        arrays = []
        while count:
            data = self._read(self._token_starts, start, count, self.itemsize, rows=False)
            arrays.append(np.frombuffer(data, f"<u{self.itemsize}"))
            start, count = start + len(arrays[-1]), count - len(arrays[-1])
        return arrays[0] if len(arrays) == 1 else np.concatenate([*arrays, np.empty(0, f"<u{self.itemsize}")])

    def _read(self, starts: list[int], start: int, count: int, itemsize: int, *, rows: bool) -> bytes:
        """Return up to `count` items from an index on, from a single segment."""
        number = bisect_right(starts, start) - 1
        path: Path = self._segments[number].rows_path if rows else self._segments[number].path
        with open_regular(path) as stream:
            stream.seek((start - starts[number]) * itemsize)
            data = stream.read(min(count, starts[number + 1] - start) * itemsize)
        if not data or len(data) % itemsize:
            raise UserError(f"{path} is damaged: it is shorter than the journal says. Start over with overwrite=true.")
        return data


def _check_size(path: Path, n_bytes: int) -> None:
    """Check the size of a segment's file. Later steps allocate memory by the counts in the journal.

    Raises:
        UserError: If the file is missing or has another size.
    """
    if not path.is_file() or path.stat().st_size != n_bytes:
        raise UserError(f"{path} is damaged: its size differs from the journal's. Start over with overwrite=true.")
