import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.training.budget import typed
from gpt_pretrain.training.budget.amount import Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", Budget(seconds=90)),
        ("20m", Budget(seconds=1200)),
        ("20 min", Budget(seconds=1200)),
        ("1.5h", Budget(seconds=5400)),
        ("2d", Budget(seconds=172800)),
        ("2hours", Budget(seconds=7200)),
        ("1h30m", Budget(seconds=5400)),
        ("20m5s", Budget(seconds=1205)),
        ("1:30:00", Budget(seconds=5400)),
        ("100M tokens", Budget(tokens=1e8)),
        ("1 billion tokens", Budget(tokens=1e9)),
        ("1 PFLOP", Budget(flops=1e15)),
        ("Auto", Budget()),
        ("1e9 tokens", Budget(tokens=1e9)),
        ("1E9 Tokens", Budget(tokens=1e9)),
        ("1e+15flops", Budget(flops=1e15)),
        ("auto", Budget()),
    ],
)
def test_a_budget_is_read(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20",
        "m",
        "-5m",
        "0s",
        "nan s",
        "1e99 tokens",
        "9999d",
        "20 m 5",
        "20M",
        "5m20m",
        "1:30",
        "٣m",
        "1e9",
        "tokens",
        "0 tokens",
        "1e400s",
    ],
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="budget="):
        parse_budget(text)


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("trainer.max_steps", {"trainer"}, False),
        ("data.batch_size", {"data"}, False),
        ("data.batch_size", {"data.batch_size"}, True),
        ("model.emb_dim", {"model"}, True),
        ("optimizer.head.weight_decay", {"optimizer"}, True),
        ("eval_freq", set(), False),
    ],
    ids=range(6),
)
def test_what_counts_as_typed(name, words, expected):
    assert typed.is_typed(name, words) is expected
