import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpt_pretrain.words import quoted


def as_hydra_reads(word: str) -> str:
    (override,) = OverridesParser.create().parse_overrides([word])
    return str(OmegaConf.create({"x": override.value()})["x"])


@example("\\${")
@example("\\\\${x}'")
@given(text=st.text(alphabet=st.one_of(st.sampled_from("a'\"\\$,={}()[]: \n"), st.characters(codec="utf-8")), min_size=1))
def test_any_text_reaches_the_program_as_typed(text: str) -> None:
    if text == "null" or (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        return  # Hydra's own spellings stay Hydra's
    (word,) = quoted([f"prompt={text}"])
    assert as_hydra_reads(word) == text


@pytest.mark.parametrize("words", [["optimizer.lr=1e-3"], ["-m", "prompt=a,b"], ["prompt='quoted'"], ["resume=null"], ["--help"]])
def test_everything_else_is_left_alone(words: list[str]) -> None:
    assert quoted(words) == words
