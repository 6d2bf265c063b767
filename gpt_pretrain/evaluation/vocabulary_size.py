"""Suggest the size of a vocabulary: fit the bits per byte of short trainings with several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt_pretrain.system.formatting import format_si
from gpt_pretrain.system.tables import format_table

MIN_NOISE = 0.005  # bits per byte; two seeds of one training differ by more
DEVIATIONS = 2.0  # standard errors on either side of an interval
SMALLEST, LARGEST, N_SIZES = 500, 32_000, 5
MIN_SIZES = 3  # A parabola needs three.
MIN_RANGE = 2  # ratio of the largest to the smallest size
TEXT_PER_TOKEN = 50  # bytes per token of the vocabulary; with less, most tokens are words that occur a few times
MIN_TEXT = SMALLEST * MIN_RANGE * TEXT_PER_TOKEN  # bytes
MAX_EXTRAPOLATION = 4  # times the text of the longest trial; at twice that, predictions are off by 0.3 bits per byte
N_CANDIDATES = 200  # sizes at which the fit is evaluated, from the smallest to the largest


@dataclass(frozen=True)
class TrialPoint:
    """The bits per byte of the held-out text at some point of a training.

    Args:
        vocab_size: Tokens of the vocabulary.
        text_bytes: Bytes of text that the model has been trained on so far, including repetitions.
        bits_per_byte: Bits per byte of the held-out text.
    """

    vocab_size: int
    text_bytes: float
    bits_per_byte: float


@dataclass(frozen=True)
class SuggestedSize:
    """The size with the lowest predicted bits per byte after training on a certain amount of text.

    Args:
        vocab_size: The size.
        lowest: The smallest size that may be as good.
        highest: The largest size that may be as good.
        bits_per_byte: The prediction for the suggested size.
        error: The standard error of the prediction, in bits per byte.
        at_edge: Whether the size is the largest or the smallest measured one, so that the best size may lie beyond.
    """

    vocab_size: int
    lowest: int
    highest: int
    bits_per_byte: float
    error: float
    at_edge: bool


class SizeFit:
    """A parabola in the logarithm of the size, fitted by least squares. It moves linearly with the logarithm of the text.

    A square term for the text would fit better, but its extrapolation is wrong by many bits.

    Args:
        points: Measurements of at least three sizes, each at two or more lengths of a training.
    """

    def __init__(self, points: Sequence[TrialPoint]) -> None:
        sizes = np.array([point.vocab_size for point in points], np.float64)
        self.sizes = sorted({point.vocab_size for point in points})
        self._center = np.log2(sizes).mean()
        self._longest = max(point.text_bytes for point in points)
        terms = self._terms(sizes, np.array([point.text_bytes for point in points]))
        measured = np.array([point.bits_per_byte for point in points])
        self._coefficients = np.linalg.lstsq(terms, measured, rcond=None)[0]
        residuals = measured - terms @ self._coefficients
        self.noise = max(float(np.sqrt(residuals @ residuals / max(len(points) - terms.shape[1], 1))), MIN_NOISE)
        self._covariance = np.linalg.pinv(terms.T @ terms) * self.noise**2

    def suggest(self, text_bytes: float) -> SuggestedSize:
        """Return the best size for a training on this amount of text.

        Another size counts as equally good if the difference is within its error.
        """
        sizes = np.exp2(np.linspace(np.log2(self.sizes[0]), np.log2(self.sizes[-1]), N_CANDIDATES))
        terms = self._terms(sizes, np.full(N_CANDIDATES, text_bytes))
        predicted = terms @ self._coefficients
        best = int(predicted.argmin())
        differences = terms - terms[best]
        errors = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", differences, self._covariance, differences), 0.0))
        good = np.flatnonzero(predicted - predicted[best] <= DEVIATIONS * errors + 1e-9)
        return SuggestedSize(
            vocab_size=_round(sizes[best]),
            lowest=_round(sizes[good[0]]),
            highest=_round(sizes[good[-1]]),
            bits_per_byte=float(predicted[best]),
            error=float(np.sqrt(terms[best] @ self._covariance @ terms[best])),
            at_edge=best in (0, N_CANDIDATES - 1),
        )

    def _terms(self, sizes: np.ndarray, text_bytes: np.ndarray) -> np.ndarray:
        """Return the terms of the surface at these points, (N, 5)."""
        x, d = np.log2(sizes) - self._center, np.log2(text_bytes / self._longest)
        return np.stack([np.ones_like(x), x, x * x, d, x * d], axis=1)


def trial_sizes(n_bytes: int) -> list[int]:
    """Return the sizes to try for a text with at least TEXT_PER_TOKEN bytes per token; none if the text is too short."""
    if n_bytes < MIN_TEXT:
        return []
    largest = min(n_bytes // TEXT_PER_TOKEN, LARGEST)
    return [_round(SMALLEST * (largest / SMALLEST) ** (number / (N_SIZES - 1))) for number in range(N_SIZES)]


def describe_suggestion(points: Sequence[TrialPoint], *, bytes_per_token: Sequence[float], total_bytes: float) -> list[str]:
    """Return lines about the best size after the trials, and at the end of the whole training.

    Args:
        bytes_per_token: Bytes per token of each size, in ascending order of the sizes.
        total_bytes: Bytes of text in the whole training.
    """
    fit = SizeFit(points)
    longest = max(point.text_bytes for point in points)
    rows = [["vocabulary", "bytes per token", f"bits per byte after {format_si(longest, 'B')} of text"]]
    for size, length in zip(fit.sizes, bytes_per_token, strict=True):
        ends = [point.bits_per_byte for point in points if point.vocab_size == size and point.text_bytes > longest * 0.75]
        rows.append([f"{size:,}", f"{length:.2f}", ", ".join(f"{bits:.3f}" for bits in ends)])
    measured, whole = fit.suggest(longest), fit.suggest(min(total_bytes, MAX_EXTRAPOLATION * longest))
    lines = [format_table(rows), f"Best after {format_si(longest, 'B')}: {_describe(measured, fit)}."]
    if total_bytes > 1.1 * longest:
        reached = min(total_bytes, MAX_EXTRAPOLATION * longest)
        rest = "" if reached == total_bytes else f" (the whole training has {format_si(total_bytes, 'B')})"
        lines.append(
            f"Extrapolated to {format_si(reached, 'B')}, {reached / longest:.1f} times as much{rest}: {_describe(whole, fit)}."
        )
    doubt = []
    if whole.lowest <= _round(fit.sizes[0]) and whole.highest >= _round(fit.sizes[-1]):
        remedy = " A larger trial_minutes lets them read more text." * (total_bytes > 1.1 * longest)
        doubt = [f"These trainings do not decide: every size tried may be as good.{remedy}"]
    return [
        *lines,
        f"Fitted to {len(points)} measurements by least squares: a parabola in the logarithm of vocab_size, which moves linearly "
        f"with the logarithm of the text. They deviate from it by {fit.noise:.3f} bits per byte.",
        *doubt,
        f"Suggested: vocab_size={whole.vocab_size}",
    ]


def _describe(found: SuggestedSize, fit: SizeFit) -> str:
    edge = ""
    if found.at_edge:
        edge = ", the largest size tried" if found.vocab_size > fit.sizes[0] else ", the smallest size tried"
    within = f"{found.lowest:,} to {found.highest:,} may be as good" if found.lowest < found.highest else "no other is as good"
    return f"{found.vocab_size:,} tokens{edge} ({within}), {found.bits_per_byte:.3f} ± {found.error:.3f} bits per byte"


def _round(size: float) -> int:
    """Round a size to two significant digits, since sizes in between make no difference."""
    unit = 10 ** max(int(np.log10(size)) - 1, 0)
    return int(round(size / unit) * unit)
