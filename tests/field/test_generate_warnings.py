"""generate.py warns of settings and prompts that do not do what they seem to do."""

from __future__ import annotations

from unittest import mock

import pytest

from gpt_pretrain.commands import generate, generate_warnings
from gpt_pretrain.config.inference_schema import GenerateSettings
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import tiny_model


@pytest.mark.parametrize(
    ("typed", "warning"),
    [
        (["prompt=a", "prompt_file=b.txt"], "prompt has no effect, since prompt_file=b.txt is the prompt."),
        (["prompt=a", "interactive=true"], "prompt has no effect, since interactive=true asks for prompts."),
        (["prompt_file=b.txt", "interactive=true"], "prompt_file has no effect, since interactive=true asks for prompts."),
        (["prompts=c.txt", "prompt_file=b.txt"], "prompt_file has no effect, since prompts=c.txt holds the prompts."),
        (["prompt=a"], None),
        (["prompt_file=b.txt"], None),
    ],
)
def test_a_prompt_that_another_setting_replaces_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, typed: list[str], warning: str | None
) -> None:
    pairs = dict(one.split("=") for one in typed)
    monkeypatch.setattr(generate_warnings, "overridden_keys", lambda: set(pairs))
    settings = GenerateSettings(
        prompt="a", prompt_file=pairs.get("prompt_file"), prompts=pairs.get("prompts"), interactive="interactive" in pairs
    )
    assert generate_warnings.unused_prompts(settings) == warning


def test_a_seed_without_chance_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_warnings, "overridden_keys", lambda: {"seed"})
    greedy, random = (mock.Mock(seed=7, sampler=mock.Mock(temperature=temperature)) for temperature in (0.0, 0.7))
    assert str(generate_warnings.unused_seed(greedy)).startswith("seed=7 has no effect at sampler.temperature=0, which always")
    assert generate_warnings.unused_seed(random) is None


@pytest.mark.parametrize(
    ("prompt", "stop", "prompts", "names"),
    [
        ("a", r"\n", None, "stop"),
        (r"one\ntwo", "END", None, "prompt"),
        (r"one\ntwo", r"\n\n", None, "stop and prompt"),
        (r"one\ntwo", "END", "b.txt", None),
        ("one\ntwo", "\n", None, None),
    ],
)
def test_escapes_that_nothing_reads_are_a_warning(prompt: str, stop: str, prompts: str | None, names: str | None) -> None:
    settings = GenerateSettings(prompt=prompt, stop=[stop], prompts=prompts, prompt_file=None, interactive=False)
    warning = generate_warnings.unread_escapes(settings)
    assert (warning or "").partition(" is a backslash and an n")[0] == (rf"\n in {names}" if names else "")


def test_curly_quotation_marks_in_a_prompt_are_said() -> None:
    assert generate_warnings.curly_marks(GenerateSettings(prompt="Say \u201chello\u201d", prompt_file=None)) is None
    warning = generate_warnings.curly_marks(GenerateSettings(prompt="\u201chello world\u201d", prompt_file=None))
    assert warning is not None and "are part of the prompt" in warning


def test_a_prompt_beyond_the_context_is_a_warning() -> None:
    model, tokenizer = tiny_model(vocab_size=257), build_tokenizer("byte")
    seen = model.config.context_length
    assert generate._prompt_problem("x" * seen, model, tokenizer, pretrained=False) is None
    said = f"The prompt has 2,000 tokens, of which the model sees the last {seen} (its context_length)."
    assert generate._prompt_problem("x" * 2000, model, tokenizer, pretrained=False) == said
