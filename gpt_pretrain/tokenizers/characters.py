"""The tokenizer with one token for each character of a fixed alphabet."""

from __future__ import annotations

from urllib.parse import quote, unquote

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import short_repr
from gpt_pretrain.tokenizers.base import END_OF_TEXT, encode_with_end_of_text

CHARACTERS_PREFIX = "characters:"  # The name of a character tokenizer is this prefix and its percent-encoded alphabet.


class CharacterTokenizer:
    """One token for each character of an alphabet, and one for the end of text.

    Args:
        alphabet: The characters in the order of their ids.

    Raises:
        UserError: If the alphabet is empty or holds a character twice.
    """

    def __init__(self, alphabet: str) -> None:
        self.name = CHARACTERS_PREFIX + quote(alphabet, safe="")
        self._ids = {character: token_id for token_id, character in enumerate(alphabet)}
        if len(self._ids) != len(alphabet) or not alphabet:
            raise UserError(
                f"tokenizer.name={short_repr(self.name)}: the alphabet must have at least one character and each only once."
            )
        self._alphabet = alphabet
        self.vocab_size = len(alphabet) + 1
        self.eos_id = len(alphabet)

    @classmethod
    def from_name(cls, name: str) -> CharacterTokenizer:
        """Build the tokenizer from its name, the inverse of `name`."""
        return cls(unquote(name.removeprefix(CHARACTERS_PREFIX)))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text, with `<|endoftext|>` encoded as eos_id.

        Raises:
            UserError: If the alphabet lacks a character of text.
        """
        return encode_with_end_of_text(self, text)

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Return the token ids of text as uint32, with `<|endoftext|>` treated as ordinary text.

        Raises:
            UserError: If the alphabet lacks a character of text.
        """
        try:
            return np.array([self._ids[character] for character in text], np.uint32)
        except KeyError as error:
            raise UserError(
                f"The character {error} is not among the {len(self._ids)} characters of the model's alphabet."
            ) from error

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, or no bytes if the id is outside the vocabulary."""
        if token_id == self.eos_id:
            return END_OF_TEXT.encode()
        return self._alphabet[token_id].encode() if token_id < self.eos_id else b""
