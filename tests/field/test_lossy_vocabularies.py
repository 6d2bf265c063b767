"""A vocabulary that drops parts of a text gives no loss per byte, and a warning names what it drops."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import Tokenizer as OurTokenizer
from gpt_pretrain.tokenizers.base import decode
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.byte_letters import LETTERS
from tests.helpers.training_runs import Printed, Train

TEXT = "Hello,  world\n\n 12 é, it's 3 of 4.\n"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
MARKS = pre_tokenizers.Metaspace()
BEFORE = {
    "digits": pre_tokenizers.Digits(individual_digits=True),
    "punctuation": pre_tokenizers.Punctuation(),
    "scripts": pre_tokenizers.UnicodeScripts(),
    "split": pre_tokenizers.Split(" ", "isolated"),
    "whitespace": pre_tokenizers.Whitespace(),
    "blanks": pre_tokenizers.WhitespaceSplit(),
    "one blank": pre_tokenizers.CharDelimiterSplit(" "),
    "bert": pre_tokenizers.BertPreTokenizer(),
    "no punctuation": pre_tokenizers.Punctuation("removed"),
    "no blanks": pre_tokenizers.Split(" ", "removed"),
    "marks": MARKS,
}


def _vocabulary(folder: Path, before: pre_tokenizers.PreTokenizer) -> Path:
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence([before, BYTES])
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator([TEXT], trainer)
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", BEFORE)
def test_bytes_are_counted_only_if_the_text_comes_back(tmp_path: Path, name: str) -> None:
    tokenizer = build_tokenizer(str(_vocabulary(tmp_path / "vocabulary", BEFORE[name])))
    comes_back = decode(tokenizer, tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.keeps_bytes == comes_back == (name in ("digits", "punctuation", "scripts", "split"))


@pytest.fixture
def without_bytes(tmp_path: Path) -> Path:
    """Return a folder with a vocabulary of bytes that nothing writes: the decoder alone is byte-level."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = Tokenizer(models.BPE(vocab=letters, merges=[]))
    fast.decoder = decoders.ByteLevel()
    (tmp_path / "letters").mkdir()
    fast.save(str(tmp_path / "letters" / "tokenizer.json"))
    return tmp_path / "letters"


def _missing(tokenizer: OurTokenizer, text: str) -> str:
    with pytest.raises(UserError) as caught:
        tokenizer.encode(text)
    return str(caught.value)


def test_bytes_that_nothing_writes_are_not_counted(without_bytes: Path) -> None:
    tokenizer = build_tokenizer(str(without_bytes))
    assert not tokenizer.keeps_bytes
    assert len(tokenizer.encode("hello world\nnew")) == len("helloworldnew")  # as the library does
    assert "has no token for '東'" in _missing(tokenizer, "the line\nand 東 are gone")


@pytest.mark.parametrize("with_decoder", [True, False])
@pytest.mark.parametrize("before", [MARKS, pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), MARKS])])
def test_a_blank_before_a_character_does_not_hide_that_it_is_lost(
    tmp_path: Path, before: pre_tokenizers.PreTokenizer, with_decoder: bool
) -> None:
    fast = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "b": 2}, merges=[]))
    fast.pre_tokenizer = before
    if with_decoder:
        fast.decoder = decoders.Metaspace()
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = build_tokenizer(str(tmp_path))
    assert tokenizer.encode("ab a") == [0, 1, 2, 0, 1]
    assert "has no token for '東'" in _missing(tokenizer, "ab東a")


@pytest.mark.parametrize("lost", ["z", "é"])
@pytest.mark.parametrize("adds_blank", [True, False])
def test_a_character_is_lost_if_one_of_its_bytes_is(tmp_path: Path, adds_blank: bool, lost: str) -> None:
    letters = {letter: number for number, letter in enumerate(LETTERS) if letter != LETTERS[lost.encode()[-1]]}
    fast = Tokenizer(models.BPE(vocab=letters, merges=[]))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=adds_blank), decoders.ByteLevel()
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = build_tokenizer(str(tmp_path))
    assert len(tokenizer.encode("a ü")) == 4 + adds_blank
    assert f"has no token for {lost!r}" in _missing(tokenizer, f"a{lost}b")


def test_dropped_line_ends_are_said_before_a_run(tmp_path: Path, train: Train, printed: Printed) -> None:
    folder = _vocabulary(tmp_path / "vocabulary", BEFORE["whitespace"])
    train("trainer.max_steps=1", "callbacks=minimal", "logger=none", f"tokenizer.name={folder}")
    assert sum("drops the line ends of a text" in line for line in printed()) == 1
