"""Choose a sample of a corpus by the hashes of its pieces, so that the order of the files does not matter."""

from __future__ import annotations

import hashlib
import heapq
import math
import re
from collections.abc import Iterator

SAMPLE_BYTES = 50_000_000  # the usual size of the sample that a vocabulary is trained on
PIECE_CHARACTERS = 1 << 16
# Training a vocabulary takes time and memory for each different word. In a sample of English, the different words have a tenth of
# all bytes; in a text without spaces and punctuation, nearly all of them. So they may have at most this fraction: one third.
WORDS_SHARE = 3
MANY_WORDS = "that is smaller than usual since it has very many different words"
WORD = re.compile(r"[^\W\d]+|\d{1,3}|[^\w\s]+")
HASHES = 1 << 128


class TextSample:
    """The pieces with the smallest hashes, as many as fit into max_bytes. Only these pieces are kept in memory.

    Args:
        max_bytes: The size of the sample, in bytes of UTF-8.

    Attributes:
        n_bytes: Bytes of the pieces in the sample.
        is_complete: Whether no piece has been left out.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._pieces: list[tuple[int, bytes]] = []  # a heap, the largest hash first
        self._limit = HASHES  # a piece with this hash or a larger one has been left out

    @property
    def is_complete(self) -> bool:
        return self._limit == HASHES

    def add(self, data: bytes, number: int) -> None:
        """Add a piece, unless pieces with smaller hashes already fill the sample.

        Args:
            number: The hash of the piece, from `hash_piece`.
        """
        if number >= self._limit:
            return
        heapq.heappush(self._pieces, (-number, data))
        self.n_bytes += len(data)
        while self.n_bytes > self.max_bytes:
            negative, left_out = heapq.heappop(self._pieces)
            self.n_bytes -= len(left_out)
            self._limit = -negative

    def limit_words(self) -> bool:
        """Leave out pieces, those with the largest hashes first, until the different words have few enough bytes.

        Returns:
            Whether any piece has been left out.
        """
        limit = self.max_bytes // WORDS_SHARE
        if self.n_bytes <= limit:
            return False
        known, size, pieces = set[str](), 0, sorted(self._pieces, reverse=True)
        for count, (negative, data) in enumerate(pieces):
            new = set(WORD.findall(data.decode())) - known
            size += len("".join(new).encode())
            if size > limit and count:
                self._pieces, self._limit = pieces[:count], -negative
                heapq.heapify(self._pieces)
                self.n_bytes = sum(len(piece) for _, piece in self._pieces)
                return True
            known |= new
        return False

    def take_smallest(self) -> tuple[bytes, int] | None:
        """Remove and return the piece with the smallest hash, and its hash. Return None if only one piece is left."""
        if len(set(self._pieces)) < 2:
            return None
        negative, data = smallest = max(self._pieces)
        self._pieces = [piece for piece in self._pieces if piece != smallest]
        heapq.heapify(self._pieces)
        self.n_bytes = sum(len(piece) for _, piece in self._pieces)
        return data, -negative

    def texts(self, *, until: float = math.inf) -> Iterator[str]:
        """Yield the pieces in the order of their hashes, until they have this many bytes."""
        size = 0
        for _, data in sorted(self._pieces, reverse=True):
            if size >= until:
                break
            yield data.decode()
            size += len(data)


def cut_pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most PIECE_CHARACTERS, after a line or a word where there is one."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = start + PIECE_CHARACTERS
        cut = max(text.rfind("\n", start, end) + 1, 0) or text.rfind(" ", start + 1, end)
        end = cut if cut > start else end
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def hash_piece(data: bytes) -> int:
    """Return the hash of a piece, a number below HASHES. The hash of a whole document decides where `prepare` puts it."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "big")
