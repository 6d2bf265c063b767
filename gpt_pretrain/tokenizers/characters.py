"""The tokenizer with one token for each character of a fixed alphabet."""

from __future__ import annotations

from urllib.parse import quote, unquote

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.base import END_OF_TEXT, check_one_text, encode_with_end_of_text

# The name of a character tokenizer is one of these prefixes and its percent-encoded alphabet. The second prefix means that there
# is no end of text.
CHARACTERS_PREFIX, ALPHABET_PREFIX = "characters:", "alphabet:"
CHARACTER_PREFIXES = (CHARACTERS_PREFIX, ALPHABET_PREFIX)


class CharacterTokenizer:
    """One token for each character of an alphabet, and mostly one for the end of text.

    Args:
        alphabet: The characters in the order of their ids.
        end_of_text: Whether there is an id for the end of text, the last one. Models of nanoGPT have none.

    Raises:
        UserError: If the alphabet is empty or contains a character twice.
    """

    definition = None
    keeps_bytes = True
    unknown_id = None

    def __init__(self, alphabet: str, *, end_of_text: bool = True) -> None:
        self.name = (CHARACTERS_PREFIX if end_of_text else ALPHABET_PREFIX) + quote(alphabet, safe="")
        self._ids = {character: token_id for token_id, character in enumerate(alphabet)}
        if len(self._ids) != len(alphabet) or not alphabet:
            raise UserError(
                f"tokenizer={short_repr(self.name)}: the alphabet must have at least one character and each only once."
            )
        self.alphabet = alphabet
        self.vocab_size = len(alphabet) + end_of_text
        self.eos_id = len(alphabet) if end_of_text else None

    @classmethod
    def from_name(cls, name: str) -> CharacterTokenizer:
        """Build the tokenizer from its name, the inverse of `name`."""
        prefix, _, alphabet = name.partition(":")
        return cls(unquote(alphabet), end_of_text=prefix + ":" == CHARACTERS_PREFIX)

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
        check_one_text(text)
        try:
            return np.array([self._ids[character] for character in text], np.uint32)
        except KeyError as error:
            raise UserError(
                f"The character {error} is not among the {len(self._ids)} characters of the model's alphabet: "
                f"{short_repr(self.alphabet)}."
            ) from error

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, or no bytes if the id is outside the vocabulary."""
        if token_id == self.eos_id:
            return END_OF_TEXT.encode()
        return self.alphabet[token_id].encode() if 0 <= token_id < len(self.alphabet) else b""
