"""Find the longest spans of many short texts that occur in a long one. The long text is read once.

Shapes: n tokens of all short texts together, K short texts, N tokens of a block of the long text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt_pretrain.data.token_stream import TokenStream
from gpt_pretrain.evaluation.memorization import BLOCK, block_starts, window_hashes

MAX_SEARCHED = 1 << 27  # Tokens of the long text. In a longer one, blocks spread evenly over it are searched.
OVERLAP = 1 << 12  # Each block includes this many tokens of the next one. Longer spans across two blocks are cut.
TABLE_BITS = 22
MAX_OCCURRENCES = 64  # equal windows in the short texts to follow
# Windows of the short texts that are visited for a block, those of them that are followed, and windows to look through for texts
# that are not found as a whole yet. These limits bound the time for passages that are repeated, such as rules of dashes.
MAX_VISITED, MAX_FOLLOWED, MAX_LOOKED_THROUGH = 4_000_000, 100_000, 20_000_000


def longest_shared_spans(texts: Sequence[np.ndarray], long_text: TokenStream, *, shortest: int) -> np.ndarray:
    """Return the length of each text's longest span of consecutive tokens that occurs in a long text, int64, (K,).

    Windows of the shortest length are found by their hashes. Then they are confirmed and followed token by token. The memory does
    not depend on the length of the long text.

    Args:
        texts: Token ids of each text, (length,).
        shortest: Tokens of the shortest span to look for. A shorter span counts as 0.

    Source: Karp & Rabin 1987, "Efficient randomized pattern-matching algorithms".
    """
    index = _WindowIndex(texts, shortest)
    if index.hashes.size:
        for start in block_starts(long_text.count, most=MAX_SEARCHED):
            block = long_text.read(start, min(BLOCK + OVERLAP, long_text.count - start)).astype(np.int64)
            if len(block) >= shortest:
                index.follow(block)
    return index.spans


class _WindowIndex:
    """The windows of some texts, ordered by their hashes.

    Attributes:
        hashes: The hashes of all windows, ascending, uint64.
        spans: The longest spans found so far, (K,).
    """

    def __init__(self, texts: Sequence[np.ndarray], shortest: int) -> None:
        self.shortest = shortest
        sizes = np.array([len(text) for text in texts], dtype=np.int64)
        self._sizes = sizes
        self.spans = np.zeros(len(texts), dtype=np.int64)
        self._tokens = np.concatenate([np.zeros(0, dtype=np.int64), *(np.asarray(text, dtype=np.int64) for text in texts)])
        self._text_of = np.repeat(np.arange(len(texts)), sizes)
        self._ends = np.cumsum(sizes)
        count = max(0, len(self._tokens) - shortest + 1)
        positions = np.arange(count)
        positions = positions[positions + shortest <= self._ends[self._text_of[:count]]] if count else positions
        hashes = window_hashes(self._tokens, shortest)[positions] if count else np.zeros(0, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        self.hashes, self._positions = hashes[order], positions[order]
        # A table of the first bits of the hashes cheaply excludes most of a block.
        self._table = np.zeros(1 << TABLE_BITS, dtype=bool)
        self._table[self.hashes >> np.uint64(64 - TABLE_BITS)] = True

    def follow(self, block: np.ndarray) -> None:
        """Add the spans that occur in a block of the long text, (N,)."""
        found = window_hashes(block, self.shortest)
        starts = np.flatnonzero(self._table[found >> np.uint64(64 - TABLE_BITS)])
        first = np.searchsorted(self.hashes, found[starts])
        after = np.searchsorted(self.hashes, found[starts], side="right")
        known = after > first
        covered: dict[int, int] = {}  # By the distance of both positions, the end of the last span.
        visited = followed = looked_through = 0
        for start, low, high in zip(starts[known].tolist(), first[known].tolist(), after[known].tolist(), strict=True):
            looked_through += high - low if high - low > MAX_OCCURRENCES else 0
            if high - low > MAX_OCCURRENCES and looked_through > MAX_LOOKED_THROUGH:
                continue
            occurrences = self._occurrences(low, high)
            visited += len(occurrences)
            for position in occurrences:
                if covered.get(position - start, -1) > start:
                    continue
                text = int(self._text_of[position])
                if self.spans[text] == self._sizes[text]:
                    continue
                followed += 1
                length = self._shared_length(position, int(self._ends[text]), block, start)
                covered[position - start] = start + max(1, length - self.shortest + 1)
                if length >= self.shortest:
                    self.spans[text] = max(self.spans[text], length)
            if visited > MAX_VISITED or followed > MAX_FOLLOWED:
                return

    def _occurrences(self, low: int, high: int) -> list[int]:
        """Return the positions of equal windows in the short texts. If there are many, skip texts already found as a whole."""
        occurrences = self._positions[low:high]
        if len(occurrences) > MAX_OCCURRENCES:
            texts = self._text_of[occurrences]
            occurrences = occurrences[self.spans[texts] < self._sizes[texts]][:MAX_OCCURRENCES]
        found: list[int] = occurrences.tolist()
        return found

    def _shared_length(self, position: int, end: int, block: np.ndarray, start: int) -> int:
        most = min(end - position, len(block) - start)
        differs = np.flatnonzero(self._tokens[position : position + most] != block[start : start + most])
        return int(differs[0]) if differs.size else most
