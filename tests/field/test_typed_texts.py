"""Texts, paths and lists as users type them: each means itself, with and without a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpt_pretrain.commands.command_line.hydra_grammar import to_hydra_override
from gpt_pretrain.config.free_text import as_typed, plain_value


def values(override: str, *, sweep: bool) -> list[str]:
    """Return the values that a typed override has for Hydra."""
    parsed = OverridesParser.create().parse_override(to_hydra_override(override, sweep=sweep))
    found = parsed.value().list if isinstance(parsed.value(), ChoiceSweep) else [parsed.value()]
    return [str(OmegaConf.create({"x": one.text if isinstance(one, QuotedString) else one})["x"]) for one in found]


TEXTS = [
    "Once upon a time, there was",
    "It's late",
    'She said "no"',
    "你好",
    "Grüße, l'été",
    "a=b",
    "{x}",
    "[1, 2]",
    "(a)",
    "true",
    "12",
    "1e3",
    "010",
    "-",
    " leading and trailing ",
    "C:\\texts\\a.txt",
    "\\",
    "ends in \\'",
    "${HOME}",
    "two\nlines",
    "tab\there",
    "🙂 “curly quotes”",
    "null",
    "choice of words",
    "# no comment",
    "~ !&|;*?",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["prompt", "start_context"])
@pytest.mark.parametrize("sweep", [False, True])
def test_a_text_means_itself_with_and_without_a_sweep(text: str, key: str, sweep: bool) -> None:
    assert values(f"{key}={text}", sweep=sweep) == [text]


@given(text=st.text(st.sampled_from("ab,'\"\\=${}[]() \nü"), min_size=1, max_size=8), sweep=st.booleans())
def test_any_text_means_itself_unless_it_is_in_quotation_marks(text: str, sweep: bool) -> None:
    if text[0] in "'\"" and text[-1] in "'\"" and len(text) > 1:
        return
    assert values(f"prompt={text}", sweep=sweep) == [text]
    assert values(f"hydra.sweep.dir={text.replace('${', '')}x", sweep=sweep) == [text.replace("${", "") + "x"]


def test_texts_in_quotation_marks_of_their_own_are_swept() -> None:
    assert values("prompt='One, two','Three'", sweep=True) == ["One, two", "Three"]
    assert values("""prompt="It's", 'so'""", sweep=True) == ["It's", "so"]
    assert values("prompt=choice('a b',c)", sweep=True) == ["a b", "c"]
    assert values("prompt='quoted'", sweep=True) == ["quoted"]


def test_paths_and_names_are_swept_unless_the_whole_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a, b=c's.txt").write_text("x")
    assert values("data.path=a, b=c's.txt", sweep=True) == ["a, b=c's.txt"]
    assert values("data.path=données/a.txt,b's.txt", sweep=True) == ["données/a.txt", "b's.txt"]
    assert values('data.path="b,c.txt",b.txt', sweep=True) == ["b,c.txt", "b.txt"]
    assert values("data.path=a.txt, 'x, y.txt' ,it's.txt", sweep=True) == ["a.txt", "x, y.txt", "it's.txt"]
    assert values("checkpoint=outputs/a=1,outputs/a=2", sweep=True) == ["outputs/a=1", "outputs/a=2"]
    assert values("pretrained=gpt2,gpt2-medium", sweep=True) == ["gpt2", "gpt2-medium"]
    assert values("tokenizer.name=byte,gpt2", sweep=True) == ["byte", "gpt2"]
    assert values("data.cache_dir=my, cache", sweep=True) == ["my, cache"]
    assert values("optimizer.lr=1e-3,2e-3", sweep=True) == ["0.001", "0.002"]


def test_lists_with_any_letters_are_read(tmp_path: Path) -> None:
    for typed, read in (
        ("data.sources=[{path: données/a.txt, weight: 1}]", [{"path": "données/a.txt", "weight": 1}]),
        ("callbacks.grid.prompts=[It's late, 你好]", ["It's late", "你好"]),
        ("optimizer.betas=[0.9, 0.95]", [0.9, 0.95]),
    ):
        parsed = OverridesParser.create().parse_override(to_hydra_override(typed, sweep=True))
        assert OmegaConf.to_container(OmegaConf.create({"x": parsed.value()})) == {"x": read}


@pytest.mark.parametrize("text", TEXTS)
def test_printed_overrides_are_the_ones_that_were_typed(text: str) -> None:
    stored = to_hydra_override(f"data.path={text}", sweep=False)
    printed = as_typed(stored)
    assert values(printed, sweep=False) == values(stored, sweep=False)
    if text not in ("null", "${HOME}"):
        assert printed == f"data.path={text}"
        assert plain_value(stored.partition("=")[2]) == text


# Values that Hydra's own grammar refuses, or has refused, when they are typed as they are.
REPORTED = [
    "a|b",
    "介绍一下你",
    "*",
    "pattern_%r.bin",
    "name@example.com",
    "2023-09-16",
    "#",
    "mlx5_0:1,mlx5_3:1",
    "ends in \\",
]


@pytest.mark.parametrize("value", REPORTED)
@pytest.mark.parametrize("key", ["prompt", "hydra.run.dir", "data.path"])
def test_values_that_a_grammar_would_refuse_are_taken_as_typed(key: str, value: str) -> None:
    assert values(f"{key}={value}", sweep=False) == [value]
