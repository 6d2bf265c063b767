"""Check the content of a tokenizer.json, and bring it into one canonical form.

A field is refused if it could take unlimited time or memory. A field is left out if it does not change the ids of a text:
padding, truncation, the template of special tokens around a text, and options at their defaults. Equal tokenizers therefore have
equal definitions.

The tokenizers library itself is a second line of defense: it is written in Rust, and limits the steps of a pattern.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.formats.growth import check_growth, nested_objects, text_growth
from gpt_pretrain.tokenizers.formats.vocabulary_limits import (
    check_added_tokens,
    check_affixes,
    check_longest_word,
    check_searched_again,
    check_searched_tokens,
    check_unigram_tokens,
    longest_part,
)
from gpt_pretrain.tokenizers.patterns.checks import check_pattern
from gpt_pretrain.tokenizers.patterns.graph import MAX_WAYS
from gpt_pretrain.tokenizers.patterns.syntax import MAX_PATTERN

MAX_VALUES = 4_000_000  # Gemma's vocabulary, of 262,144 tokens and 514,906 merges, has 1.8 million.
MAX_VOCABULARY = 4_000_000
# The highest id may be MAX_SPREAD times the number of tokens, plus FREE_IDS. A few of GPT-2's tokens may thus keep their ids.
MAX_SPREAD, FREE_IDS = 2, 65_536
MAX_PATTERNS = 50  # regular expressions; DeepSeek's tokenizer has six
MAX_LOOPS = 10  # loops that may fail after any number of characters, in all patterns; known tokenizers have up to six
MAX_REPLACEMENT = 200  # bytes of a replacement in a precompiled table; the longest one of Unicode has 33
PARTS = ("normalizer", "pre_tokenizer", "decoder")
STEPS = ("normalizers", "pretokenizers", "decoders")  # the lists of a part that is a sequence
MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
MODEL_DEFAULTS: dict[str, Any] = {
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "unk_token": (None,),
    "unk_id": (None,),
    "fuse_unk": (False,),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}
RANDOM = ("dropout",)  # This option leaves out merges at random, to train another model.
TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def parse_tokenizer_json(content: bytes) -> dict[str, Any]:
    """Parse the content of a tokenizer.json without checking its fields.

    Raises:
        DamagedFileError: If it is not a JSON object, is nested too deeply, or has far too many values.
    """
    return parse_json(content, max_values=MAX_VALUES)


def may_rescan(fields: Mapping[str, Any]) -> bool:
    """Return whether a regular expression may go through a run of characters once from each of them."""
    return any(check_pattern(pattern).loops for pattern in _patterns(fields[name] for name in PARTS))


def largest_part(fields: Mapping[str, Any]) -> int:
    """Return how many characters of a text the library should encode in one call, which cannot be interrupted."""
    growth, steps = text_growth(fields)
    return longest_part(growth, loops=_loops_in_text(fields), steps=steps)


def _loops_in_text(fields: Mapping[str, Any]) -> int:
    """Return how many times the regular expressions may go through the same characters of a text."""
    return sum(check_pattern(pattern).loops for pattern in _patterns([fields["normalizer"], fields["pre_tokenizer"]]))


def canonical_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a tokenizer.json in their canonical form.

    Raises:
        DamagedFileError: If a field is missing or has another type, or could take unlimited time or memory.
    """
    model = fields.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise DamagedFileError("it has no model with a vocabulary, as a tokenizer.json has")
    parts = {name: fields.get(name) for name in PARTS}
    for name, part in parts.items():
        if part is not None and not isinstance(part, dict):
            raise DamagedFileError(f"its {name} is {short_repr(part)}, not an object")
    _check_patterns(parts.values())  # This comes first: a pattern shows how much its replacement may add.
    growth = dict[str, float]()
    for name, part in parts.items():
        _check_part(part)
        growth[name] = check_growth(part, name)
    check_searched_again(growth["normalizer"] * growth["pre_tokenizer"], loops=_loops_in_text(parts))
    canonical = {"version": "1.0", "added_tokens": [], **{name: _without_defaults(part) for name, part in parts.items()}}
    canonical["model"] = _canonical_model(model)
    tokens = fields.get("added_tokens") or []
    if not isinstance(tokens, list):
        raise DamagedFileError("its added_tokens are not a list")
    canonical["added_tokens"] = [_added_token(token, normalized=parts["normalizer"] is not None) for token in tokens]
    check_added_tokens(canonical["added_tokens"])
    _check_ids(canonical)
    # The library normalizes added tokens, and this program decodes all tokens.
    added = [token["content"] for token in canonical["added_tokens"]]
    for name, searched in (("normalizer", added), ("decoder", vocabulary_of(canonical))):
        costs = [check_pattern(pattern) for pattern in _patterns([parts[name]])]
        loops, ways = sum(cost.loops for cost in costs), sum(cost.ways for cost in costs)
        check_searched_tokens(searched, growth[name], loops=loops, ways=ways)
    return canonical


def added_token(content: str, token_id: int) -> dict[str, Any]:
    """Return the entry of a tokenizer.json for an added token, which is found in a text before the text is split."""
    return {"id": token_id, "content": content, "special": True, **dict.fromkeys(TOKEN_FLAGS, False)}


def vocabulary_of(fields: Mapping[str, Any]) -> dict[str, int]:
    """Return the tokens of a canonical tokenizer.json and their ids, with the added ones."""
    vocab = fields["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: token_id for token_id, entry in enumerate(vocab)}
    return ids | {token["content"]: token["id"] for token in fields["added_tokens"]}


def _canonical_model(model: dict[str, Any]) -> dict[str, Any]:
    kind = model.get("type") or _guess_type(model)
    if kind not in MODELS:
        raise DamagedFileError(f"its model has the type {short_repr(kind)}, which is not one of {', '.join(MODELS)}")
    kept = {
        name: value
        for name, value in model.items()
        if name not in RANDOM and not (name in MODEL_DEFAULTS and value in MODEL_DEFAULTS[name])
    }
    vocab = kept["vocab"]
    if kind == "Unigram":
        valid = isinstance(vocab, list) and all(
            isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in vocab
        )
    else:
        valid = isinstance(vocab, dict) and all(type(token_id) is int for token_id in vocab.values())
    if not valid:
        raise DamagedFileError("its vocabulary is not a table of tokens")
    check_longest_word(kept)
    check_affixes(kept)
    if kind == "Unigram":
        check_unigram_tokens(entry[0] for entry in vocab)
    if kind == "BPE":
        kept["merges"] = _checked_merges(kept)
    return kept | {"type": kind}


def _checked_merges(model: dict[str, Any]) -> list[list[str]]:
    """Return the merges of a byte-pair encoding as pairs. The library itself would panic at some wrong merges.

    Raises:
        DamagedFileError: If a merge is not a pair of tokens of the vocabulary, or the vocabulary lacks its result.
    """
    vocab, merges, prefix = model["vocab"], model.get("merges"), model.get("continuing_subword_prefix") or ""
    if not isinstance(merges, list):
        raise DamagedFileError("its model has no list of merges")
    if not (isinstance(prefix, str) and prefix.isascii()):
        raise DamagedFileError(f"its continuing_subword_prefix is {short_repr(prefix)}, not a text in ASCII")
    pairs = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], str)):
            raise DamagedFileError(f"its merge {short_repr(merge)} is not a pair of tokens")
        left, right = pair
        if not right.startswith(prefix):
            raise DamagedFileError(f"its merge {short_repr(pair)} has a second token without {short_repr(prefix)}")
        if (
            missing := next((part for part in (left, right, left + right[len(prefix) :]) if part not in vocab), None)
        ) is not None:
            raise DamagedFileError(
                f"its merge {short_repr(pair)} needs the token {short_repr(missing)}, which its vocabulary lacks"
            )
        pairs.append(pair)
    return pairs


def _guess_type(model: dict[str, Any]) -> str:
    """Return the type of a model in an old file, which does not name it."""
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model["vocab"], list) else "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _added_token(token: Any, *, normalized: bool) -> dict[str, Any]:
    valid = isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
    if not valid or not token["content"]:
        raise DamagedFileError(f"its added token {short_repr(token)} is invalid")
    flags = {name: bool(token.get(name, False)) and (normalized or name != "normalized") for name in TOKEN_FLAGS}
    return {"id": token["id"], "content": token["content"], "special": bool(token.get("special", False)), **flags}


def _check_ids(fields: Mapping[str, Any]) -> None:
    """Check that the ids of all tokens are nearly without gaps, since each id takes a row of the model.

    Raises:
        DamagedFileError: If they are not, or two tokens have the same one.
    """
    ids = vocabulary_of(fields)
    if not ids:
        raise DamagedFileError("its vocabulary is empty")
    lowest, highest = min(ids.values()), max(ids.values())
    if lowest < 0 or highest >= MAX_VOCABULARY or highest > MAX_SPREAD * len(ids) + FREE_IDS:
        wrong = lowest if lowest < 0 else highest
        found = f"it has {format_count(len(ids), 'token')}, and one has the id {short_repr(wrong)}"
        raise DamagedFileError(f"{found}; ids are numbers from 0 on, without large gaps")
    # The ids are sorted, since a set of chosen numbers could take quadratic time.
    if any(one == other for one, other in pairwise(sorted(ids.values()))):
        raise DamagedFileError("two of its tokens have the same id")


def _check_part(part: Any) -> None:
    """Check all tables and lists of steps in a part of a tokenizer.json, at any depth.

    Raises:
        DamagedFileError: If a table could take unlimited memory, or something else is in the place of steps.
    """
    for node in nested_objects(part):
        if "precompiled_charsmap" in node:
            _check_charsmap(node["precompiled_charsmap"])
        for name in STEPS:
            if not isinstance(steps := node.get(name) or [], list):
                raise DamagedFileError(f"its {name} are {short_repr(steps)}, not a list")


def _check_patterns(parts: Collection[Any]) -> None:
    """Check all regular expressions in parts of a tokenizer.json.

    Raises:
        DamagedFileError: If one could take unlimited time, or there are far too many.
    """
    patterns, texts = _patterns(parts), _patterns(parts, "String")
    size = sum(map(len, [*patterns, *texts]))  # Even a plain text may be compared at each character.
    if len(patterns) > MAX_PATTERNS or size > MAX_PATTERN:
        found = " and ".join(
            format_count(len(one), noun) for one, noun in ((patterns, "regular expression"), (texts, "text to replace")) if one
        )
        raise DamagedFileError(
            f"it has {found} with {size:,} characters in total, more than the limit of {MAX_PATTERNS} with {MAX_PATTERN:,}"
        )
    costs = [check_pattern(pattern) for pattern in patterns]
    if (n_loops := sum(cost.loops for cost in costs)) > MAX_LOOPS:
        raise DamagedFileError(f"its regular expressions may search the same characters again and again, in {n_loops:,} ways")
    if (n_ways := sum(cost.ways for cost in costs)) > MAX_WAYS:
        raise DamagedFileError(f"its regular expressions may match the same text in {n_ways:,} ways together")


def _patterns(parts: Iterable[Any], kind: str = "Regex") -> list[str]:
    """Return all regular expressions, or all plain texts to replace, in parts of a tokenizer.json."""
    return [node[kind] for part in parts for node in nested_objects(part) if isinstance(node.get(kind), str)]


def _check_charsmap(encoded: Any) -> None:
    if encoded is None:
        return
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise DamagedFileError("its precompiled_charsmap is not in base64") from error
    size = int.from_bytes(content[:4], "little")
    if max(map(len, content[4 + size :].split(b"\0"))) > MAX_REPLACEMENT or size % 4 or size + 4 > len(content):
        raise DamagedFileError("its precompiled_charsmap is not a table of replacements")


def _without_defaults(part: Any) -> Any:
    """Leave out the options of a part that change no id, such as trimming the offsets, which this program does not use."""
    if isinstance(part, list):
        return [_without_defaults(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "ByteLevel":
        flags = {"add_prefix_space": part.get("add_prefix_space", True), "use_regex": part.get("use_regex", True)}
        return {"type": "ByteLevel", **flags, "trim_offsets": True}
    return {name: _without_defaults(inner) for name, inner in part.items()}


def to_text(value: Any) -> str:
    """Return plain data as JSON in a single form."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
