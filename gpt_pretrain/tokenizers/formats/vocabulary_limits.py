"""Limit the memory and time that a vocabulary takes in the tokenizers library, beyond what its file's size explains."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import short_repr

# Unigram models keep a tree with a node of 350 bytes for each beginning of a token, in UTF-8. XLM-R's 250,002 tokens of about ten
# bytes have a million beginnings.
MAX_BEGINNINGS, MAX_BEGINNINGS_PER_TOKEN, FEW_BEGINNINGS = 5_000_000, 16, 100_000
# At each character of a text, a unigram model tries all tokens that begin there. SentencePiece's have up to 16 characters.
MAX_UNIGRAM_BYTES, MAX_TRIED_BYTES = 500, 4000
# To find word pieces, the library tries all parts of a word. Its default is 100 characters per word, and known models keep it.
MAX_WORD = 256
# Texts that the library copies before, after or in place of parts of a text. Known ones have up to ten characters.
AFFIXES, MAX_AFFIX = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"), 100
MAX_ADDED_BYTES = 2_000_000  # The library takes 75 times as much memory. Gemma 3's 6,400 added tokens have 100 KB.

# Steps that regular expressions may take to search all tokens of a vocabulary once. A million steps take up to 20 ms. For the
# four million characters of a very large vocabulary and the patterns of known tokenizers, they are 40 million.
MAX_SEARCHED = 300_000_000
# While the library encodes a text, it takes up to 350 bytes for each character, after all steps have made the text longer. A step
# takes up to 0.4 microseconds for each of them. DeepSeek's tokenizer has seven steps, of which one may make a text longer.
MAX_CHARACTERS, MAX_STEPPED = 3_000_000, 17_000_000
# A loop that may be tried from each character of a text takes steps of 10 ns in proportion to the square of the text's length.
# All loops may take MAX_RESCANNED steps in one call, and MAX_RESCANNED_OF_ONE for a text of one character.
MAX_RESCANNED, MAX_RESCANNED_OF_ONE = 1_700_000_000, 2000


def longest_part(growth: float, *, loops: int, steps: int) -> int:
    """Return the number of characters of a text that take less than 20 seconds and about 1 GB of memory, whatever they are.

    Args:
        growth: The number of times that the text may become longer.
        loops: As in `check_searched_again`.
        steps: The number of steps of the normalizer and the pre-tokenizer.
    """
    longest = min(MAX_CHARACTERS / growth, MAX_STEPPED / (growth * max(steps, 1)))
    return int(min(longest, math.sqrt(MAX_RESCANNED / loops) / growth) if loops else longest)


def check_searched_again(growth: float, *, loops: int) -> None:
    """Check that regular expressions take little time for a short text.

    Args:
        growth: The number of times that the text may become longer.
        loops: The loops of the patterns that may take time in proportion to the square of the text's length.

    Raises:
        DamagedFileError: If they may take long.
    """
    if loops * growth**2 > MAX_RESCANNED_OF_ONE:
        raise DamagedFileError(
            f"its steps may make a text {growth:,.0f} times as long, and its regular expressions may then search the same "
            "characters again and again"
        )


def check_unigram_tokens(tokens: Iterable[str]) -> None:
    """Check that the tokens of a unigram model take little memory, and little time for each character of a text.

    Raises:
        DamagedFileError: If they could take more.
    """
    ordered = sorted(token.encode(errors="surrogatepass") for token in tokens)
    n_beginnings, tried, nested, before = 0, 0, list[bytes](), b""
    for token in ordered:
        n_beginnings += len(token) - _common_length(before, token)
        before = token
        while nested and not token.startswith(nested[-1]):
            tried -= len(nested.pop())
        nested.append(token)
        tried += len(token)
        if len(token) > MAX_UNIGRAM_BYTES or tried > MAX_TRIED_BYTES:
            raise DamagedFileError(
                f"its token {short_repr(token.decode(errors='replace'))} has {len(token):,} bytes, and begins with "
                f"{len(nested) - 1:,} other tokens, which takes too much time in a unigram model"
            )
    if n_beginnings > min(MAX_BEGINNINGS, FEW_BEGINNINGS + MAX_BEGINNINGS_PER_TOKEN * len(ordered)):
        raise DamagedFileError(
            f"its {len(ordered):,} tokens have {n_beginnings:,} different beginnings, far more than a language has"
        )


def check_longest_word(model: dict[str, Any]) -> None:
    """Check that a model divides only words of a limited length into word pieces.

    Raises:
        DamagedFileError: If the words could be too long.
    """
    if not isinstance(longest := model.get("max_input_chars_per_word", 100), int) or longest > MAX_WORD:
        raise DamagedFileError(f"its max_input_chars_per_word is {short_repr(longest)}, more than the limit of {MAX_WORD}")


def check_affixes(model: dict[str, Any]) -> None:
    """Check the lengths of the texts in AFFIXES.

    Raises:
        DamagedFileError: If one is too long.
    """
    for name in AFFIXES:
        if isinstance(affix := model.get(name), str) and len(affix) > MAX_AFFIX:
            raise DamagedFileError(f"its {name} has {len(affix):,} characters, more than the limit of {MAX_AFFIX}")


def check_added_tokens(tokens: Iterable[dict[str, Any]]) -> None:
    """Check the size of all added tokens.

    Raises:
        DamagedFileError: If it is too large.
    """
    size = sum(len(token["content"].encode(errors="surrogatepass")) for token in tokens)
    if size > MAX_ADDED_BYTES:
        raise DamagedFileError(f"its added tokens have {size:,} bytes, more than the limit of {MAX_ADDED_BYTES:,}")


def check_searched_tokens(tokens: Iterable[str], growth: float, *, loops: int, ways: int) -> None:
    """Check that regular expressions take little time to search all tokens. A search cannot be interrupted.

    Args:
        tokens: The tokens that are searched.
        growth: The number of times that a token may become longer before.
        loops: The loops of the patterns that may take time in proportion to the square of a token's length.
        ways: The ways to match the same text.

    Raises:
        DamagedFileError: If they may take long.
    """
    if not ways:
        return
    lengths = [growth * len(token) for token in tokens]
    if ways * sum(lengths) + loops * sum(length**2 for length in lengths) > MAX_SEARCHED:
        raise DamagedFileError("its regular expressions would search its tokens for too long")


def _common_length(one: bytes, other: bytes) -> int:
    """Return the number of bytes that two tokens share at their beginning."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length
