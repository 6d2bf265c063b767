"""Text as token files on disk: made once for each text, tokenizer and split, then read a window at a time.

A token file is nothing but little-endian numbers, two bytes each where the vocabulary allows it, else four.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from gpt_pretrain.data.text import Text
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.files import replacing, sync_file
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer, token_itemsize

AT_ONCE = 16  # pieces of a remote text
SAMPLE = 64, 4096  # places in a text, and tokens read at each, that tell how often each token occurs
FORMAT = 1  # raise it when a change makes old token files wrong

log = logging.getLogger(__name__)


class TokenText(Protocol):
    """Tokens that are read piece by piece, wherever they are."""

    @property
    def count(self) -> int:
        """Tokens in it."""
        ...

    @property
    def remote(self) -> bool:
        """Whether reading takes long enough to be done ahead."""
        ...

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Token ids from start on, (count,).

        Raises:
            UserError: when they cannot be read.
        """
        ...

    def prefetch(self, start: int, count: int) -> None:
        """Begin to fetch tokens that will soon be read, and do not wait for them."""
        ...


@dataclass(frozen=True)
class Tokens:
    """A token file.

    Args:
        path: the file.
        count: tokens in it.
        itemsize: bytes a token.
        sha256: of the file, in hexadecimal.
    """

    path: Path
    count: int
    itemsize: int
    sha256: str

    @property
    def remote(self) -> bool:
        """A token file is on this machine."""
        return False

    def prefetch(self, start: int, count: int) -> None:
        """The system reads ahead by itself."""

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Token ids from the file, (count,); nothing of it stays in memory, as pages of a mapped file would.

        Raises:
            UserError: when the file no longer has them.
        """
        n_bytes = (self.count - start if count is None else count) * self.itemsize
        if hasattr(os, "pread"):
            data = os.pread(self._file.fileno(), n_bytes, start * self.itemsize)
        else:  # Windows, where each loader process has opened the file itself
            self._file.seek(start * self.itemsize)
            data = self._file.read(n_bytes)
        if len(data) < n_bytes:
            raise UserError(f"{self.path} has been shortened since training began. It is made again at the next start.")
        return np.frombuffer(data, f"<u{self.itemsize}")

    @cached_property
    def _file(self) -> io.FileIO:
        return io.FileIO(self.path)

    def __getstate__(self) -> dict[str, object]:
        """Loader processes open the file themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def is_whole(self) -> bool:
        """Whether the file is there, with the recorded size and checksum."""
        try:
            return self.path.stat().st_size == self.count * self.itemsize and _file_sha256(self.path) == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class TokenSplit:
    """The two parts of a text, or of a corpus of token shards, as tokens.

    Args:
        text_sha256: a hash of the content.
        characters, documents, n_bytes: of the text behind both parts, as far as they are known.
    """

    train: TokenText
    val: TokenText
    text_sha256: str
    characters: int | None = None
    documents: int | None = None
    n_bytes: int | None = None

    @property
    def extent(self) -> str:
        """How much text it is, in words; empty where nothing is known but tokens."""
        amounts = {"characters": self.characters, "documents": self.documents, "bytes of text": self.n_bytes}
        return ", ".join(f"{amount:,} {what}" for what, amount in amounts.items() if amount is not None)


def tokenize_text(text: Text, tokenizer: Tokenizer, *, train_ratio: float, cache_dir: Path) -> TokenSplit:
    """Split a text by characters and turn each part into tokens, or find that done already.

    Args:
        train_ratio: share of the characters that the training part gets, from the start of the text.
        cache_dir: where token files are kept, in folders named after a hash of what they are made from.

    Raises:
        UserError: when the text is empty, not UTF-8 or unreadable, or cache_dir cannot be written.
    """
    text_sha256 = text.sha256()
    key = hashlib.sha256(
        json.dumps([FORMAT, text_sha256, tokenizer.name, tokenizer.vocab_size, train_ratio]).encode()
    ).hexdigest()[:32]
    folder = cache_dir / "tokens" / key
    if (found := _load(folder)) is not None:
        return found
    characters = sum(len(piece) for piece in text.pieces())
    if characters == 0:
        names = ", ".join(map(str, text.files[:3])) + (", ..." if len(text.files) > 3 else "")
        raise UserError(f"The text is empty: {names}. Give some text with data.path=FILE, DIRECTORY or GLOB.")
    try:
        return _build(folder, text, tokenizer, text_sha256=text_sha256, characters=characters, train_ratio=train_ratio)
    except OSError as error:
        raise UserError(
            f"The token cache {folder.parent} cannot be written: {error.strerror or error}. "
            "Choose another folder with data.cache_dir=FOLDER."
        ) from error


def encode_pieces(pieces: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Token ids of a text that comes in pieces, the same as of the whole text at once.

    A piece ends anywhere; encoding ends between a letter or digit and a space or line feed, where no token of any encoding here
    reaches across. What stands behind the last such place waits for the next piece.
    """
    rest = ""
    for piece in pieces:
        searched = max(len(rest), 1)
        rest += piece
        for cut in range(len(rest) - 1, searched - 1, -1):
            if rest[cut] in " \n" and rest[cut - 1].isalnum():
                yield tokenizer.encode(rest[:cut])
                rest = rest[cut:]
                break
    if rest:
        yield tokenizer.encode(rest)


def _load(folder: Path) -> TokenSplit | None:
    """The token files in folder, or None if they are missing or damaged."""
    try:
        fields = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        train, val = (Tokens(path=folder / f"{part}.bin", **fields.pop(part)) for part in ("train", "val"))
        split = TokenSplit(train=train, val=val, **fields)
        whole = train.is_whole() and val.is_whole()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        log.warning("The token cache %s is damaged; it is made again.", folder)
        return None
    return split


def _build(
    folder: Path, text: Text, tokenizer: Tokenizer, *, text_sha256: str, characters: int, train_ratio: float
) -> TokenSplit:
    itemsize = token_itemsize(tokenizer.vocab_size)
    with replacing(folder) as scratch:
        scratch.mkdir(parents=True)
        cut = _split_at(text, int(train_ratio * characters))
        fields = {
            part: _write_tokens(scratch / f"{part}.bin", encode_pieces(_between(text, *span), tokenizer), itemsize)
            for part, span in (("train", (0, cut)), ("val", (cut, characters)))
        }
        record = fields | {"text_sha256": text_sha256, "characters": characters}
        (scratch / "split.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        if (other := _load(folder)) is not None:  # another process was faster
            return other
    split = _load(folder)
    assert split is not None, f"{folder} was just written"
    return split


def _split_at(text: Text, cut: int) -> int:
    """The character to split at: cut, unless it lies inside an `<|endoftext|>` between two files, which stays whole behind it."""
    start = 0
    for piece in text.pieces():
        if piece == END_OF_TEXT and start < cut < start + len(piece):
            return start
        start += len(piece)
    return cut


def _between(text: Text, begin: int, end: int) -> Iterator[str]:
    """The characters begin to end (without it) of a text."""
    start = 0
    for piece in text.pieces():
        if start < end and start + len(piece) > begin:
            yield piece[max(begin - start, 0) : end - start]
        start += len(piece)


def _write_tokens(path: Path, batches: Iterable[list[int]], itemsize: int) -> dict[str, object]:
    digest, count = hashlib.sha256(), 0
    with open(path, "wb") as stream:
        for batch in batches:
            data = np.array(batch, dtype=f"<u{itemsize}").tobytes()
            digest.update(data)
            stream.write(data)
            count += len(batch)
        sync_file(stream)
    return {"count": count, "itemsize": itemsize, "sha256": digest.hexdigest()}


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sample_tokens(tokens: TokenText) -> np.ndarray:
    """Token ids from places spread evenly over a text; all of a short one."""
    places, length = SAMPLE
    if tokens.count <= places * length:
        return tokens.read()
    starts = np.linspace(0, tokens.count - length, places).astype(int).tolist()
    if not tokens.remote:
        return np.concatenate([tokens.read(start, length) for start in starts])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return np.concatenate(list(pool.map(lambda start: tokens.read(start, length), starts)))


def loss_by_frequencies(tokens: TokenText) -> float:
    """Cross-entropy, in nats a token, of guessing each token as often as it occurs in a sample from all over the text."""
    _, counts = np.unique(sample_tokens(tokens), return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
