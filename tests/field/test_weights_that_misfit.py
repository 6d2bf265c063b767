"""Loaded weights are said not to fit their text wherever they meet one, and a damaged vocabulary of theirs can be replaced."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol

import pytest

from gpt_pretrain.evaluation.unlikely_text import unlikely_loss
from tests.field.test_vocabularies_in_use import TINY, copy_vocabulary, save_model

TEXT = "Der Sinn des Lebens ist die Freude. " * 40


class Script(Protocol):
    def __call__(self, *arguments: str) -> CompletedProcess[str]: ...


@pytest.fixture
def model(tmp_path: Path, vocabularies: dict[str, Path]) -> Path:
    """Return a folder with a GPT-2 that always prefers one token."""
    (tmp_path / "text.txt").write_text(TEXT)
    return copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 400, favorite=399))


def test_the_cause_is_the_vocabulary_only_if_it_was_not_theirs() -> None:
    assert unlikely_loss("The text", 6.9, vocab_size=400) is None
    assert unlikely_loss("The text", float("nan"), vocab_size=400) is None
    said = unlikely_loss("The text", 31.04, vocab_size=400)
    assert said is not None
    assert said.startswith(
        "The text has a loss of 31.0 nats per token, while a uniform guess among all tokens gives 6.0: the weights do"
    )
    assert "trained with another tokenizer: name it with tokenizer=" in said
    own = unlikely_loss("The text", 31.04, vocab_size=400, of_own_vocabulary=True)
    assert own is not None and "tokenizer" not in own


@pytest.mark.usefixtures("model")
def test_an_evaluation_warns(script: Script) -> None:
    done = script("evaluate.py", "models=[model]", "data.path=text.txt", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert "model: the text has a loss of" in done.stdout + done.stderr


@pytest.mark.usefixtures("model")
def test_a_training_warns_without_the_health_monitor_too(script: Script) -> None:
    done = script("train.py", "init_from=model", *TINY[5:], "model.context_length=16", "data.path=text.txt")
    assert done.returncode == 0, done.stderr
    assert "The text has a loss of" in done.stdout + done.stderr


def test_a_damaged_vocabulary_of_weights_can_be_replaced(script: Script, model: Path, vocabularies: dict[str, Path]) -> None:
    content = (model / "tokenizer.json").read_bytes()
    (model / "tokenizer.json").write_bytes(content[: len(content) // 2])
    typed = ["init_from=model", *TINY[5:], "model.context_length=16", "data.path=text.txt"]
    refused = script("train.py", *typed)
    assert refused.returncode == 2
    assert "cannot be used as a tokenizer" in refused.stderr
    assert "To use another tokenizer in its place, add tokenizer=FOLDER." in refused.stderr
    done = script("train.py", *typed, f"tokenizer={vocabularies['byte_level']}")
    assert done.returncode == 0, done.stderr
    assert "is used in its place." in done.stdout + done.stderr
