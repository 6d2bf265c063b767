"""Choose a tokenizer by its name, or guess it from a model's vocabulary size."""

from __future__ import annotations

import tiktoken

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.tokenizers.characters import CHARACTERS_PREFIX, CharacterTokenizer
from gpt_pretrain.tokenizers.tiktoken_bpe import load_tiktoken

KNOWN_SIZES = {"gpt2": 50257, "cl100k_base": 100277, "o200k_base": 200019}


def build_tokenizer(name: str) -> Tokenizer:
    """Build the tokenizer with this name.

    Args:
        name: "gpt2", "byte", another of tiktoken's encodings, or "characters:" followed by a percent-encoded alphabet.

    Raises:
        UserError: If the name is unknown, or the tokenizer's files cannot be loaded.
    """
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    if name.startswith(CHARACTERS_PREFIX):
        return CharacterTokenizer.from_name(name)
    known = sorted(tiktoken.list_encoding_names())
    if name not in known:
        raise UserError(f"tokenizer.name={name}: there is no such tokenizer. Choose byte, {', '.join(known)}.")
    return load_tiktoken(name)


def tokenizer_by_size(vocab_size: int) -> str | None:
    """Return the name of the tokenizer that a model with this vocab_size most likely uses, or None if none fits."""
    if vocab_size == ByteTokenizer.vocab_size:
        return ByteTokenizer.name
    return next((name for name, size in KNOWN_SIZES.items() if fits_vocab_size(size, vocab_size)), None)


def fits_vocab_size(n_tokens: int, vocab_size: int) -> bool:
    """Return whether a model with vocab_size rows can use a tokenizer of n_tokens.

    Some models pad their vocabulary to a multiple of 64 or 128.
    """
    return n_tokens <= vocab_size < n_tokens + 128
