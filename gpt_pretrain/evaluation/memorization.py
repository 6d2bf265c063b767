"""Find the longest span of a sample that occurs verbatim in the training text.

Shapes: n tokens of the sample, N tokens of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt_pretrain.data.sampler import mix_bits
from gpt_pretrain.data.token_stream import TokenStream

BLOCK = 1 << 20  # Tokens of the text to search at a time, with about 50 MB of working memory.
MAX_SEARCHED = 32 * BLOCK  # The most tokens of a text to search. They take about three seconds.
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, rounded to an odd number


def longest_memorized_span(sample: Sequence[int], text: TokenStream) -> int:
    """Return the length of the longest span of consecutive sample tokens that occurs in a text.

    The text is read once. If it has more than MAX_SEARCHED tokens, only blocks spread evenly over it are searched. A shared
    window is found by its hash and then confirmed token by token. The work grows as N log n.

    Source: Karp & Rabin 1987, "Efficient randomized pattern-matching algorithms".
    """
    tokens, longest = np.asarray(sample, dtype=np.int64), 0
    for start in block_starts(text.count, most=MAX_SEARCHED):
        block = text.read(start, min(BLOCK + len(tokens), text.count - start)).astype(np.int64)
        low, high = longest, min(len(tokens), len(block))
        # Binary search works, because a shared window contains shared windows of every shorter length.
        while low < high:
            length = low + 1 if low == longest else (low + high + 1) // 2
            if not _share_window(tokens, block, length):
                high = length - 1
            else:
                low = longest = length
        if longest == len(tokens):
            break
    return longest


def block_starts(count: int, *, most: int) -> list[int]:
    """Return the positions of blocks that cover a text. If it has more than `most` tokens, the blocks are spread over it."""
    if count <= most:
        return list(range(0, count, BLOCK))
    return np.linspace(0, count - BLOCK, most // BLOCK).astype(int).tolist()  # type: ignore[no-any-return]


def _share_window(sample: np.ndarray, block: np.ndarray, length: int) -> bool:
    """Return whether a sample and a block share a window of this length."""
    sample_hashes = window_hashes(sample, length)
    block_hashes = window_hashes(block, length)
    # A table of the upper 16 bits of the hashes cheaply excludes most of the block.
    table = np.zeros(1 << 16, dtype=bool)
    table[sample_hashes >> np.uint64(48)] = True
    candidates = block_hashes[table[block_hashes >> np.uint64(48)]]
    for start in np.flatnonzero(np.isin(sample_hashes, candidates)):
        window = sample[start : start + length]
        positions = np.flatnonzero(block_hashes == sample_hashes[start])
        if any(np.array_equal(block[position : position + length], window) for position in positions):
            return True
    return False


def window_hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """Return a hash of each window of this length, uint64, (N - length + 1,), composed from windows of 1, 2, 4 ... tokens."""
    hashes, power, size = _hash_tokens(tokens), HASH_BASE, 1  # power is HASH_BASE to the power of size
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


def _hash_tokens(tokens: np.ndarray) -> np.ndarray:
    """Return a 64-bit number for each token. About half the bits differ between any two tokens."""
    return mix_bits((tokens.astype(np.uint64) + np.uint64(1)) * HASH_BASE)
