"""The longest memorized span equals a naive search for every window."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.evaluation import memorization
from gpt_pretrain.evaluation.memorization import longest_memorized_span


class Text:
    def __init__(self, tokens: list[int] | np.ndarray) -> None:
        self.tokens = np.asarray(tokens, dtype=np.uint16)
        self.count = len(self.tokens)

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        return self.tokens[start:] if count is None else self.tokens[start : start + count]


def naive(sample: list[int], text: list[int]) -> int:
    windows = lambda tokens, length: {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}  # noqa: E731
    return max((n for n in range(1, len(sample) + 1) if windows(sample, n) & windows(text, n)), default=0)


@given(
    st.lists(st.integers(0, 2), max_size=20),
    st.lists(st.integers(0, 2), max_size=80),
    st.sampled_from([1, 3, 7, 1 << 20]),
)
def test_the_span_is_the_longest(sample: list[int], text: list[int], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorization, "BLOCK", block)
        assert longest_memorized_span(sample, Text(text)) == naive(sample, text)


def test_a_large_text_is_searched_quickly() -> None:
    text = np.random.default_rng(0).integers(0, 50257, 3_000_000)
    sample = [*text[2_000_000:2_000_040].tolist(), *range(160)]
    start = time.process_time()
    assert longest_memorized_span(sample, Text(text)) == 40
    repetitive = Text(np.zeros(3_000_000))
    assert longest_memorized_span([0] * 199 + [1], repetitive) == 199
    assert time.process_time() - start < 20  # A scan for each window of each length would take hours.
