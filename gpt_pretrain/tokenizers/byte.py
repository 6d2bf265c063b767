"""The tokenizer with one token for each byte."""

from __future__ import annotations

import numpy as np

from gpt_pretrain.tokenizers.base import END_OF_TEXT, check_one_text, encode_with_end_of_text


class ByteTokenizer:
    """One token for each byte of UTF-8, and one for the end of text."""

    name = "byte"
    vocab_size = 257
    eos_id = 256
    definition = None
    keeps_bytes = True
    unknown_id = None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text, with `<|endoftext|>` encoded as eos_id."""
        return encode_with_end_of_text(self, text)

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Return the token ids of text as uint32, with `<|endoftext|>` treated as ordinary text."""
        check_one_text(text)
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, or no bytes if the id is outside the vocabulary."""
        if token_id == self.eos_id:
            return END_OF_TEXT.encode()
        return bytes([token_id]) if 0 <= token_id < self.eos_id else b""
