"""Convert ranks, tiktoken's form of a byte-pair encoding, to the fields of a tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tiktoken_ext import openai_public

from gpt_pretrain.tokenizers.base import END_OF_TEXT
from gpt_pretrain.tokenizers.byte_letters import to_letters
from gpt_pretrain.tokenizers.formats.definition import added_token

# Source: cl100k_base() and o200k_base() in tiktoken_ext/openai_public.py
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
# Escapes and character classes, which stay as they are; quantifiers of possessive repetitions; and ends. An escape or a class
# that is not closed reaches to the end, so that the search takes time in proportion to the pattern's length.
TRANSLATED = re.compile(r"(\\(?:[pPxo]\{[^}]*\}?|.)|\[\^?\]?(?:\\.|[^\\\]])*\]?)|([?*+]|\{\d+(?:,\d*)?\})\+|\$", re.DOTALL)
NO_RANK = 1 << 62  # for a pair that is not a token


@dataclass(frozen=True)
class RankFile:
    """The parts of an encoding that are not in its file of ranks.

    Args:
        pattern: The regular expression that splits a text before the merges.
        specials: The special tokens and their ids.
    """

    pattern: str
    specials: Mapping[str, int]


FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
# The files of tiktoken's encodings, by their SHA-256. Source: tiktoken_ext/openai_public.py
KNOWN_RANKS = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": RankFile(
        openai_public.r50k_pat_str, {END_OF_TEXT: 50256}
    ),
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": RankFile(
        openai_public.r50k_pat_str, {END_OF_TEXT: 50256}
    ),
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": RankFile(
        CL100K_PATTERN,
        {END_OF_TEXT: 100257} | {token: 100258 + n for n, token in enumerate(FIM)} | {"<|endofprompt|>": 100276},
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": RankFile(
        O200K_PATTERN, {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}
    ),
}


def ranks_to_fields(ranks: Mapping[bytes, int], specials: Mapping[str, int], pattern: str) -> dict[str, Any]:
    """Return a byte-level BPE tokenizer with these ranks as the fields of a tokenizer.json.

    Args:
        ranks: The tokens and their ids. The ids are also the order of the merges.
        specials: The special tokens and their ids.
        pattern: The regular expression that splits a text before the merges, in tiktoken's syntax.
    """
    vocabulary, merges = ranks_to_merges(ranks)
    splitter = {"type": "Split", "pattern": {"Regex": to_oniguruma(pattern)}, "behavior": "Isolated", "invert": False}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {
        "model": {"type": "BPE", "vocab": vocabulary | dict(specials), "merges": merges, "ignore_merges": True},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [splitter, letters]},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [added_token(token, token_id) for token, token_id in specials.items()],
    }


def ranks_to_merges(ranks: Mapping[bytes, int]) -> tuple[dict[str, int], list[list[str]]]:
    """Return the ids of the tokens, and the merges in order, with bytes written as letters."""
    vocabulary = {to_letters(token): rank for token, rank in ranks.items()}
    merges = [_last_merge(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    return vocabulary, [[to_letters(left), to_letters(right)] for left, right in merges]


def to_oniguruma(pattern: str) -> str:
    """Translate a pattern of tiktoken for the tokenizers library. There, `{1,3}+` repeats and `$` matches at each line end."""
    return TRANSLATED.sub(lambda match: match[1] or match[2] or r"\z", pattern)


def _last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that byte-pair encoding merges last to form a token."""
    parts = [bytes([byte]) for byte in token]
    pair_ranks = [ranks.get(left + right, NO_RANK) for left, right in pairwise(parts)]
    while len(parts) > 2:
        index = pair_ranks.index(min(pair_ranks))
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
        del pair_ranks[index]
        for changed in range(max(index - 1, 0), min(index + 1, len(pair_ranks))):
            pair_ranks[changed] = ranks.get(parts[changed] + parts[changed + 1], NO_RANK)
    return parts[0], parts[1]
