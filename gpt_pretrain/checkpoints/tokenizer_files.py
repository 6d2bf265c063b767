"""Write this program's tokenizers as files that transformers' AutoTokenizer opens."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.tokenizers.characters import CHARACTERS_PREFIX
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer

# Texts that both sides must encode identically: cases, contractions, numbers, spaces, line ends, scripts, an end of text.
PROBES = [
    "Every effort moves you, doesn't IT?  1234567 3.14\n\n\tnaïve façade\r\n 東京は大きい. Привет! 🙂👩‍👩‍👧\u00a0end ",
    f"One.{END_OF_TEXT}Two{END_OF_TEXT}",
    " \n  \n leading, trailing   ",
]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, context_length: int) -> None:
    """Write a tokenizer's files to a folder, open them with transformers and compare some encodings.

    Raises:
        UserError: If transformers encodes a text differently.
    """
    if tokenizer.name.startswith(CHARACTERS_PREFIX):
        raise UserError("A model with a character tokenizer cannot be exported: transformers has no such tokenizer.")
    vocabulary, merges = _vocabulary(tokenizer)
    theirs: Any
    # The byte tokenizer merges nothing, so GPT-2's way of splitting words makes no difference to it.
    if tokenizer.name in ("gpt2", "byte"):
        theirs = GPT2Tokenizer(vocab=vocabulary, merges=list[Any](merges), model_max_length=context_length)
    else:
        assert isinstance(tokenizer, TiktokenTokenizer)
        theirs = _byte_level_bpe(
            tokenizer.pattern, vocabulary, merges, specials=tokenizer.specials, context_length=context_length
        )
    theirs.save_pretrained(folder)
    # transformers 5 writes the class name TokenizersBackend, which older releases do not know.
    if not isinstance(theirs, GPT2Tokenizer):
        path = folder / "tokenizer_config.json"
        fields = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    opened = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for probe in PROBES:
        if opened.encode(probe, verbose=False) != tokenizer.encode(probe):
            raise UserError(f"tokenizer={tokenizer.name} cannot be exported: transformers encodes {probe!r} differently.")


def _byte_level_bpe(
    pattern: str, vocabulary: dict[str, int], merges: list[tuple[str, str]], *, specials: dict[str, int], context_length: int
) -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer that splits text by its own pattern."""
    fast = FastTokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_for_oniguruma(pattern)), behavior="isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(
        [AddedToken(token, normalized=False) for token in sorted(specials, key=lambda token: specials[token])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, model_max_length=context_length
    )


def _for_oniguruma(pattern: str) -> str:
    """Translate a pattern of tiktoken's for the tokenizers library, where `{1,3}+` repeats and `$` matches at each line end."""
    return re.sub(r"([?*+}])\+", r"\1", pattern).replace("$", r"\z")


def _vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the ids of the tokens, and the merges in order, with bytes written as in GPT-2's vocabulary."""
    if isinstance(tokenizer, ByteTokenizer):
        return {_as_letters(bytes([byte])): byte for byte in range(256)} | {END_OF_TEXT: tokenizer.eos_id}, []
    assert isinstance(tokenizer, TiktokenTokenizer)
    vocabulary = {_as_letters(token): rank for token, rank in tokenizer.ranks.items()} | tokenizer.specials
    merges = [
        _last_merge(token, tokenizer.ranks)
        for token in sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
        if len(token) > 1
    ]
    return vocabulary, [(_as_letters(left), _as_letters(right)) for left, right in merges]


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that byte-pair encoding merges last to form a token."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pair_ranks = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        index = pair_ranks.index(min(pair_ranks))
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]


def _as_letters(token: bytes) -> str:
    """Return bytes as GPT-2's vocabulary writes them: printable Latin-1 unchanged, the others as letters from U+0100 on.

    Source: bytes_to_unicode in OpenAI's gpt-2 `src/encoder.py`.
    """
    return "".join(_LETTERS[byte] for byte in token)


def _letters() -> list[str]:
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


_LETTERS = _letters()
