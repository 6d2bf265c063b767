"""Compute mean losses and differences between two models, each with a standard error.

The tokens of a text are not independent of each other, so an error is computed over clusters. Clusters are whole documents, or
long blocks if a text has few documents. Each mean is a ratio of two sums over clusters.

Source: Cochran 1977, "Sampling Techniques", ratio estimators; Miller 2024 (arXiv:2411.00640) for clustered and paired errors of
evaluations.

Shapes: n tokens of the text, K clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpt_pretrain.evaluation.text_scores import TextScores

MIN_DOCUMENTS = 20  # With fewer documents, the clusters are blocks of the text.
N_BLOCKS, MIN_BLOCK_BYTES = 100, 256
# Bytes by which the text of two models may differ. Some models do not score a first token, and a limit may cut a token.
MAX_DIFFERENCE, MAX_DIFFERENT_BYTES = 0.01, 32
# Two-sided 95% limits of Student's distribution for 1, 2, ... degrees of freedom.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09)
NORMAL = 1.96


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error. With too few clusters, the error is NaN."""

    value: float
    error: float


@dataclass(frozen=True)
class Clusters:
    """Sums of a text's scores over clusters of its tokens, each (K,).

    Args:
        kind: documents or blocks.
        nats: Sum of the losses.
        tokens: Number of scored tokens.
        n_bytes: Bytes of their text; 0 if unknown.
        characters: Characters of their text; 0 if unknown.
    """

    kind: str
    nats: np.ndarray
    tokens: np.ndarray
    n_bytes: np.ndarray
    characters: np.ndarray


def cluster_scores(scores: TextScores) -> Clusters:
    """Sum the scores of a text over its documents. If it has few documents, sum over blocks with equal numbers of bytes."""
    if len(scores.document_starts) >= MIN_DOCUMENTS:
        kind, index = "documents", np.zeros(len(scores.losses), dtype=np.int64)
        index[scores.document_starts[1:]] = 1
        index = np.cumsum(index)
    else:
        # A token belongs to the block of its first byte, so that models with different tokenizers have the same blocks.
        lengths = scores.byte_lengths if scores.byte_lengths.any() else np.full(len(scores.losses), 4)
        offsets, total = np.cumsum(lengths) - lengths, int(lengths.sum())
        kind, index = "blocks", offsets // max(MIN_BLOCK_BYTES, -(-total // N_BLOCKS))
    scored = ~np.isnan(scores.losses)
    size = int(index[-1]) + 1 if len(index) else 0

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(index[scored], weights=values[scored].astype(np.float64), minlength=size)

    columns = sums(scores.losses), sums(scored), sums(scores.byte_lengths), sums(scores.character_lengths)
    kept = columns[1] > 0
    return Clusters(kind, *(column[kept] for column in columns))


def ratio(sums: np.ndarray, sizes: np.ndarray) -> Estimate:
    """Return the ratio of the total sum to the total size, with its standard error; NaN if the sizes are unknown."""
    total, count = sizes.sum(), len(sums)
    if not total:
        return Estimate(math.nan, math.nan)
    value = sums.sum() / total
    if count < 2:
        return Estimate(float(value), math.nan)
    residuals = sums - value * sizes
    return Estimate(float(value), math.sqrt(count / (count - 1) * float(residuals @ residuals)) / float(total))


def bits(nats: Estimate) -> Estimate:
    """Convert nats to bits."""
    return Estimate(nats.value / math.log(2), nats.error / math.log(2))


@dataclass(frozen=True)
class Difference:
    """The additional bits that a model needs for each byte of a text, compared with another one.

    Args:
        bits_per_byte: Mean difference and its standard error.
        limit: A larger difference is more than noise, at 95% confidence.
    """

    bits_per_byte: Estimate
    limit: float

    @property
    def is_noise(self) -> bool:
        """True unless the difference is larger than its limit."""
        return not abs(self.bits_per_byte.value) > self.limit


def paired_difference(first: Clusters, second: Clusters) -> Difference | None:
    """Return the additional bits per byte of the first model, or None if the clusters do not belong to the same text.

    Each cluster is compared with itself. The difficulty that a text has for both models does not count.
    """
    if first.kind != second.kind or len(first.nats) != len(second.nats) or not first.n_bytes.sum() or not second.n_bytes.sum():
        return None
    total = second.n_bytes.sum()
    if abs(first.n_bytes.sum() - total) > max(MAX_DIFFERENCE * total, MAX_DIFFERENT_BYTES):
        return None
    estimate = bits(ratio(first.nats - second.nats, second.n_bytes))
    return Difference(estimate, estimate.error * student_limit(len(first.nats) - 1))


def student_limit(degrees: int) -> float:
    """Return the half-width of a 95% interval in standard errors; infinity without a degree of freedom."""
    if degrees < 1:
        return math.inf
    return STUDENT[degrees - 1] if degrees <= len(STUDENT) else NORMAL + 2.4 / degrees


def finite_or_none(value: float) -> float | None:
    """Return a number for JSON. JSON has neither infinity nor NaN, so return None for these."""
    return value if math.isfinite(value) else None
