import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpt_pretrain.commands.hydra_arguments import check_arguments, quote_arguments
from gpt_pretrain.errors import UserError


def as_hydra_reads(word: str) -> str:
    (override,) = OverridesParser.create().parse_overrides([word])
    return str(OmegaConf.create({"x": override.value()})["x"])


@example("\\${")
@example("\\\\${x}'")
@given(text=st.text(alphabet=st.one_of(st.sampled_from("a'\"\\$,={}()[]: \n"), st.characters(codec="utf-8")), min_size=1))
def test_any_text_reaches_the_program_as_typed(text: str) -> None:
    if text == "null" or (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        return  # Hydra's own spellings stay Hydra's
    (word,) = quote_arguments([f"prompt={text}"])
    assert as_hydra_reads(word) == text


@pytest.mark.parametrize("words", [["optimizer.lr=1e-3"], ["-m", "prompt=a,b"], ["prompt='quoted'"], ["resume=null"], ["--help"]])
def test_everything_else_is_left_alone(words: list[str]) -> None:
    assert quote_arguments(words) == words


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("trainer.max_tokens=1e9", "trainer.max_tokens=1000000000"),
        ("data.val_tokens=1.5E6", "data.val_tokens=1500000"),
        ("+data.remote.cache_bytes=5e+10", "+data.remote.cache_bytes=50000000000"),
        ("trainer.max_tokens=1e6,2e6", "trainer.max_tokens=1000000,2000000"),
        ("trainer.max_tokens=1.5e0", "trainer.max_tokens=1.5e0"),
        ("trainer.max_tokens=1e999999999", "trainer.max_tokens=1e999999999"),
        ("trainer.max_tokens=1_000", "trainer.max_tokens=1_000"),
        ("trainer.max_tokens=x1e9", "trainer.max_tokens=x1e9"),
        ("optimizer.lr=1e3", "optimizer.lr=1e3"),
        ("start_context=1e9", "start_context='1e9'"),
    ],
)
def test_amounts_may_be_written_with_an_exponent(typed: str, read: str) -> None:
    assert quote_arguments([typed]) == [read]


def test_a_setting_named_without_its_group_is_told_in_full() -> None:
    with pytest.raises(UserError, match=r"max_tokens=5: there is no such setting. Did you mean trainer.max_tokens\?") as told:
        check_arguments(
            ["max_tokens=5", "lr=1e-3", "seed=1", "model=tiny", "+callbacks.custom.x=1", "nonsense=1"], script="train"
        )
    assert len(told.value.problems) == 2, "Hydra tells of what is not like any"
    with pytest.raises(UserError, match="Did you mean"):
        check_arguments(["top_k=5"], script="generate")
