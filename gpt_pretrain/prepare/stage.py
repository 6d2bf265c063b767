"""All that has been encoded, read as one long list of documents and one long stream of tokens."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gpt_pretrain.prepare.items import ROW
from gpt_pretrain.prepare.pieces import Piece, read_journal

ROWS_AT_ONCE = 1 << 17  # 4 MB


class Stage:
    """Pieces, one after another.

    Args:
        pieces: in the order of the corpus.
        itemsize: bytes a token.
    """

    def __init__(self, pieces: Sequence[Piece], *, itemsize: int) -> None:
        self.itemsize = itemsize
        self._pieces = list(pieces)
        self._token_starts = [0, *itertools.accumulate(piece.tokens for piece in pieces)]
        self._row_starts = [0, *itertools.accumulate(piece.rows for piece in pieces)]
        self.n_tokens, self.n_rows = self._token_starts[-1], self._row_starts[-1]

    @classmethod
    def of(cls, tasks: Sequence[Path], *, itemsize: int) -> Stage:
        """What the folders of some tasks hold."""
        return cls([piece for task in tasks for piece in read_journal(task)[0]], itemsize=itemsize)

    def rows(self, start: int = 0, *, at_once: int = ROWS_AT_ONCE) -> Iterator[tuple[int, np.ndarray]]:
        """The rows from one on, some at once, and the number of the first of these."""
        while start < self.n_rows:
            data = self._read(self._row_starts, start, at_once, ROW.itemsize, rows=True)
            found = np.frombuffer(data, ROW)
            yield start, found
            start += len(found)

    def tokens(self, start: int, count: int) -> np.ndarray:
        """Token ids, (count,), from a place on."""
        parts = []
        while count:
            data = self._read(self._token_starts, start, count, self.itemsize, rows=False)
            parts.append(np.frombuffer(data, f"<u{self.itemsize}"))
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, f"<u{self.itemsize}")

    def _read(self, starts: list[int], start: int, count: int, itemsize: int, *, rows: bool) -> bytes:
        """What one piece has of `count` things from a place on."""
        number = bisect_right(starts, start) - 1
        path: Path = self._pieces[number].rows_path if rows else self._pieces[number].path
        with open(path, "rb") as stream:
            stream.seek((start - starts[number]) * itemsize)
            return stream.read(min(count, starts[number + 1] - start) * itemsize)
