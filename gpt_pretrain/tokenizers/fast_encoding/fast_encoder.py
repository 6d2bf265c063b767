"""Encode large texts with the library gigatoken, about twenty times as fast as tiktoken, with the same token ids.

Its ids are always checked against the tokenizer's. First, both must encode all tokens of the vocabulary alike, and texts that
tokenizers often get wrong. Later, both encode a sample of the texts. The characters of a text decide whether it is in the sample,
so every run compares the same texts. If a difference is found, encoding starts again without the library. If the two disagree on
a character, the tokenizer itself encodes the texts with this character.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from gpt_pretrain.system.resources import resident_memory, return_freed_memory
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.fast_encoding.disputed import DisputedCharacters
from gpt_pretrain.tokenizers.fast_encoding.gigatoken_engine import (
    MARKER,
    Encode,
    UnsupportedTokenizerError,
    engine_builder,
    has_marker,
)

# Bytes of a text. Smaller texts take less time than building an encoder.
WORTHWHILE = 1 << 23
COMPARED_FIRST = 1 << 20  # Bytes at the beginning of a text or a corpus. All their token ids are compared.
COMPARED = 1 << 12  # Bytes to compare at a time.
COMPARED_SHARE = 1 << 10  # One in this many bytes is compared.
TOGETHER = 1 << 19  # Characters of a vocabulary to compare at a time. The tokenizer may take 250 bytes for each.
# gigatoken 0.10 remembers every word. For a text of random words, this takes up to ten bytes per byte. The encoder is therefore
# built anew when the process has grown by this much memory. The growth is checked each time this many bytes have been encoded.
# Source: https://github.com/marcelroed/gigatoken/issues/36
MAX_GROWTH, GROWTH_CHECKED = 1 << 28, 1 << 24
WITHOUT_MEASURE = 1 << 28  # Bytes after which it is built anew if the process's memory is unknown.
DIFFICULT = (
    "I'm sure they'll say we've HE'S DON'T 'Tis the '90s'\u017f d'accord l\u2019\u00e9t\u00e9",
    "a  b   c    \n\n\n  d \t\t e\r\nf\r\rg \u00a0\u2003\u3000\u200b x  ",
    " \n \n", "   ", "\n\n\n\n", "x \n", "\x00\x01\x1c\x1d\x85\u2028\u2029", "0 12 345 6789 1234567890 ½ ² Ⅷ ١٢٣ १२३ 1a2b3c",
    "!!! ... ---- ___ ?!?! /* ** */ </p> \\\\ {}[]() ==> `` '' \"\"",
    "你好\uff0c世界。日本語の文章です。한국어 ไทย עברית مرحبا हिन्दी Ελληνικά Русский",
    "e\u0301 n\u0303 \u0301\u0302 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f \U00020000 \uffff",
    "<|endoftext> <|endoftext <|endoftext><|fim_prefix|> [UNK] <unk> </s> <0x0A>",
    "a" * 3000, " " * 3000 + "x", "\n" * 500, "7" * 1000, "-" * 1000, "ab" * 1000, "é" * 500, "的" * 500,
)  # fmt: skip


class DifferentIdsError(Exception):
    """The library gives other ids than the tokenizer, or fails."""


class FastEncoder:
    """Encode texts like a tokenizer's `encode_ordinary`, with the library if it supports the vocabulary.

    Args:
        tokenizer: The tokenizer.
        use_library: Whether the library may be used at all.
        compare_vocabulary: Compare the ids of all tokens now. Otherwise, call `compare_vocabulary` before using the ids.

    Attributes:
        slow_because: The reason why the tokenizer itself encodes; empty if the library does.
        takes_documents: Whether several documents can be encoded together.
    """

    def __init__(self, tokenizer: Tokenizer, *, use_library: bool = True, compare_vocabulary: bool = True) -> None:
        self._tokenizer = tokenizer
        self._engine: _BoundedEngine | None = None
        self._to_compare = 0
        self.takes_documents = False
        self.slow_because = "" if use_library else "the text is small"
        if use_library:
            try:
                self._engine = _BoundedEngine(engine_builder(tokenizer))
                self._disputed = DisputedCharacters(self._encodes_alike)
                self._compare_difficult()
                if compare_vocabulary:
                    self.compare_vocabulary()
            except (UnsupportedTokenizerError, DifferentIdsError) as error:
                self._engine, self.slow_because = None, str(error)

    def compare_vocabulary(self) -> None:
        """Compare the ids of all tokens that are valid texts, if the library is used.

        Raises:
            DifferentIdsError: If they differ.
        """
        if self._engine is None:
            return
        data = [self._tokenizer.token_bytes(token_id) for token_id in range(self._tokenizer.vocab_size)]
        tokens = [token.decode(errors="ignore") for token in data if MARKER not in token]
        self.compare_next(1 << 40)
        for group in _in_groups(tokens):
            for text in ("\n".join(group), "".join(group)):
                self.encode(text)
        self.compare_next(0)

    def compare_next(self, size: int = COMPARED_FIRST) -> None:
        """Compare all token ids of the next bytes with the tokenizer's, and then only the ids of a sample."""
        self._to_compare = size

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a text, uint32.

        Raises:
            DifferentIdsError: If the library gives other ids than the tokenizer, or fails.
        """
        try:
            token_ids = self.encode_bytes(text.encode())
        except UnicodeEncodeError:  # Only the tokenizer accepts half a surrogate pair.
            token_ids = None
        return self._tokenizer.encode_ordinary(text) if token_ids is None else token_ids

    def encode_bytes(self, data: bytes) -> np.ndarray | None:
        """Return the token ids of a text in UTF-8, uint32, or None if the tokenizer must encode it.

        Raises:
            DifferentIdsError: As in `encode`.
        """
        if self._engine is None or MARKER in data or self._disputed.are_in(data):
            return None
        token_ids = _encode(self._engine.encode, data)
        if self._to_compare > 0:
            self._to_compare -= len(data)
            self._compare(data.decode(), token_ids)
        else:
            self._compare_sample(data)
        return token_ids

    def encode_documents(self, documents: Sequence[bytes], data: bytes) -> tuple[np.ndarray, np.ndarray] | None:
        """Encode several documents at once, if `takes_documents`.

        Args:
            documents: The documents in UTF-8, without end-of-text markers.
            data: All documents, each followed by a marker.

        Returns:
            The token ids of all documents, uint32, each followed by the end of text, and the number of ids of each document; None
            if each document must be encoded by itself.

        Raises:
            DifferentIdsError: As in `encode`.
        """
        assert self._engine is not None, "there is an engine"
        if self._disputed.are_in(data):
            return None
        token_ids = _encode(self._engine.encode, data)
        (ends,) = np.nonzero(token_ids == self._tokenizer.eos_id)
        if len(ends) != len(documents):
            raise DifferentIdsError(f"gigatoken finds {len(ends):,} ends of {len(documents):,} documents")
        if self._to_compare > 0:
            for document, begin, end in zip(documents, [0, *(ends[:-1] + 1).tolist()], ends.tolist(), strict=True):
                self._to_compare -= len(document)
                self._compare(document.decode(), token_ids[begin:end])
                if self._to_compare <= 0:
                    break
        else:
            self._compare_sample(data)
        return token_ids, np.diff(ends, prepend=-1)

    def _compare_sample(self, data: bytes) -> None:
        """Compare a part of a text or of several documents, if it belongs to the sample."""
        if not _is_chosen(data):
            return
        assert self._engine is not None, "there is an engine"
        start = _number(data) % max(len(data) - COMPARED, 1)
        for text in data[start : start + COMPARED].decode(errors="ignore").split(END_OF_TEXT):
            self._compare(text, _encode(self._engine.encode, text.encode()))

    def _encodes_alike(self, text: str) -> bool:
        """Return whether the library and the tokenizer give the same ids to a text."""
        assert self._engine is not None, "there is an engine"
        return np.array_equal(_encode(self._engine.encode, text.encode()), self._tokenizer.encode_ordinary(text))

    def _compare(self, text: str, token_ids: np.ndarray) -> None:
        if not np.array_equal(token_ids, self._tokenizer.encode_ordinary(text)):
            raise DifferentIdsError(f"gigatoken encodes {short_repr(text)} in another way than {self._tokenizer.name}")

    def _compare_difficult(self) -> None:
        """Compare the ids of difficult texts, each by itself and as documents that follow each other.

        Raises:
            DifferentIdsError: If they differ.
        """
        self.compare_next(1 << 40)
        for text in (*DIFFICULT, "".join(DIFFICULT)):
            self.encode(text)
        documents = [text.encode() for text in DIFFICULT]
        with suppress(DifferentIdsError):
            self.takes_documents = (
                has_marker(self._tokenizer) and self.encode_documents(documents, MARKER.join([*documents, b""])) is not None
            )
        self.compare_next(0)


class _BoundedEngine:
    """An engine that is built anew when its memory has grown."""

    def __init__(self, build: Callable[[], Encode]) -> None:
        self._build = build
        self._renew()

    def encode(self, data: bytes) -> np.ndarray:
        self._left -= len(data)
        if self._left < 0:
            self._limit_memory()
        return self._encode(data)

    def _limit_memory(self) -> None:
        now = resident_memory()
        if now is None or now - self._memory > MAX_GROWTH:
            self._renew()
        else:
            self._left = GROWTH_CHECKED

    def _renew(self) -> None:
        self._encode: Encode = _no_engine  # frees the memory of the old one first
        return_freed_memory()
        self._encode = self._build()
        memory = resident_memory()
        self._memory, self._left = memory or 0, WITHOUT_MEASURE if memory is None else GROWTH_CHECKED


def _in_groups(tokens: Iterable[str]) -> Iterator[list[str]]:
    """Yield the tokens in lists of at most TOGETHER characters. Longer tokens are left out."""
    group, size = list[str](), 0
    for token in tokens:
        if len(token) > TOGETHER:
            continue
        if size + len(token) > TOGETHER:
            yield group
            group, size = [], 0
        group.append(token)
        size += len(token)
    yield group


def _no_engine(_: bytes) -> np.ndarray:
    raise AssertionError("no engine has been built")


def _encode(encode: Encode, data: bytes) -> np.ndarray:
    """Call the engine. Its failures may have any class: a panic of Rust is not even an Exception.

    Raises:
        DifferentIdsError: If it fails.
    """
    try:
        return encode(data)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        text = short_repr(data.decode(errors="replace"))
        raise DifferentIdsError(f"gigatoken fails on {text} ({type(error).__name__})") from error


def _is_chosen(data: bytes) -> bool:
    """Return whether a text belongs to the sample. The probability depends on its length."""
    return _number(data) % COMPARED_SHARE <= len(data) // COMPARED


def _number(data: bytes) -> int:
    """Return a number that depends only on the text."""
    return zlib.crc32(data[:64]) ^ len(data)
