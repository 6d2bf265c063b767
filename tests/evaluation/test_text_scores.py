"""Every token of a text is scored exactly once, with the context that the stride promises, as one-by-one scoring does."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.data.documents import DocumentBoundaries
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.packing import ScoreRequest
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.text_scores import EvaluationText, score_text, token_character_counts
from gpt_pretrain.evaluation.windows import scored_windows
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import tiny_model

BYTE = build_tokenizer("byte")


class ListedTokens:
    """A stream of tokens in memory."""

    remote = False

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = np.array(token_ids, dtype=np.uint16)
        self.count = len(token_ids)

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        return self.token_ids[start : None if count is None else start + count]

    def prefetch(self, start: int, count: int) -> None:
        return


def text_of(token_ids: list[int], *, eos_id: int | None = 256, eos_first: bool = False) -> EvaluationText:
    return EvaluationText("the text", ListedTokens(token_ids), DocumentBoundaries(eos_id, eos_first), BYTE)


def loss_at(model: torch.nn.Module, sequence: list[int], begin: int, position: int) -> float:
    logits = model(torch.tensor([sequence[begin:position]]))[0, -1]
    return -logits.log_softmax(-1)[sequence[position]].item()


@given(count=st.integers(0, 200), context=st.integers(1, 40), stride=st.integers(1, 40))
def test_windows_score_each_token_but_the_first_once(count: int, context: int, stride: int) -> None:
    stride = min(stride, context)
    windows = list(scored_windows(count, context_length=context, stride=stride))
    assert [position for window in windows for position in range(window.end - window.n_scored, window.end)] == list(
        range(1, count)
    )
    for window in windows:
        read = window.end - 1 - window.start
        assert read == min(context, count - 1)
        # Each scored token but those of the first window has at least this many tokens before it.
        assert window.start == 0 or read - window.n_scored + 1 >= context - stride + 1
    assert all(after.end > before.end for before, after in pairwise(windows))


@pytest.mark.parametrize("stride", [None, 16, 5, 1])
@pytest.mark.parametrize("eos_first", [False, True])
def test_losses_equal_scoring_one_token_at_a_time(stride: int | None, eos_first: bool) -> None:
    model = tiny_model(vocab_size=257)  # context_length is 16
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 256, size).tolist() for size in (1, 40, 3, 16, 0, 17)]
    stream = [token for one in documents for token in ([256, *one] if eos_first else [*one, 256])]
    scores = score_text(Scorer(model, batch_tokens=40), text_of(stream, eos_first=eos_first), stride=stride)
    expected: list[float] = []
    with torch.no_grad():
        for one in documents:
            sequence = [256, *one] if eos_first else [256, *one, 256]
            losses = {}
            for window in scored_windows(len(sequence), context_length=16, stride=stride or 16):
                for position in range(window.end - window.n_scored, window.end):
                    losses[position] = loss_at(model, sequence, window.start, position)
            expected += [math.nan] * eos_first + [losses[position] for position in range(1, len(sequence))]
    np.testing.assert_allclose(scores.losses, expected, atol=1e-4)
    assert scores.n_unscored == (len(documents) if eos_first else 0)
    starts = np.cumsum([0, *(len(one) + 1 for one in documents)])[:-1]
    assert scores.document_starts.tolist() == starts.tolist()


def test_without_an_end_of_text_only_the_first_token_is_not_scored() -> None:
    scores = score_text(Scorer(tiny_model(vocab_size=257)), text_of([1, 2, 3, 4], eos_id=None))
    assert np.isnan(scores.losses).tolist() == [True, False, False, False]
    assert scores.n_unscored == 1


def test_mean_losses_by_position_are_those_of_the_tokens_with_so_much_context() -> None:
    model = tiny_model(vocab_size=257)
    stream = np.random.default_rng(1).integers(0, 256, 100).tolist()
    scores = score_text(Scorer(model), text_of(stream))
    sums, counts = np.zeros(16), np.zeros(16)
    for window in scored_windows(101, context_length=16, stride=16):
        for position in range(window.end - window.n_scored, window.end):
            sums[position - window.start - 1] += scores.losses[position - 1]
            counts[position - window.start - 1] += 1
    np.testing.assert_allclose(scores.position_losses, sums / counts, atol=1e-6)


def test_scores_do_not_depend_on_the_batch_and_little_of_it_is_padding() -> None:
    model, generator = tiny_model(vocab_size=257), np.random.default_rng(2)
    requests = [ScoreRequest(generator.integers(0, 257, size), int(generator.integers(1, size))) for size in range(2, 18)] * 40
    together, apart = Scorer(model, batch_tokens=64), Scorer(model, batch_tokens=1)
    for request, one, other in zip(requests, together.score(requests), apart.score(requests), strict=True):
        np.testing.assert_allclose(one.losses, other.losses, atol=1e-5)
        assert len(one.losses) == len(one.is_top) == request.n_scored
    assert apart.padding == 0
    assert together.padding <= 0.05 * together.tokens


def test_the_most_likely_tokens_are_found() -> None:
    model = tiny_model(vocab_size=257)
    token_ids = np.random.default_rng(3).integers(0, 257, 17)
    with torch.no_grad():
        best = model(torch.from_numpy(token_ids)[None, :-1])[0].argmax(-1)
    (scores,) = Scorer(model).score([ScoreRequest(token_ids, 16)])
    assert scores.is_top.tolist() == (best.numpy() == token_ids[1:]).tolist()


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model = tiny_model(vocab_size=257)
    with torch.no_grad():
        model.head_weight[5] = torch.inf
    with pytest.raises(UserError, match="NaN or infinite"):
        list(Scorer(model).score([ScoreRequest(np.arange(9), 8)]))


def test_characters_are_counted_where_they_begin() -> None:
    counts = token_character_counts(BYTE)
    text = "a\u00e9\u4e2d\U0001f600"
    assert counts[list(text.encode())].sum() == len(text)
    assert counts[256] == 0
