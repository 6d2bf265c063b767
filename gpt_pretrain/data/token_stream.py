"""Streams of token ids: read any range of a training or validation set, in one file or in many."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import numpy as np

from gpt_pretrain.data.files import Files
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import END_OF_TEXT

CONCURRENT_READS = 16  # of a remote stream
SAMPLE_POSITIONS, SAMPLE_LENGTH = 64, 4096  # the parts of a stream that `sample_tokens` reads; the length is in tokens


class TokenStream(Protocol):
    """A sequence of token ids that is read range by range."""

    @property
    def count(self) -> int:
        """Number of tokens."""
        ...

    @property
    def remote(self) -> bool:
        """True if reads are slow enough to be worth prefetching."""
        ...

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Return the token ids from `start` on, (count,).

        Raises:
            UserError: If they cannot be read.
        """
        ...

    def prefetch(self, start: int, count: int) -> None:
        """Start to fetch tokens that will soon be read, without waiting for them."""
        ...


@dataclass(frozen=True)
class Shard:
    """The tokens of one file.

    Args:
        files: The folder that contains the file.
        name: The name of the file.
        count: Number of tokens.
        itemsize: Bytes per token, little-endian.
        header: Bytes before the first token.
        sha256: SHA-256 of the file in hexadecimal, if known.
    """

    files: Files
    name: str
    count: int
    itemsize: int
    header: int = 0
    sha256: str | None = None

    @property
    def n_bytes(self) -> int:
        """Size of the whole file in bytes."""
        return self.header + self.count * self.itemsize

    @property
    def remote(self) -> bool:
        """True if reads are slow enough to be worth prefetching."""
        return self.files.remote

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Return the token ids from `start` on, (count,).

        A read leaves nothing in the memory of this process, unlike the pages of a memory map.

        Raises:
            UserError: If the file has become shorter.
        """
        n_bytes = (self.count - start if count is None else count) * self.itemsize
        data = self.files.read(self.name, self.header + start * self.itemsize, n_bytes)
        if len(data) < n_bytes:
            raise UserError(
                f"{self.files.location}: {self.name} has been truncated since training began. Restore it and resume the run; "
                "a file of the token cache is rebuilt at the next start."
            )
        return np.frombuffer(data, f"<u{self.itemsize}")

    def prefetch(self, start: int, count: int) -> None:
        """Start to fetch tokens that will soon be read, without waiting for them."""
        self.files.prefetch(self.name, self.header + start * self.itemsize, count * self.itemsize)


class ConcatenatedTokens:
    """Several streams read one after another as one stream; a read may cross their boundaries.

    Args:
        parts: The streams in order; all have the same number of bytes per token.
    """

    def __init__(self, parts: Sequence[TokenStream]) -> None:
        self.parts = tuple(part for part in parts if part.count)  # A manifest may list any number of empty ones.

    @cached_property
    def _ends(self) -> list[int]:
        """Position of the end of each part."""
        return list(accumulate(part.count for part in self.parts))

    @cached_property
    def count(self) -> int:
        """Number of tokens in all parts."""
        return self._ends[-1] if self.parts else 0

    @cached_property
    def remote(self) -> bool:
        """True if reads are slow enough to be worth prefetching."""
        return any(part.remote for part in self.parts)

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Return the token ids from `start` on, (count,).

        Raises:
            UserError: If they cannot be read.
        """
        count = self.count - start if count is None else count
        if count == 0:
            return np.zeros(0, "<u2")
        # Most reads lie within one part and need no concatenation.
        index = bisect_right(self._ends, start)
        offset = start - (self._ends[index - 1] if index else 0)
        if offset + count <= self.parts[index].count:
            return self.parts[index].read(offset, count)
        return np.concatenate([part.read(begin, length) for part, begin, length in self._spans(start, count)])

    def prefetch(self, start: int, count: int) -> None:
        """Start to fetch tokens that will soon be read, without waiting for them."""
        for part, begin, length in self._spans(start, count):
            part.prefetch(begin, length)

    def _spans(self, start: int, count: int) -> list[tuple[TokenStream, int, int]]:
        """Return the parts that a range covers, each with the start and the length of its share."""
        spans, index = [], bisect_right(self._ends, start)
        begin = start - (self._ends[index - 1] if index else 0)
        while count > 0:
            length = min(count, self.parts[index].count - begin)
            spans.append((self.parts[index], begin, length))
            count, begin, index = count - length, 0, index + 1
        return spans


@dataclass(frozen=True)
class TokenSlice:
    """A contiguous range of another stream.

    Args:
        whole: The other stream.
        begin: Position of the first token in it.
        count: Number of tokens.
    """

    whole: TokenStream
    begin: int
    count: int

    @property
    def remote(self) -> bool:
        """True if reads are slow enough to be worth prefetching."""
        return self.whole.remote

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Return the token ids from `start` on, (count,)."""
        return self.whole.read(self.begin + start, self.count - start if count is None else count)

    def prefetch(self, start: int, count: int) -> None:
        """Start to fetch tokens that will soon be read, without waiting for them."""
        self.whole.prefetch(self.begin + start, count)


@dataclass(frozen=True)
class TokenSplit:
    """The training set and the validation set as tokens.

    Args:
        train: The training set.
        val: The validation set.
        text_sha256: A hash of the content of both.
        characters: Number of characters in the text, without end-of-text markers, if known.
        documents: Number of documents in the text, if known.
        n_bytes: Size of the text in bytes, if known.
        markers: Number of end-of-text markers that are spelled out in the text, if known.
        without_text: Number of documents that are left out because they have no text, if known.
        unknown_tokens: Number of tokens that stand for what the vocabulary lacks, if known.
        unknown_example: A part of the text that such a token stands for.
        is_given: Whether the data bring their own validation set, so that data.train_ratio is not used.
    """

    train: TokenStream
    val: TokenStream
    text_sha256: str
    characters: int | None = None
    documents: int | None = None
    n_bytes: int | None = None
    markers: int | None = None
    without_text: int | None = None
    unknown_tokens: int | None = None
    unknown_example: str = ""
    is_given: bool = False

    @property
    def text_size(self) -> str:
        """The known amounts of text in words, or an empty string if only the tokens are known."""
        amounts = {"characters": self.characters, "documents": self.documents, "bytes of text": self.n_bytes}
        if self.markers:
            amounts[f"{END_OF_TEXT} in the text"] = self.markers
        return ", ".join(f"{amount:,} {unit}" for unit, amount in amounts.items() if amount is not None)


def with_files(tokens: TokenStream, files: Files) -> TokenStream:
    """Return the same shards, read from other files."""
    if isinstance(tokens, TokenSlice):
        return replace(tokens, whole=with_files(tokens.whole, files))
    assert isinstance(tokens, ConcatenatedTokens)
    return ConcatenatedTokens([replace(shard, files=files) for shard in tokens.parts if isinstance(shard, Shard)])


def sample_tokens(tokens: TokenStream) -> np.ndarray:
    """Return token ids from positions spread evenly over a stream, or all of a short one."""
    if tokens.count <= SAMPLE_POSITIONS * SAMPLE_LENGTH:
        return tokens.read()
    starts = np.linspace(0, tokens.count - SAMPLE_LENGTH, SAMPLE_POSITIONS).astype(int).tolist()
    if not tokens.remote:
        return np.concatenate([tokens.read(start, SAMPLE_LENGTH) for start in starts])
    with ThreadPoolExecutor(CONCURRENT_READS) as pool:
        return np.concatenate(list(pool.map(lambda start: tokens.read(start, SAMPLE_LENGTH), starts)))


def loss_by_frequencies(tokens: TokenStream) -> float:
    """Return the cross-entropy, in nats per token, of predicting each token with its frequency in a sample of the stream."""
    _, counts = np.unique(sample_tokens(tokens), return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
