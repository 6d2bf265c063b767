"""Tokens that lie in many files, read as one stream."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np

from gpt_pretrain.data.files import Files
from gpt_pretrain.data.tokens import TokenText
from gpt_pretrain.errors import UserError


@dataclass(frozen=True)
class Shard:
    """The tokens in one file.

    Args:
        files: the folder that the file is in.
        name: the file.
        count: tokens in it.
        itemsize: bytes a token, little-endian.
        header: bytes before the first token.
        sha256: of the file, in hexadecimal, where that is known.
    """

    files: Files
    name: str
    count: int
    itemsize: int
    header: int = 0
    sha256: str | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.header + self.count * self.itemsize

    @property
    def remote(self) -> bool:
        """Whether `prefetch` is of use."""
        return self.files.remote

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Token ids, (count,).

        Raises:
            UserError: when the file no longer has them.
        """
        n_bytes = (self.count - start if count is None else count) * self.itemsize
        data = self.files.read(self.name, self.header + start * self.itemsize, n_bytes)
        if len(data) < n_bytes:
            raise UserError(f"{self.files.place}: {self.name} has been shortened since training began. Copy it anew.")
        return np.frombuffer(data, f"<u{self.itemsize}")

    def prefetch(self, start: int, count: int) -> None:
        """Begin to fetch tokens that will soon be read."""
        self.files.prefetch(self.name, self.header + start * self.itemsize, count * self.itemsize)


class ConcatenatedTokens:
    """Parts read one after another as one stream of tokens; what is read may lie across their ends.

    Args:
        parts: in order; all have the same bytes a token.
    """

    def __init__(self, parts: Sequence[TokenText]) -> None:
        self.parts = tuple(parts)

    @cached_property
    def _ends(self) -> list[int]:
        """Where each part ends in the stream."""
        return list(accumulate(part.count for part in self.parts))

    @cached_property
    def count(self) -> int:
        """Tokens in all parts."""
        return self._ends[-1] if self.parts else 0

    @cached_property
    def remote(self) -> bool:
        """Whether `prefetch` is of use."""
        return any(part.remote for part in self.parts)

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Token ids, (count,).

        Raises:
            UserError: when a file no longer has them.
        """
        count = self.count - start if count is None else count
        if count == 0:
            return np.zeros(0, "<u2")
        place = bisect_right(self._ends, start)
        inside = start - (self._ends[place - 1] if place else 0)
        if inside + count <= self.parts[place].count:
            return self.parts[place].read(inside, count)
        return np.concatenate([part.read(begin, length) for part, begin, length in self._spans(start, count)])

    def prefetch(self, start: int, count: int) -> None:
        """Begin to fetch tokens that will soon be read."""
        for part, begin, length in self._spans(start, count):
            part.prefetch(begin, length)

    def _spans(self, start: int, count: int) -> list[tuple[TokenText, int, int]]:
        """The parts that a stretch of the stream lies in, with where it begins in each, and how long it is there."""
        spans, place = [], bisect_right(self._ends, start)
        begin = start - (self._ends[place - 1] if place else 0)
        while count > 0:
            length = min(count, self.parts[place].count - begin)
            spans.append((self.parts[place], begin, length))
            count, begin, place = count - length, 0, place + 1
        return spans


def moved(tokens: TokenText, files: Files) -> TokenText:
    """The same shards, read from another place."""
    if isinstance(tokens, TokenSlice):
        return replace(tokens, whole=moved(tokens.whole, files))
    assert isinstance(tokens, ConcatenatedTokens)
    return ConcatenatedTokens([replace(shard, files=files) for shard in tokens.parts if isinstance(shard, Shard)])


@dataclass(frozen=True)
class TokenSlice:
    """So many tokens of others, from begin on."""

    whole: TokenText
    begin: int
    count: int

    @property
    def remote(self) -> bool:
        """Whether `prefetch` is of use."""
        return self.whole.remote

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Token ids, (count,)."""
        return self.whole.read(self.begin + start, self.count - start if count is None else count)

    def prefetch(self, start: int, count: int) -> None:
        """Begin to fetch tokens that will soon be read."""
        self.whole.prefetch(self.begin + start, count)
