"""Measure how well n-gram counts predict a text. This cheaply shows how much more text would help."""

from __future__ import annotations

import numpy as np

ORDERS = range(7)  # bytes of context
MULTIPLIERS = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))


def ngram_bits(train: bytes, held_out: bytes) -> float:
    """Return the bits per byte of held-out text, predicted by n-gram counts of a training text. Long contexts back off to short.

    Contexts are identified by a 64-bit hash.

    Source: Witten & Bell 1991, "The zero-frequency problem", for the weights of the orders.
    """
    known, text = (np.frombuffer(one, np.uint8).astype(np.uint64) for one in (train, held_out))
    probability = np.full(len(text), 1 / 256)
    for order in ORDERS:
        contexts, asked = _contexts(known, order), _contexts(text, order)
        pairs, asked_pairs = _pairs(contexts, known), _pairs(asked, text)
        distinct, seen = np.unique(contexts, return_counts=True)
        distinct_pairs, first, together = np.unique(pairs, return_index=True, return_counts=True)
        followers = np.bincount(np.searchsorted(distinct, contexts[first]), minlength=len(distinct))
        n, d = _look_up(distinct, seen, asked), _look_up(distinct, followers, asked)
        m = _look_up(distinct_pairs, together, asked_pairs)
        probability = np.where(n > 0, (m + d * probability) / np.maximum(n + d, 1), probability)
    return float(-np.log2(probability).mean())


def frequency_bits(train: bytes, held_out: bytes) -> float:
    """Return the bits per byte of held-out text, predicted by the frequencies of single bytes. Each count is raised by one."""
    counts = np.bincount(np.frombuffer(train, np.uint8), minlength=256) + 1.0
    return float(-np.log2(counts / counts.sum())[np.frombuffer(held_out, np.uint8)].mean())


def _contexts(text: np.ndarray, order: int) -> np.ndarray:
    """Return a hash of the bytes before each byte."""
    hashes = np.zeros(len(text), np.uint64)
    for distance in range(1, order + 1):
        before = np.concatenate([np.zeros(distance, np.uint64), text[:-distance]])[: len(text)]
        hashes = hashes * MULTIPLIERS[0] + before + np.uint64(1)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _pairs(contexts: np.ndarray, text: np.ndarray) -> np.ndarray:
    pairs: np.ndarray = (contexts * MULTIPLIERS[1]) ^ ((text + np.uint64(7)) * MULTIPLIERS[2])
    return pairs


def _look_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    index = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[index] == asked, values[index], 0)
