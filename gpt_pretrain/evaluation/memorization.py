"""How much of a sample stands word for word in the training text.

Shapes: n tokens of the sample, N tokens of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt_pretrain.data.tokens import TokenText

BLOCK = 1 << 20  # tokens of the text that are looked at at once: some 50 MB of working memory
SEARCHED = 32 * BLOCK  # tokens of a longer text that are looked at: three seconds' work
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd; 2^64 divided by the golden ratio


def longest_memorized_span(sample: Sequence[int], text: TokenText) -> int:
    """How many neighbouring tokens of a sample stand in a text as they are, at most.

    The text is read once; of one with more than SEARCHED tokens that many, in blocks spread evenly over it. A window of it is
    found by its hash, so that the work grows as N log n, and then compared for real.

    Source: Karp & Rabin 1987, "Efficient randomized pattern-matching algorithms".
    """
    tokens, longest = np.asarray(sample, dtype=np.int64), 0
    for start in _block_starts(text.count):
        block = text.read(start, min(BLOCK + len(tokens), text.count - start)).astype(np.int64)
        low, high = longest, min(len(tokens), len(block))
        while low < high:  # a run of some length holds runs of every shorter one
            length = low + 1 if low == longest else (low + high + 1) // 2
            if not _share_window(tokens, block, length):
                high = length - 1
            else:
                low = longest = length
        if longest == len(tokens):
            break
    return longest


def _block_starts(count: int) -> list[int]:
    if count <= SEARCHED:
        return list(range(0, count, BLOCK))
    return np.linspace(0, count - BLOCK, SEARCHED // BLOCK).astype(int).tolist()  # type: ignore[no-any-return]


def _share_window(sample: np.ndarray, block: np.ndarray, length: int) -> bool:
    """Whether a sample and a block have a window of so many tokens in common."""
    wanted = _window_hashes(sample, length)
    there = _window_hashes(block, length)
    table = np.zeros(1 << 16, dtype=bool)  # by the upper bits, which spares most of the search
    table[wanted >> np.uint64(48)] = True
    likely = there[table[there >> np.uint64(48)]]
    for start in np.flatnonzero(np.isin(wanted, likely)):
        window = sample[start : start + length]
        places = np.flatnonzero(there == wanted[start])
        if any(np.array_equal(block[place : place + length], window) for place in places):
            return True
    return False


def _window_hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """A hash of each window of so many tokens, uint64, (N - length + 1,), put together from windows of 1, 2, 4 ... tokens."""
    hashes, power, size = _scattered(tokens), BASE, 1  # power is BASE to the size
    result: np.ndarray | None = None
    done = 0
    while True:
        if length & size:
            windows = len(tokens) - done - size + 1
            result = hashes[:windows] if result is None else result[:windows] * power + hashes[done : done + windows]
            done += size
        if done == length:
            assert result is not None
            return result
        hashes = hashes[:-size] * power + hashes[size:]
        power, size = np.multiply(power, power), 2 * size


def _scattered(tokens: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits that differ in about half of them wherever tokens differ.

    Source: the finaliser of SplitMix64 (Steele, Lea & Flood 2014).
    """
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * BASE
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
