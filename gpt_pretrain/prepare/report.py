"""What is in a corpus that is complete: lengths of the documents, compression, examples; read from its files alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pretrain.prepare.encoding import tokenizer_of
from gpt_pretrain.system.formatting import format_count, format_si
from gpt_pretrain.tokenizers.base import Tokenizer, decode

EXAMPLES = 3
EXAMPLE_TOKENS = 60
BAR = 40  # characters of the longest bar
POSITIONS_AT_ONCE = 1 << 20  # 8 MB


def print_report(manifest: dict[str, Any], folder: Path) -> None:
    """Print it, part by part."""
    tokenizer = tokenizer_of(manifest["tokenizer"]["name"])
    for name, part in manifest["parts"].items():
        if not part["documents"]:
            continue
        size, text_tokens = format_si(part["bytes"], "B"), part["tokens"] - part["documents"]
        print(f"\n{name}: {format_count(part['documents'], 'document')}, {format_count(part['tokens'], 'token')}, {size} of text")
        print(f"{part['bytes'] / max(text_tokens, 1):.2f} bytes of text a token, ends of documents not counted")
        print("\n".join(histogram(part, folder)))
        for number in sorted({part["documents"] * place // EXAMPLES for place in range(EXAMPLES)}):
            print(f"\n  document {number + 1:,}: {example(part, folder, number, tokenizer, manifest['itemsize'])}")


def histogram(part: dict[str, Any], folder: Path) -> list[str]:
    """How many documents are how long, in lines; lengths in tokens without the end, doubling from line to line."""
    bins = np.zeros(64, np.int64)
    total, longest, shortest = 0, 0, 1 << 62
    for lengths in _lengths(part, folder):
        bins += np.bincount(np.frexp(lengths.astype(float))[1], minlength=64)
        longest, shortest = max(longest, int(lengths.max())), min(shortest, int(lengths.min()))
        total += int(lengths.sum())
    (used,) = np.nonzero(bins)
    lines = [f"Tokens a document: {shortest:,} to {longest:,}, on average {total / part['documents']:,.0f}"]
    for place in range(int(used[0]), int(used[-1]) + 1):
        low, high = (1 << place) // 2, (1 << place) - 1
        bar = "#" * -(-BAR * int(bins[place]) // int(bins.max()))
        lines.append(f"  {low:>12,} to {high:<12,} {bins[place]:>12,}  {bar}".rstrip())
    return lines


def example(part: dict[str, Any], folder: Path, number: int, tokenizer: Tokenizer, itemsize: int) -> str:
    """How a document begins, in one line.

    Args:
        number: of the document in its part, from 0.
    """
    shards = list(part["shards"])
    while number >= shards[0]["documents"]:
        number -= shards.pop(0)["documents"]
    start = int(np.fromfile(folder / shards[0]["starts"], "<u8", count=1, offset=8 * number)[0])
    ids: list[int] = []
    while shards and len(ids) < EXAMPLE_TOKENS and tokenizer.eos_id not in ids:
        file = folder / shards.pop(0)["file"]
        ids += np.fromfile(file, f"<u{itemsize}", count=EXAMPLE_TOKENS - len(ids), offset=start * itemsize).tolist()
        start = 0
    whole = tokenizer.eos_id in ids
    text = decode(tokenizer, ids[: ids.index(tokenizer.eos_id)] if whole else ids)
    return " ".join(text.split()) + ("" if whole else " ...")


def _lengths(part: dict[str, Any], folder: Path) -> Iterator[np.ndarray]:
    """The lengths of all documents without their ends, some at once."""
    behind, before = 0, np.empty(0, np.int64)
    for shard in part["shards"]:
        for first in range(0, shard["documents"], POSITIONS_AT_ONCE):
            found = np.fromfile(folder / shard["starts"], "<u8", count=POSITIONS_AT_ONCE, offset=8 * first).astype(np.int64)
            places = np.concatenate([before, found + behind])
            if len(places) > 1:
                yield np.diff(places) - 1
            before = places[-1:]
        behind += shard["tokens"]
    yield behind - before - 1
