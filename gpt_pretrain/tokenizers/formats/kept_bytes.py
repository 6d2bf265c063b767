"""Find out from the fields of a tokenizer.json whether the tokens of a text have exactly its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

KEEPING = ("ByteLevel", "Digits", "FixedLength", "UnicodeScripts")  # pre-tokenizers that only cut a text
CUTTING = ("Punctuation", "Split")  # pre-tokenizers that cut a text, or remove what they find
BYTE_LEVEL = "ByteLevel"


def keeps_bytes(fields: Mapping[str, Any]) -> bool:
    """Return whether the tokens of every text have exactly its bytes.

    This holds if a text is written as bytes and read as bytes, and no step removes, replaces or adds anything.
    """
    steps = list(_steps(fields["pre_tokenizer"], "pretokenizers"))
    return (
        fields["normalizer"] is None
        and any(step.get("type") == BYTE_LEVEL for step in steps)
        and any(step.get("type") == BYTE_LEVEL for step in _steps(fields["decoder"], "decoders"))
        and all(_only_cuts(step) for step in steps)
        and not any(token["lstrip"] or token["rstrip"] for token in fields["added_tokens"])
    )


def _only_cuts(step: Mapping[str, Any]) -> bool:
    if step.get("type") in CUTTING:
        return step.get("behavior") != "Removed"
    return step.get("type") in KEEPING and step.get("add_prefix_space") is not True


def _steps(part: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a pre-tokenizer or a decoder. A sequence has them in the list of this name."""
    waiting = [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict) and isinstance(step.get(name), list):
            waiting += step[name]
        elif isinstance(step, dict):
            yield step
