"""Sequences that begin alike are read in one row, with the results of single sequences."""

import numpy as np
import pytest
import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.packing import ScoreRequest, common_length, pack_requests
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.language_model import LanguageModel

OWN_FIELDS = {
    "gpt2": {"qkv_bias": True},
    "modern": {"kind": "modern", "init": "modern", "tie_embeddings": False, "n_kv_heads": 2},
    "tables": {"kind": "modern", "init": "modern", "tie_embeddings": False, "value_embeddings": True, "bigram_rows": 40},
}


def make_model(kind: str) -> LanguageModel:
    torch.manual_seed(1)
    config = GPTConfig(vocab_size=50, context_length=40, emb_dim=32, n_heads=4, n_layers=2, **OWN_FIELDS[kind])
    model = new_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def make_groups(rng: np.random.Generator) -> list[list[ScoreRequest]]:
    """Questions with 1 to 5 choices, some of which do not fit into a row together, or begin alike in their scored tokens."""
    groups = []
    for _ in range(30):
        begin = rng.integers(0, 50, rng.integers(0, 30))
        group = []
        for _ in range(rng.integers(1, 6)):
            rest = rng.integers(0, 50, rng.integers(2, 12))
            token_ids = np.concatenate([begin, rest])
            group.append(ScoreRequest(token_ids, int(rng.integers(1, len(token_ids)))))
        groups.append([*group, group[0]])
    return groups


@pytest.mark.parametrize("kind", OWN_FIELDS)
def test_packed_sequences_have_the_scores_of_single_ones(kind: str) -> None:
    model, groups = make_model(kind), make_groups(np.random.default_rng(1))
    scorer = Scorer(model, batch_tokens=200)
    for group, found in zip(groups, scorer.score_groups(groups), strict=True):
        assert len(group) == len(found)
        for request, scores in zip(group, found, strict=True):
            ids = torch.from_numpy(request.token_ids)
            with torch.no_grad():
                rows = model(ids[None, :-1])[0].log_softmax(-1)[-request.n_scored :]
            expected = -rows.gather(1, ids[-request.n_scored :, None])[:, 0]
            np.testing.assert_allclose(scores.losses, expected, rtol=1e-4, atol=1e-5)
            assert scores.is_top.tolist() == (rows.argmax(-1) == ids[-request.n_scored :]).tolist()
    read = sum(request.n_read for group in groups for request in group)
    # A row of several sequences does not tell which token precedes each one, which the table of pairs needs.
    assert scorer.tokens == read if kind == "tables" else scorer.tokens < 0.7 * read


def test_a_row_holds_no_more_than_the_context() -> None:
    begin = np.arange(20)
    requests = [ScoreRequest(np.concatenate([begin, np.full(9, number)]), 9) for number in range(5)]
    rows = pack_requests(requests, most=40)
    assert [row.length for row in rows] == [36, 36, 28]
    assert [request for row in rows for request in row.requests] == requests
    assert [row.length for row in pack_requests(requests, most=28)] == [28] * 5
    short = [ScoreRequest(np.array([1, 2, 3]), 1), ScoreRequest(np.array([1, 2, 4]), 1)]
    assert [row.n_shared for row in pack_requests(short, most=40)] == [0, 0]


def test_little_of_a_batch_is_padding() -> None:
    chosen = np.random.default_rng(2)
    lengths = chosen.integers(10, 40, 600)
    scorer = Scorer(make_model("gpt2"), batch_tokens=512)
    requests = [ScoreRequest(chosen.integers(0, 50, length), 1) for length in lengths]
    assert len(list(scorer.score(requests))) == 600
    assert scorer.padding < 0.05 * scorer.tokens


def test_common_lengths() -> None:
    one, other = np.array([1, 2, 3]), np.array([1, 2, 4, 5])
    assert common_length([one, other]) == 2
    assert common_length([one, one[:2]]) == 2
    assert common_length([one, other + 1]) == 0


def test_weights_that_are_no_numbers_give_no_result() -> None:
    model = make_model("gpt2")
    with torch.no_grad():
        model.tok_emb.weight[7] = float("nan")
    group = [ScoreRequest(np.array([*range(1, 12), last]), 1) for last in (1, 2)]
    with pytest.raises(UserError, match="computes a loss that is NaN or infinite"):
        list(Scorer(model).score_groups([group]))
