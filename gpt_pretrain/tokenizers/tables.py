"""Tokenizers that are only a table, as in nanoGPT's own data: a token for each id, or just the number of ids."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.base import check_one_text
from gpt_pretrain.tokenizers.formats.definition import to_text
from gpt_pretrain.tokenizers.vocabulary import DIGEST_DIGITS, tokenizer_label

KIND = "table"  # of the definition
IDS_PREFIX = "ids:"  # A tokenizer without texts is named by this prefix and the number of its ids.
# Each id takes a row of the model, and a few bytes of a file could state millions. XLM-V's vocabulary has 901,629.
MAX_IDS = 1 << 20
MAX_TOKEN_CHARACTERS = 1000
MAX_TRIED = 3000  # Sum of the different lengths of tokens with the same first letter. At each position, all lengths are tried.


class TableTokenizer:
    """A tokenizer with the tokens of a table, and no end of text.

    If no token has a blank in it, a text is written with blanks between the tokens. Otherwise it is divided into the longest
    tokens that fit, from its beginning on.

    Args:
        label: A name for people. The tokenizer's name is this label and the beginning of its definition's checksum.
        tokens: The tokens in the order of their ids.

    Raises:
        DamagedFileError: If two tokens are the same, or one is empty or too long.
    """

    eos_id = None
    unknown_id = None

    def __init__(self, label: str, tokens: Sequence[str]) -> None:
        self._ids = {token: token_id for token_id, token in enumerate(tokens)}
        if len(self._ids) != len(tokens) or not tokens or "" in self._ids:
            raise DamagedFileError("its tokens are not all different, or one is empty")
        self._tokens = list(tokens)
        self._separated = not any(char.isspace() for token in tokens for char in token)
        self.keeps_bytes = not self._separated
        sizes = defaultdict[str, set[int]](set)
        for token in tokens:
            sizes[token[0]].add(len(token))
        self._sizes = {letter: sorted(found, reverse=True) for letter, found in sizes.items()}
        if max(map(len, tokens)) > MAX_TOKEN_CHARACTERS or max(map(sum, self._sizes.values())) > MAX_TRIED:
            raise DamagedFileError(f"it has tokens of more than {MAX_TOKEN_CHARACTERS:,} characters, or of too many lengths")
        self.vocab_size = len(tokens)
        self.definition = to_text({"kind": KIND, "tokens": self._tokens})
        self.name = f"{tokenizer_label(label)}@{hashlib.sha256(self.definition.encode()).hexdigest()[:DIGEST_DIGITS]}"

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text.

        Raises:
            UserError: If the table lacks a part of text.
        """
        check_one_text(text)
        pieces = text.split() if self._separated else self._longest_tokens(text)
        missing = next((piece for piece in pieces if piece not in self._ids), None)
        if missing is not None:
            known = ", ".join(repr(token) for token in self._tokens[:10]) + (" and others" if self.vocab_size > 10 else "")
            raise UserError(f"{short_repr(missing)} is not one of the {self.vocab_size:,} tokens of {self.name}: {known}.")
        return [self._ids[piece] for piece in pieces]

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Return the token ids of text as uint32.

        Raises:
            UserError: If the table lacks a part of text.
        """
        return np.array(self.encode(text), np.uint32)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, with the blank before it, or no bytes if the id is outside the table."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        return (" " * self._separated + self._tokens[token_id]).encode()

    def _longest_tokens(self, text: str) -> list[str]:
        """Divide a text into the longest tokens that fit. A character that begins no token is its own piece."""
        pieces, start = [], 0
        while start < len(text):
            sizes = self._sizes.get(text[start], ())
            size = next((size for size in sizes if text[start : start + size] in self._ids), 1)
            pieces.append(text[start : start + size])
            start += size
        return pieces


class IdTokenizer:
    """A tokenizer with a known number of ids but no texts. A text is a list of ids with blanks between them.

    Args:
        vocab_size: Number of ids.
    """

    eos_id = None
    definition = None
    keeps_bytes = False
    unknown_id = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.name = f"{IDS_PREFIX}{vocab_size}"

    @classmethod
    def from_name(cls, name: str) -> IdTokenizer:
        """Build the tokenizer from its name, the inverse of `name`.

        Raises:
            UserError: If the name contains no number of ids.
        """
        digits = name.removeprefix(IDS_PREFIX)
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and 0 < int(digits) <= MAX_IDS):
            raise UserError(
                f"tokenizer={short_repr(name)}: write the number of ids, such as {IDS_PREFIX}1500, up to {MAX_IDS:,}."
            )
        return cls(int(digits))

    def encode(self, text: str) -> list[int]:
        """Return the ids that a text lists.

        Raises:
            UserError: If it holds anything else.
        """
        check_one_text(text)
        for word in text.split():
            if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) < self.vocab_size):
                raise UserError(
                    f"{short_repr(word)} is not a token id. Only the number of ids is known for this tokenizer, so write texts "
                    f"as numbers from 0 to {self.vocab_size - 1}, separated by spaces."
                )
        return [int(word) for word in text.split()]

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Return the ids that a text lists, as uint32.

        Raises:
            UserError: If it holds anything else.
        """
        return np.array(self.encode(text), np.uint32)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the digits of an id, with the blank before it, or no bytes if there is no such id."""
        return f" {token_id}".encode() if 0 <= token_id < self.vocab_size else b""


def restore_table(label: str, definition: Mapping[str, Any]) -> TableTokenizer:
    """Build a tokenizer from its definition.

    Raises:
        DamagedFileError: If it is not one.
    """
    tokens = definition.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DamagedFileError("it is not the definition of a tokenizer")
    return TableTokenizer(label, tokens)
