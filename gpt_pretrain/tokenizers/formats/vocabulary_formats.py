"""Build a tokenizer from the content of other programs' vocabulary files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.formats.added_tokens import FilesBeside, NamedToken
from gpt_pretrain.tokenizers.formats.definition import (
    MAX_VOCABULARY,
    added_token,
    canonical_fields,
    parse_tokenizer_json,
    vocabulary_of,
)
from gpt_pretrain.tokenizers.formats.encoding_pickle import read_encoding_pickle
from gpt_pretrain.tokenizers.formats.ranks import CL100K_PATTERN, KNOWN_RANKS, RankFile, ranks_to_fields
from gpt_pretrain.tokenizers.formats.sentencepiece_model import sentencepiece_fields
from gpt_pretrain.tokenizers.tiktoken_bpe import gpt2_merges, gpt2_vocabulary, load_tiktoken
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

# The most bytes of a token in tiktoken's format, and the largest sum of the squares of all lengths. Finding the merges of a token
# takes quadratic time. For GPT-2's tokens, the sum is 2.5 million.
MAX_TOKEN_BYTES, MAX_SQUARES = 1000, 200_000_000
GPT2_TOKENS = 50257
# Tokens that may end a text, the likeliest first, for vocabularies that do not name theirs.
ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|eos|>", "[EOS]", "[SEP]")
DOCUMENT_START = "<|bos|>"  # of nanochat
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

log = logging.getLogger(__name__)


def from_tokenizer_json(content: bytes, beside: FilesBeside, *, label: str) -> Tokenizer:
    # Beside a tokenizer.json, the ids of added tokens only give their order. Some tables give them ids of other tokens.
    ordered = sorted(beside.tokens, key=lambda token: inf if token.token_id is None else token.token_id)
    without_ids = replace(beside, tokens=tuple(replace(token, token_id=None) for token in ordered))
    return _finish(parse_tokenizer_json(content), without_ids, label=label)


def from_vocab_and_merges(content: bytes, merges: bytes | None, beside: FilesBeside, *, label: str) -> Tokenizer:
    """Return the tokenizer of GPT-2's two files, with the added tokens in the files beside them."""
    vocab = parse_json(content)
    if merges is None:
        raise DamagedFileError("the merges.txt that belongs to it is missing")
    if sum(token.endswith("</w>") for token in vocab) > len(vocab) // 10:
        raise DamagedFileError("its words end in </w>, as those of CLIP and the first GPT do, not GPT-2's")
    fields = {
        "model": {"type": "BPE", "vocab": vocab, "merges": _pairs(merges)},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": bool(beside.config.get("add_prefix_space", False))},
        "decoder": {"type": "ByteLevel"},
    }
    return _finish(fields, beside, label=label)


def _pairs(merges: bytes) -> list[list[str]]:
    """Return the merges of a merges.txt. Its first line may be a comment."""
    try:
        lines = merges.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise DamagedFileError("merges.txt is not UTF-8") from error
    begin = 1 if lines[0].startswith("#version") else 0
    return [line.split(" ") for line in lines[begin:] if line]


def from_word_pieces(content: bytes, beside: FilesBeside, *, label: str) -> Tokenizer:
    """Return the tokenizer of BERT's vocab.txt, which many Chinese GPTs use."""
    try:
        tokens = content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DamagedFileError("it is not UTF-8") from error
    if sum(token.rpartition(" ")[2].isdecimal() and " " in token for token in tokens) > len(tokens) // 2:
        raise DamagedFileError("its lines are words with their counts, as in a dictionary of fairseq, not BERT's word pieces")
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    fields = {
        "model": {
            "type": "WordPiece",
            "vocab": vocab,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": bool(beside.config.get("tokenize_chinese_chars", True)),
            "strip_accents": beside.config.get("strip_accents"),
            "lowercase": bool(beside.config.get("do_lower_case", True)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }
    named = {token.content for token in beside.tokens}
    own = [NamedToken(token) for token in BERT_SPECIALS if token in vocab and token not in named]
    return _finish(fields, replace(beside, tokens=(*own, *beside.tokens)), label=label)


def from_sentencepiece(content: bytes, beside: FilesBeside, *, label: str) -> Tokenizer:
    """Return the tokenizer of a SentencePiece model, or of ranks. Newer models of Llama store ranks under the same name."""
    if not content.startswith(b"\n"):  # the number and type of the first field
        return from_ranks(content, label=label)
    fields, end = sentencepiece_fields(content)
    return _finish(fields, replace(beside, config={"eos_token": end, **beside.config}), label=label)


def from_ranks(content: bytes, *, label: str) -> Tokenizer:
    """Return the tokenizer of a file in tiktoken's format. The file contains neither the pattern nor the special tokens.

    Raises:
        DamagedFileError: If the file is not in this format.
    """
    ranks: dict[bytes, int] = {}
    for line in content.split(b"\n"):
        token, _, rank = line.strip().partition(b" ")
        if not token:
            continue
        try:
            if not (rank.isdigit() and len(rank) < 10):
                raise ValueError
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise DamagedFileError(f"its line {short_repr(line)} is not a token in base64 and its number") from error
    _check_ranks(ranks)
    known = KNOWN_RANKS.get(hashlib.sha256(content).hexdigest())
    if known is None:
        known = RankFile(CL100K_PATTERN, {END_OF_TEXT: max(ranks.values()) + 1})
        log.warning(
            "%s states neither how it splits a text into words nor its special tokens: cl100k_base's pattern is used, and %s is "
            "token %d. A tokenizer.json states both.",
            label,
            END_OF_TEXT,
            known.specials[END_OF_TEXT],
        )
    return _finish(ranks_to_fields(ranks, known.specials, known.pattern), FilesBeside(), label=label)


def from_encoding_pickle(content: bytes, *, label: str) -> Tokenizer:
    """Return the tokenizer of a pickled tiktoken encoding. If it has nanochat's begin of a document, this also ends a text.

    Raises:
        DamagedFileError: If the pickle holds no encoding.
    """
    encoding = read_encoding_pickle(content)
    _check_ranks(encoding.ranks)
    beside = FilesBeside({"eos_token": DOCUMENT_START} if DOCUMENT_START in encoding.specials else {})
    return _finish(ranks_to_fields(encoding.ranks, encoding.specials, encoding.pattern), beside, label=label)


def _check_ranks(ranks: Mapping[bytes, int]) -> None:
    """Check that ranks hold all bytes, and that their merges can be found in reasonable time.

    Raises:
        DamagedFileError: If they do not.
    """
    if not ranks or len(ranks) > MAX_VOCABULARY or any(bytes([byte]) not in ranks for byte in range(256)):
        raise DamagedFileError("it lacks some of the 256 single bytes")
    if max(map(len, ranks)) > MAX_TOKEN_BYTES:
        raise DamagedFileError(f"one of its tokens has more than {MAX_TOKEN_BYTES} bytes")
    if sum(len(token) ** 2 for token in ranks) > MAX_SQUARES:
        raise DamagedFileError("its tokens are far longer than those of a language")


def _finish(fields: Mapping[str, Any], beside: FilesBeside, *, label: str) -> Tokenizer:
    """Add the tokens in the files beside the vocabulary, find the end of text, and build the tokenizer.

    Raises:
        DamagedFileError: If the files contradict each other or cannot be used.
    """
    canonical = canonical_fields(_with_prefix_space(fields, beside.config))
    ids = vocabulary_of(canonical)
    added = {token["content"]: token for token in canonical["added_tokens"]}
    next_id = max(ids.values()) + 1
    is_taken = bytearray(next_id)
    for taken in ids.values():
        is_taken[taken] = True
    numbered = {token.content: token.token_id for token in beside.tokens if token.token_id is not None}
    free = {content: token_id for content, token_id in numbered.items() if not (0 <= token_id < next_id and is_taken[token_id])}
    next_id = max([next_id - 1, *free.values()]) + 1
    for token in beside.tokens:
        token_id = ids.get(token.content, free.get(token.content))
        if token_id is None:
            token_id, next_id = next_id, next_id + 1
        if token.content not in added or token.decides:
            flags = token.flags if canonical["normalizer"] is not None else token.flags | {"normalized": False}
            added[token.content] = added_token(token.content, token_id) | flags
    end = next((token for token in (beside.end_of_text, *ENDS) if token in ids or token in added), None)
    if end is not None:
        added.setdefault(end, added_token(end, ids.get(end, 0)))
    canonical["added_tokens"] = sorted(added.values(), key=lambda token: int(token["id"]))
    return as_known_tokenizer(label, canonical, end)


def as_known_tokenizer(label: str, fields: Mapping[str, Any], end_of_text: str | None) -> Tokenizer:
    """Return the tokenizer of a canonical tokenizer.json. If it is GPT-2's, return GPT-2's own tokenizer, which is faster.

    Raises:
        DamagedFileError: If the fields cannot be used.
    """
    return load_tiktoken("gpt2") if _is_gpt2(fields) else VocabularyTokenizer(label, fields, end_of_text)


def _with_prefix_space(fields: Mapping[str, Any], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let the configuration of GPT-2's tokenizer decide whether a text begins with a blank, as in transformers."""
    splitter, flag = fields.get("pre_tokenizer"), config.get("add_prefix_space")
    is_gpt2 = str(config.get("tokenizer_class")).startswith(("GPT2", "Roberta"))
    if not is_gpt2 or not isinstance(flag, bool) or not isinstance(splitter, dict) or splitter.get("type") != "ByteLevel":
        return fields
    return {**fields, "pre_tokenizer": splitter | {"add_prefix_space": flag}}


def _is_gpt2(fields: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer.json has GPT-2's fields."""
    model, splitter = fields["model"], fields["pre_tokenizer"] or {}
    return (
        len(model["vocab"]) == GPT2_TOKENS
        and model["type"] == "BPE"
        and {name for name in model if name not in ("type", "vocab", "merges")} == set()
        and fields["normalizer"] is None
        and (splitter.get("type"), splitter.get("add_prefix_space"), splitter.get("use_regex")) == ("ByteLevel", False, True)
        and [token["content"] for token in fields["added_tokens"]] == [END_OF_TEXT]
        and model["vocab"] == gpt2_vocabulary()
        and model["merges"] == gpt2_merges()
    )
