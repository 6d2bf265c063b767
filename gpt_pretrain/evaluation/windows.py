"""Divide a text that is longer than the context into windows that score each token exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredWindow:
    """A range of a sequence of tokens. Its last tokens are scored.

    Args:
        start: Position of the first token that the model reads.
        end: Position after the last scored token. The model reads all tokens before the last one.
        n_scored: Number of scored tokens, up to `end`.
    """

    start: int
    end: int
    n_scored: int


def scored_windows(count: int, *, context_length: int, stride: int) -> Iterator[ScoredWindow]:
    """Yield windows that score each token of a sequence but the first exactly once, in order.

    The first window scores as many tokens as the context holds. Each further window scores `stride` tokens, and reads as many
    tokens before them as fit. After the first window, each token thus has at least context_length - stride + 1 tokens of context.
    With a stride of a whole context, only the last window overlaps another.

    Args:
        count: Number of tokens of the sequence. The first one is only read.
        context_length: The most tokens that the model reads at a time.
        stride: Tokens between the ends of two windows, at least 1 and at most context_length.

    Source: the windows are those of `loglikelihood_rolling` in the LM Evaluation Harness with context_len = context_length -
    stride + 1.
    """
    end = min(count, context_length + 1)
    if end < 2:
        return
    yield ScoredWindow(0, end, end - 1)
    while end < count:
        n_scored = min(stride, count - end)
        end += n_scored
        yield ScoredWindow(end - 1 - context_length, end, n_scored)
