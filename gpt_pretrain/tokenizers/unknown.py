"""Count the parts of a text that a vocabulary lacks. They are all encoded as the same token, such as [UNK]."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from gpt_pretrain.system.formatting import format_rounded
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.base import Tokenizer

MANY_UNKNOWN = 0.001  # Share of a text's tokens above which a warning is due.
MAX_EXAMPLE = 80  # Characters of an example.
MAX_SHOWN = 3  # Parts shown in a message about a prompt.
MAX_WORDS, MAX_CHARACTERS = 2000, 2000  # Distinct words of a text to examine, and characters of a word.


class UnknownText:
    """Count the unknown tokens of a text: the tokens for text that the vocabulary lacks.

    Args:
        tokenizer: The tokenizer that encodes the text.

    Attributes:
        tokens: The number of unknown tokens.
        example: A part of the text that the vocabulary lacks; empty if there is none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens = 0
        self.example = ""

    def is_in(self, token_ids: np.ndarray) -> bool:
        """Return whether any of these tokens is the unknown token."""
        return self._tokenizer.unknown_id is not None and bool((token_ids == self._tokenizer.unknown_id).any())

    def add(self, text: str, token_ids: np.ndarray) -> None:
        """Count the unknown tokens of a text encoded by `encode_ordinary`."""
        if self._tokenizer.unknown_id is None:
            return
        found = int(np.count_nonzero(token_ids == self._tokenizer.unknown_id))
        self.tokens += found
        if found and not self.example:
            self.example = next(iter(unknown_parts(text, self._tokenizer)), "")[:MAX_EXAMPLE]


def unknown_parts(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the characters of a text that a vocabulary lacks, or words that are lost as a whole."""
    if not _has_unknown(text, tokenizer):
        return
    own_text, seen = _unknown_token(tokenizer), set[str]()
    for word in itertools.islice(dict.fromkeys(text.split()), MAX_WORDS):
        if word == own_text or not _has_unknown(word, tokenizer):
            continue
        for part in _parts_of(word, tokenizer):
            if part not in seen:
                yield part
            seen.add(part)


def _parts_of(word: str, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the first characters of a word that a vocabulary lacks, or the word if it lacks the word as a whole."""
    any_character = False
    if tokenizer.encode_ordinary(word).tolist() != [tokenizer.unknown_id]:
        for char in itertools.islice(dict.fromkeys(word), MAX_CHARACTERS):
            if _has_unknown(char, tokenizer):
                any_character = True
                yield char
    if not any_character:
        yield word


def describe_unknown(tokens: int, total: int, example: str) -> str:
    """Return sentences about the unknown tokens of a text."""
    share = 100 * tokens / max(total, 1)
    such_as = f", such as {short_repr(example)}" * bool(example)
    return (
        f"{tokens:,} of {total:,} tokens ({format_rounded(share)}%) stand for text that the vocabulary lacks{such_as}. "
        "A model cannot learn it. A vocabulary with a token for each byte, as gpt2 has, lacks nothing."
    )


def unknown_prompt(prompt: str, tokenizer: Tokenizer) -> str | None:
    """Return a sentence about the parts of a prompt that the vocabulary lacks, or None if it has all of them."""
    parts = list(itertools.islice(unknown_parts(prompt, tokenizer), MAX_SHOWN + 1))
    if not parts:
        return None
    shown = ", ".join(map(short_repr, parts[:MAX_SHOWN])) + ", ..." * (len(parts) > MAX_SHOWN)
    return f"The vocabulary lacks {shown}: the model reads {_unknown_token(tokenizer)} instead."


def _unknown_token(tokenizer: Tokenizer) -> str:
    return "" if tokenizer.unknown_id is None else tokenizer.token_bytes(tokenizer.unknown_id).decode(errors="replace").strip()


def _has_unknown(text: str, tokenizer: Tokenizer) -> bool:
    return tokenizer.unknown_id is not None and bool((tokenizer.encode_ordinary(text) == tokenizer.unknown_id).any())
