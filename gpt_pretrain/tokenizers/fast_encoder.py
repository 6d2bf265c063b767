"""Encode large texts with the library gigatoken, about twenty times as fast as tiktoken, with the same token ids.

Its ids are never taken on trust. When an encoder is built, it must encode all tokens of the vocabulary, and texts that tokenizers
often get wrong, as the tokenizer itself does. Later, a sample of the texts is encoded twice and compared; a text's own characters
choose it, so that every run compares the same ones. If a difference is found, encoding starts again without the library.
Characters on which the two libraries disagree, because they know different versions of Unicode, are found by trying all; a text
with one of them is encoded by the tokenizer itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from gpt_pretrain.system.reading import short_repr
from gpt_pretrain.system.resources import resident_memory, return_freed_memory
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.gigatoken_engine import Encode, UnsupportedTokenizerError, engine_builder

# Smaller texts take less time than it takes to build an encoder, in bytes.
WORTHWHILE = 1 << 23
COMPARED_FIRST = 1 << 20  # Characters at the beginning of a text or a corpus of which all token ids are compared.
COMPARED = 1 << 12  # Characters that are compared at a time.
COMPARED_SHARE = 1 << 10  # One in this many characters is compared.
# gigatoken 0.10 remembers every word, which takes up to ten bytes for each byte of a text of random words. It is built anew when
# this process has grown by so much memory, which is looked at each time that so many characters have been encoded.
# Source: https://github.com/marcelroed/gigatoken/issues/36
MAX_GROWTH, GROWTH_CHECKED = 1 << 28, 1 << 24
WITHOUT_MEASURE = 1 << 28  # Characters after which it is built anew where the memory of a process is unknown.
# Chinese, Korean and Tangut characters, and areas that will never have letters. All libraries have agreed on them for years.
SETTLED = (
    *((0x3400, 0x4DB0), (0x4E00, 0x9F00), (0xAC00, 0xD7A4), (0xD800, 0xF900), (0x17000, 0x18700), (0x18800, 0x18B00)),
    *((0x20000, 0x2A6D0), (0x2A700, 0x2B700), (0x2B820, 0x2CE00), (0x2CEC0, 0x2EB00), (0x30000, 0x31300)),
)
LAST_LETTERS = 0x34000  # No letters or numbers follow, nor are any planned, except in areas for private use.
DIFFICULT = (
    "I'm sure they'll say we've HE'S DON'T 'Tis the '90s'\u017f d'accord l\u2019\u00e9t\u00e9",
    "a  b   c    \n\n\n  d \t\t e\r\nf\r\rg \u00a0\u2003\u3000\u200b x  ",
    " \n \n", "   ", "\n\n\n\n", "x \n", "\x00\x01\x1c\x1d\x85\u2028\u2029", "0 12 345 6789 1234567890 ½ ² Ⅷ ١٢٣ १२३ 1a2b3c",
    "!!! ... ---- ___ ?!?! /* ** */ </p> \\\\ {}[]() ==> `` '' \"\"",
    "你好\uff0c世界。日本語の文章です。한국어 ไทย עברית مرحبا हिन्दी Ελληνικά Русский",
    "e\u0301 n\u0303 \u0301\u0302 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f \U00020000 \uffff",
    "<|endoftext|> <|endoftext|><|fim_prefix|> [UNK] <unk> </s> <0x0A>",
    "a" * 3000, " " * 3000 + "x", "\n" * 500, "7" * 1000, "-" * 1000, "ab" * 1000, "é" * 500, "的" * 500,
)  # fmt: skip


class DifferentIdsError(Exception):
    """The library has encoded a text in another way than the tokenizer, or failed."""


class FastEncoder:
    """Encodes texts as a tokenizer's `encode_ordinary` does, with the library if it can hold the vocabulary.

    Args:
        tokenizer: The tokenizer.
        use_library: Whether the library may be used at all.

    Attributes:
        slow_because: Why the tokenizer itself encodes; empty if the library does.
    """

    def __init__(self, tokenizer: Tokenizer, *, use_library: bool = True) -> None:
        self._tokenizer = tokenizer
        self._engine: _BoundedEngine | None = None
        self._to_compare = 0
        self.slow_because = "" if use_library else "the text is small"
        if use_library:
            try:
                self._engine = _BoundedEngine(engine_builder(tokenizer))
                self._disputed = _disputed_characters(self._engine.encode, tokenizer)
                self._compare_vocabulary()
            except (UnsupportedTokenizerError, DifferentIdsError) as error:
                self._engine, self.slow_because = None, str(error)

    def compare_next(self, characters: int = COMPARED_FIRST) -> None:
        """Compare all token ids of so many characters that follow with the tokenizer's, and then those of a sample."""
        self._to_compare = characters

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a text, uint32.

        Raises:
            DifferentIdsError: If the library has encoded a text in another way than the tokenizer, or failed.
        """
        if self._engine is None or self._is_disputed(text):
            return self._tokenizer.encode_ordinary(text)
        token_ids = _encode(self._engine.encode, text)
        if self._to_compare > 0:
            self._to_compare -= len(text)
            self._compare(text, token_ids)
        elif _is_chosen(text):
            start = _number(text) % max(len(text) - COMPARED, 1)
            part = text[start : start + COMPARED]
            self._compare(part, token_ids if len(part) == len(text) else _encode(self._engine.encode, part))
        return token_ids

    def _compare(self, text: str, token_ids: np.ndarray) -> None:
        if not np.array_equal(token_ids, self._tokenizer.encode_ordinary(text)):
            raise DifferentIdsError(f"gigatoken encodes {short_repr(text)} in another way than {self._tokenizer.name}")

    def _compare_vocabulary(self) -> None:
        """Compare the ids of all tokens that are texts, and of difficult texts.

        Raises:
            DifferentIdsError: If they differ.
        """
        data = [self._tokenizer.token_bytes(token_id) for token_id in range(self._tokenizer.vocab_size)]
        tokens = [token.decode(errors="ignore") for token in data]
        texts = ["\n".join(tokens), "".join(tokens), *DIFFICULT, "".join(DIFFICULT)]
        self.compare_next(sum(map(len, texts)))
        for text in texts:
            self.encode(text)
        self.compare_next(0)

    def _is_disputed(self, text: str) -> bool:
        """Return whether a text has a character on which the libraries disagree."""
        if text.isascii():
            return False
        try:
            codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        except UnicodeEncodeError:  # Half a surrogate pair, which only the tokenizer takes.
            return True
        return bool(self._disputed.take(codes, mode="clip").any())


class _BoundedEngine:
    """An engine that is built anew when its memory has grown."""

    def __init__(self, build: Callable[[], Encode]) -> None:
        self._build = build
        self._renew()

    def encode(self, text: str) -> np.ndarray:
        self._left -= len(text)
        if self._left < 0:
            self._limit_memory()
        return self._encode(text)

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


def _no_engine(_: str) -> np.ndarray:
    raise AssertionError("no engine has been built")


def _encode(encode: Encode, text: str) -> np.ndarray:
    """Call the engine, whose failures are of any class; a panic of Rust is not even an Exception.

    Raises:
        DifferentIdsError: If it fails.
    """
    try:
        return encode(text)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise DifferentIdsError(f"gigatoken fails on {short_repr(text)} ({type(error).__name__})") from error


def _disputed_characters(encode: Encode, tokenizer: Tokenizer) -> np.ndarray:
    """Return which characters are letters or numbers to only one of the libraries, boolean, by their codes.

    Before a contraction, these take the apostrophe, and other characters do not.
    """
    disputed = np.zeros(LAST_LETTERS + 1, bool)  # the last stands for all further ones
    unsettled = np.ones(LAST_LETTERS, bool)
    unsettled[:0x80] = False
    for first, end in SETTLED:
        unsettled[first:end] = False
    codes = np.flatnonzero(unsettled)
    for block in np.split(codes, range(1 << 12, len(codes), 1 << 12)):
        _find_disputed(block, encode, tokenizer, disputed)
    return disputed


def _find_disputed(codes: np.ndarray, encode: Encode, tokenizer: Tokenizer, disputed: np.ndarray) -> None:
    """Mark the disputed ones among some characters; halves that give the same ids are not searched further."""
    text = "\n".join(f"{chr(code)}'s" for code in codes)
    if np.array_equal(_encode(encode, text), tokenizer.encode_ordinary(text)):
        return
    if len(codes) == 1:
        disputed[codes] = True
        return
    for half in np.array_split(codes, 2):
        _find_disputed(half, encode, tokenizer, disputed)


def _is_chosen(text: str) -> bool:
    """Return whether a text is compared, with a probability that depends on its length."""
    return _number(text) % COMPARED_SHARE <= len(text) // COMPARED


def _number(text: str) -> int:
    """Return a number that depends on the text only."""
    return zlib.crc32(text[:64].encode(errors="surrogatepass")) ^ len(text)
