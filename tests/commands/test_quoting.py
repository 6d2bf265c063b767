"""The rewriting of command lines for Hydra: quoting, amounts and mistyped settings."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpt_pretrain.commands.command_line.command_words import sort_arguments
from gpt_pretrain.commands.command_line.hydra_arguments import check_arguments, quote_arguments
from gpt_pretrain.errors import UserError


def parse_with_hydra(argument: str) -> str:
    (override,) = OverridesParser.create().parse_overrides([argument])
    return str(OmegaConf.create({"x": override.value()})["x"])


@example("\\${")
@example("\\\\${x}'")
@given(text=st.text(alphabet=st.one_of(st.sampled_from("a'\"\\$,={}()[]: \n"), st.characters(codec="utf-8")), min_size=1))
def test_any_text_reaches_the_program_unchanged(text: str) -> None:
    if text == "null" or (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        return  # null and quoted texts keep Hydra's meaning
    (argument,) = quote_arguments([f"prompt={text}"])
    assert parse_with_hydra(argument) == text


@pytest.mark.parametrize("arguments", [["optimizer.lr=1e-3"], ["prompt='quoted'"], ["resume=null"], ["checkpoint=latest"]])
def test_other_arguments_stay_unchanged(arguments: list[str]) -> None:
    assert quote_arguments(arguments) == arguments


@pytest.mark.parametrize(
    ("typed", "rewritten"),
    [
        ("trainer.max_tokens=1e9", "trainer.max_tokens=1000000000"),
        ("data.val_tokens=1.5E6", "data.val_tokens=1500000"),
        ("+data.remote.cache_bytes=5e+10", "+data.remote.cache_bytes=50000000000"),
        ("trainer.max_tokens=1e6,2e6", "trainer.max_tokens=1000000,2000000"),
        ("trainer.max_tokens=1.5e0", "trainer.max_tokens=1.5e0"),
        ("trainer.max_tokens=1e999999999", "trainer.max_tokens=1e999999999"),
        ("trainer.max_tokens=1_000", "trainer.max_tokens=1_000"),
        ("trainer.max_tokens=x1e9", "trainer.max_tokens=x1e9"),
        ("trainer.max_tokens=100M", "trainer.max_tokens=100000000"),
        ("trainer.max_tokens=1 billion", "trainer.max_tokens=1000000000"),
        ("trainer.max_steps=10k,20k", "trainer.max_steps=10000,20000"),
        ("trainer.max_steps=range(1k,5k,step=1000)", "trainer.max_steps=range(1000,5000,step=1000)"),
        ("trainer.max_steps=1.5", "trainer.max_steps=1.5"),
        ("data.remote.cache_bytes=50GB", "data.remote.cache_bytes=50000000000"),
        ("data.remote.timeout=2m", "data.remote.timeout=120"),
        ("checkpoint.every_n_minutes=1h30m", "checkpoint.every_n_minutes=90"),
        ("checkpoint.every_n_minutes=90s", "checkpoint.every_n_minutes=1.5"),
        ("checkpoint.every_n_minutes=0.5", "checkpoint.every_n_minutes=0.5"),
        ("checkpoint.every_n_minutes=1:30:00,2h", "checkpoint.every_n_minutes=90,120"),
        ("max_seconds=5 min", "max_seconds=300"),
        ("hydra.launcher.timeout_min=1h", "hydra.launcher.timeout_min=1h"),
        ("data.batch_size=1k", "data.batch_size=1k"),
        ("optimizer.lr=1e3", "optimizer.lr=1e3"),
        ("start_context=1e9", "start_context='1e9'"),
    ],
)
def test_amounts_and_durations_may_have_an_exponent_or_a_unit(typed: str, rewritten: str) -> None:
    assert quote_arguments([typed]) == [rewritten]


def test_a_setting_without_its_group_gives_a_suggestion() -> None:
    typed = ["max_tokens=5", "lr=1e-3", "seed=1", "model=tiny", "+callbacks.custom.x._target_=a.B", "nonsense=1"]
    with pytest.raises(UserError, match=r"max_tokens=5: there is no such setting. Did you mean trainer.max_tokens\?") as caught:
        check_arguments(sort_arguments(typed), script="train")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["max_tokens=5", "lr=1e-3", "nonsense=1"]
    with pytest.raises(UserError, match=r"Did you mean sampler.top_k\?"):
        check_arguments(sort_arguments(["top_k=5"]), script="generate")
