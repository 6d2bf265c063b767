"""Bound how many times as long the steps of a stranger's tokenizer may make a text."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.patterns.checks import matches_nothing

MAX_GROWTH = 32  # characters that a normalizer or a decoder may make of one character
MAX_STEPS = 64  # steps of a normalizer, a pre-tokenizer or a decoder; known ones have at most ten
# Characters that these steps may make of one, whatever their fields say: a character has up to four bytes, and a Chinese one gets
# two blanks around it.
STEP_GROWTH = {"ByteLevel": 4, "BertNormalizer": 3}


def check_growth(part: Any, name: str) -> float:
    """Check that all steps in a part of a tokenizer.json together cannot make a text much longer. Return how many times.

    Raises:
        DamagedFileError: If they can.
    """
    growth, steps = 1.0, 0
    for node in nested_objects(part):
        if _is_step(node):
            steps, growth = steps + 1, growth * STEP_GROWTH.get(node["type"], 1)
        if isinstance(table := node.get("precompiled_charsmap"), str):
            growth *= max(1, _longest_replacement(table))
        if isinstance(content := node.get("content"), str):
            growth *= _replacement_growth(content, node.get("pattern"))
        if isinstance(prepended := node.get("prepend"), str):
            growth *= max(1, _full_length(prepended))
    if steps > MAX_STEPS:
        raise DamagedFileError(f"its {name} has {steps:,} steps, more than the limit of {MAX_STEPS}")
    if growth > MAX_GROWTH:
        raise DamagedFileError(f"its {name} may make a text {growth:,.0f} times as long, more than the limit of {MAX_GROWTH:,}")
    return growth


def _replacement_growth(content: str, pattern: Any) -> float:
    """Return the factor by which a replacement may lengthen a text."""
    replaced, regex = (pattern.get("String"), pattern.get("Regex")) if isinstance(pattern, dict) else (None, None)
    if replaced == "" or (isinstance(regex, str) and matches_nothing(regex)):
        return 1 + _full_length(content)  # It may be inserted between any two characters.
    return max(1.0, _full_length(content) / (len(replaced) if isinstance(replaced, str) else 1))


def _longest_replacement(encoded: str) -> int:
    """Return the characters of the longest replacement in a table that has been checked."""
    content = base64.b64decode(encoded)
    replacements = content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")
    return max(_full_length(replacement.decode(errors="replace")) for replacement in replacements)


def _full_length(inserted: str) -> int:
    """Return the most characters that an inserted text has after later steps that decompose characters.

    A single character may be decomposed into 18, and its parts are not decomposed any further. In the text itself, this happens
    once, and only to a few characters. A step that inserts such a character again and again would make it happen many times.
    """
    return len(unicodedata.normalize("NFKD", inserted).lower())


def text_growth(fields: Mapping[str, Any]) -> tuple[float, int]:
    """Return how many times as long a checked tokenizer.json may make a text before it is encoded, and its number of steps."""
    parts = [fields["normalizer"], fields["pre_tokenizer"]]
    growth = check_growth(parts[0], "normalizer") * check_growth(parts[1], "pre_tokenizer")
    return growth, sum(_is_step(node) for node in nested_objects(parts))


def nested_objects(part: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in a part of a tokenizer.json, at any depth."""
    waiting = [part]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _is_step(node: Mapping[str, Any]) -> bool:
    return isinstance(node.get("type"), str) and node["type"] != "Sequence"
