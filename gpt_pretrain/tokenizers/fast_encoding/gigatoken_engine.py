"""Convert the vocabulary of a tokenizer for the library gigatoken, if the library supports it."""

from __future__ import annotations

import binascii
import json
import tempfile
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from tiktoken_ext import openai_public

from gpt_pretrain.system.native_errors import without_panic_messages
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.formats.ranks import CL100K_PATTERN, O200K_PATTERN, to_oniguruma
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

Encode = Callable[[bytes], np.ndarray]
MARKER = END_OF_TEXT.encode()

# The library's names for the patterns of tiktoken's encodings.
SCHEMES = {"gpt2": "gpt2", "r50k_base": "gpt2", "cl100k_base": "gpt4", "o200k_base": "o200k", "o200k_harmony": "o200k"}
# The library recognizes patterns by their text. These are its texts for the patterns from `ranks_to_fields`.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAME_PATTERNS = {to_oniguruma(CL100K_PATTERN): GPT4_PATTERN, to_oniguruma(O200K_PATTERN): O200K_PATTERN}
MODEL_KEYS = {"type", "vocab", "merges", "ignore_merges"}


class UnsupportedTokenizerError(Exception):
    """The library is missing, or does not support the vocabulary of a tokenizer."""


def engine_builder(tokenizer: Tokenizer) -> Callable[[], Encode]:
    """Return a function that builds an encoder of UTF-8.

    The encoder encodes the end-of-text marker as one token if `has_marker`. Any other end of text is ordinary text to it.

    Raises:
        UnsupportedTokenizerError: If there is no such encoder. The returned function raises it too.
    """
    try:
        from gigatoken import gigatoken_rs
    except ImportError as error:  # also if its compiled part cannot be loaded
        raise UnsupportedTokenizerError("the package gigatoken is not installed") from error
    if isinstance(tokenizer, TiktokenTokenizer) and tokenizer.name in SCHEMES:
        ranks, scheme = _rank_file(tokenizer.ranks), SCHEMES[tokenizer.name]

        def load() -> Any:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "ranks.tiktoken")
                path.write_bytes(ranks)
                return gigatoken_rs.BPETokenizer.from_tiktoken(path, scheme, {END_OF_TEXT: tokenizer.eos_id})

    elif isinstance(tokenizer, VocabularyTokenizer) and (fields := _supported_fields(tokenizer)) is not None:
        content = json.dumps(fields)

        def load() -> Any:
            return gigatoken_rs.load_hf_json(content)

    else:
        raise UnsupportedTokenizerError(f"the package gigatoken cannot hold the tokenizer {tokenizer.name}")

    def build() -> Encode:
        try:
            with without_panic_messages():
                encode: Encode = load().encode
        except (KeyboardInterrupt, SystemExit, MemoryError, OSError):
            raise
        except BaseException as error:  # a panic of Rust is not an Exception
            raise UnsupportedTokenizerError(f"the package gigatoken cannot hold the tokenizer {tokenizer.name}") from error
        return encode

    return build


def has_marker(tokenizer: Tokenizer) -> bool:
    """Return whether the end-of-text marker is the end of text of a tokenizer."""
    return tokenizer.eos_id is not None and tokenizer.token_bytes(tokenizer.eos_id) == MARKER


def _rank_file(ranks: Mapping[bytes, int]) -> bytes:
    """Return the content of a .tiktoken file."""
    ordered, encode = sorted(ranks.items(), key=itemgetter(1)), binascii.b2a_base64
    return b"".join([b"%b %d\n" % (encode(token, newline=False), rank) for token, rank in ordered])


def _supported_fields(tokenizer: VocabularyTokenizer) -> dict[str, Any] | None:
    """Return the fields of a tokenizer.json for the library, or None if it would ignore an important field."""
    fields, model = tokenizer.fields, tokenizer.fields["model"]
    if model["type"] != "BPE" or not set(model) <= MODEL_KEYS or not tokenizer.keeps_bytes:
        return None
    added = [token for token in fields["added_tokens"] if token["content"] != tokenizer.end_of_text or has_marker(tokenizer)]
    if any(token["single_word"] for token in added) or (splitter := _supported_splitter(fields["pre_tokenizer"])) is None:
        return None
    return {"model": model, "added_tokens": added, "pre_tokenizer": splitter}


def _supported_splitter(step: Any) -> dict[str, Any] | None:
    """Return a pre-tokenizer in the library's form, or None if it is neither GPT-2's nor a single pattern."""
    if not isinstance(step, dict):
        return None
    if step.get("type") == "ByteLevel":
        return BYTE_LEVEL if step.get("use_regex", True) else None
    steps = step.get("pretokenizers") or []
    if step.get("type") != "Sequence" or [inner.get("type") for inner in steps] != ["Split", "ByteLevel"]:
        return None
    split, letters = steps
    pattern = (split.get("pattern") or {}).get("Regex")
    if split.get("behavior") != "Isolated" or split.get("invert") or letters.get("use_regex", True) or pattern is None:
        return None
    if pattern == to_oniguruma(openai_public.r50k_pat_str):
        return BYTE_LEVEL
    return {**split, "pattern": {"Regex": SAME_PATTERNS.get(pattern, pattern)}}
