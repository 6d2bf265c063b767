"""Check the loss that plan=true expects, and where it says nothing."""

from types import SimpleNamespace
from typing import Any

import pytest

from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.law import Difficulty, Training
from gpt_pretrain.training.budget.speed import Speed
from gpt_pretrain.training.planning import expected_loss

PILOT = Training(98_304, 1024, 1_000_000, 125_000, 2.7)
TEXT = choice.TextFacts(1_000_000, {1024: 2.45, 4096: 3.3}, Difficulty(PILOT, 2.6, {20_000: 3.2, 125_000: 2.8, 500_000: 2.5}))
MODEL = {
    "context_length": 256,
    "emb_dim": 256,
    "n_heads": 4,
    "n_layers": 4,
    "kind": "modern",
    "init": "modern",
    "tie_embeddings": False,
}


def make_setup(**changes: Any) -> Any:
    """Return a run on a text with the settings that the check looks at, some of them changed."""
    settings = SimpleNamespace(
        init_from=None,
        custom={},
        data=SimpleNamespace(name="text", format="auto", train_ratio=0.9),
        model=SimpleNamespace(**(MODEL | changes.pop("model", {}))),
        optimizer=SimpleNamespace(name=changes.pop("optimizer", "muon")),
    )
    fields = {"budget": None, "vocab_size": 4096, "characters": 1_100_000, "resume": None} | changes
    for name in ("init_from", "custom"):
        setattr(settings, name, fields.get(name, getattr(settings, name)))
    settings.data.name = fields.get("data", "text")
    split = SimpleNamespace(characters=fields["characters"], train=SimpleNamespace(count=300_000))
    return SimpleNamespace(
        settings=settings,
        budget=fields["budget"],
        start=SimpleNamespace(resume=fields["resume"]),
        data=SimpleNamespace(split=split),
        tokenizer=SimpleNamespace(vocab_size=fields["vocab_size"]),
    )


def expected(*, tokens: int = 2_000_000, seconds: float = 1200.0, **changes: Any) -> str:
    lines = expected_loss.expected_loss_lines(make_setup(**changes), SimpleNamespace(tokens=tokens), seconds=seconds)  # type: ignore[arg-type]
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurements of the text and of the machine."""
    limits = choice.Limits(1200.0, 8 * 10**9, 10**11)
    monkeypatch.setattr(expected_loss, "describe_text", lambda *_, **__: TEXT)
    monkeypatch.setattr(expected_loss, "measured_speed", lambda *_, **__: Speed((1.5e6, 7e6, 3.6e7), (8e9, 2e10, 4e10), 8e-3))
    monkeypatch.setattr(expected_loss, "measured_limits", lambda *_: limits)


def test_a_run_that_is_too_short_for_its_time_is_compared_with_the_best() -> None:
    shown = expected(tokens=60_000)
    assert "in 20 min 0 s, a model of" in shown and "and yours about" in shown and "budget= chooses such a model" in shown
    assert shown.count("nine of ten cases") == 2
    best, yours = (float(part.split()[0]) for part in (shown.split("reach about ")[1], shown.split("yours about ")[1]))
    assert best < yours


def test_a_good_run_has_its_own_expectation_alone() -> None:
    assert "bits per byte on this text" in expected(tokens=6_000_000)


@pytest.mark.parametrize(
    "changes",
    [
        *({"optimizer": "adamw"}, {"model": {"kind": "gpt2"}}, {"vocab_size": 50_257}, {"vocab_size": 257}),
        *({"model": {"value_embeddings": True}}, {"model": {"bigram_rows": 4096}}),
    ],
)
def test_nothing_is_said_about_a_kind_of_run_that_the_law_does_not_know(changes: dict[str, Any]) -> None:
    shown = expected(**changes)
    assert "a model of" in shown and "yours" not in shown


@pytest.mark.parametrize(
    "changes",
    [
        {"characters": 20_000},
        {"characters": None},
        {"seconds": 5.0},
        {"init_from": "gpt2"},
        {"resume": "a.ckpt"},
        {"custom": {"model": {}}},
        {"data": "shards"},
        {"budget": "20m"},
    ],
)
def test_nothing_is_said_where_the_law_does_not_reach(changes: dict[str, Any]) -> None:
    assert expected(**changes) == ""


def test_extrapolation_is_said_and_has_an_end() -> None:
    assert "extrapolated beyond" in expected(tokens=6_000_000)
    assert "yours" not in expected(tokens=10**9)
