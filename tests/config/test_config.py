"""The validation of architectures and sampler settings."""

import dataclasses

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.model.config import GPTConfig

GOOD = {"vocab_size": 97, "context_length": 16, "emb_dim": 32, "n_heads": 4, "n_layers": 3}


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        GPTConfig(vocab_size=0, context_length=-1, emb_dim=30, n_heads=4, n_layers=2, drop_rate=1.0, init="xavier")
    names = [problem.split("=")[0] for problem in caught.value.problems]
    assert names == ["vocab_size", "context_length", "n_heads", "drop_rate", "init"]


def test_heads_that_do_not_divide_the_width_give_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"n_heads=5 does not divide emb_dim=768\. Try 2, 3, 4 or 6\."):
        GPTConfig(**(GOOD | {"emb_dim": 768, "n_heads": 5}))


@pytest.mark.parametrize(
    "change", [{"n_layers": 2.0}, {"n_layers": True}, {"qkv_bias": 1}, {"drop_rate": "0.1"}, {"drop_rate": -0.1}]
)
def test_values_of_the_wrong_type_or_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        GPTConfig(**(GOOD | change))  # type: ignore[arg-type]


def test_an_architecture_is_frozen_and_survives_a_plain_dict() -> None:
    config = GPTConfig(**GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layers = 4  # type: ignore[misc]
    assert GPTConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**GPTConfig(**GOOD).to_dict(), "_target_": "os.system"}, "_target_"),
        ({"vocab_size": 97}, "lacks the field 'emb_dim'"),
        (["vocab_size"], "not a table"),
    ],
)
def test_a_stored_architecture_needs_exactly_the_known_fields(fields: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GPTConfig.from_dict(fields)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_new_tokens": -1},
    ],
)
def test_sampler_settings_outside_their_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        SamplerConfig(**({"max_new_tokens": 1} | bad))  # type: ignore[arg-type]
