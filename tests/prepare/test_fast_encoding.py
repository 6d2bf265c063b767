"""Preparing with the fast library gives the corpus that preparing without it gives, also where the library is wrong."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt_pretrain.data import token_cache
from gpt_pretrain.prepare import encoding, pipeline, tokenizing
from gpt_pretrain.prepare.encoding import WITHOUT_LIBRARY
from gpt_pretrain.texts import reading
from gpt_pretrain.texts.text import Text
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.fast_encoding import fast_encoder
from gpt_pretrain.tokenizers.fast_encoding.fast_encoder import FastEncoder
from tests.helpers import corpora

SETTINGS = {"tokenizer": "gpt2", "shard_tokens": 20_000, "val_tokens": 2000, "dedup": "exact", "document_separator": "<>"}
WORDS = [
    "It's",
    "THEY'LL",
    "caf\u00e9",
    "\u4f60\u597d\uff0c",
    "  \n",
    "1234",
    "xyzzyx",
    "\U0001f468\u200d\U0001f469",
    "e\u0301",
    "</p>\r\n",
]


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    long = " ".join(rng.choice(WORDS, 20_000))
    short = "<>".join(" ".join(rng.choice(WORDS, size)) for size in rng.integers(0, 200, 300)) + "<|endoftext|> ends"
    genome = "".join(rng.choice(list("ACGT"), 600_000))
    paths = [tmp_path / f"{number}.txt" for number in range(3)]
    for path, text in zip(paths, (short, long, genome), strict=True):
        path.write_text(text, encoding="utf-8", newline="")
    return paths


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take any text for large enough."""
    for module in (pipeline, token_cache):
        monkeypatch.setattr(module, "WORTHWHILE", 0)
    tokenizing.cached_encoder.cache_clear()


class WrongLater:
    """Wraps engines, which from a certain call on leave out the first token of the texts with a certain word."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first_wrong: int) -> None:
        real = fast_encoder.engine_builder
        self.calls, self.first_wrong = 0, first_wrong
        monkeypatch.setattr(fast_encoder, "engine_builder", lambda tokenizer: lambda: self.wrap(real(tokenizer)()))

    def wrap(self, encode: fast_encoder.Encode) -> fast_encoder.Encode:
        def wrong(data: bytes) -> np.ndarray:
            self.calls += b"xyzzyx" in data
            return encode(data)[1:] if b"xyzzyx" in data and self.calls >= self.first_wrong else encode(data)

        return wrong


def test_the_corpus_is_the_same(inputs: list[Path], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    corpora.prepare(*inputs, out=tmp_path / "slow", **SETTINGS)
    request.getfixturevalue("large")
    corpora.prepare(*inputs, out=tmp_path / "fast", **SETTINGS)
    assert corpora.contents(tmp_path / "fast") == corpora.contents(tmp_path / "slow")
    if sys.platform == "linux":
        corpora.prepare(*inputs, out=tmp_path / "two", workers=2, **SETTINGS)
        assert corpora.contents(tmp_path / "two") == corpora.contents(tmp_path / "slow")


@pytest.mark.parametrize("first_wrong", [1, 20])
def test_a_wrong_library_is_found_and_the_corpus_is_made_again(
    first_wrong: int,
    inputs: list[Path],
    large: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "WORTHWHILE", 1 << 40)
        corpora.prepare(*inputs, out=tmp_path / "slow", **SETTINGS)
    monkeypatch.setattr("gpt_pretrain.texts.containers.blocks.BLOCK", 1000)
    monkeypatch.setattr(fast_encoder, "COMPARED_FIRST", 0)
    monkeypatch.setattr(tokenizing, "COMPARED_FIRST", 0)
    monkeypatch.setattr(fast_encoder, "COMPARED_SHARE", 8)
    wrong, kept = WrongLater(monkeypatch, first_wrong), []
    real = encoding.start_without_library
    monkeypatch.setattr(encoding, "start_without_library", lambda folder: real(folder) or kept.append(folder / WITHOUT_LIBRARY))
    corpora.prepare(*inputs, out=tmp_path / "out", **SETTINGS)
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "slow")
    assert len(kept) == 1 and wrong.calls >= first_wrong
    printed = capsys.readouterr().err
    assert "gigatoken encodes " in printed and "All texts are encoded again without gigatoken, which takes longer." in printed


@pytest.mark.parametrize("workers", [1, 2])
def test_a_wrong_token_of_the_vocabulary_is_found(
    workers: int,
    inputs: list[Path],
    large: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = fast_encoder.engine_builder

    def wrong(data: bytes, encode: fast_encoder.Encode) -> np.ndarray:
        return encode(data)[1:] if b" petertodd" in data else encode(data)  # a token of GPT-2, which no input has

    monkeypatch.setattr(
        fast_encoder, "engine_builder", lambda tokenizer: lambda: functools.partial(wrong, encode=real(tokenizer)())
    )
    corpora.prepare(*inputs, out=tmp_path / "out", workers=workers, **SETTINGS)
    printed = capsys.readouterr().err
    assert "gigatoken encodes " in printed and "All texts are encoded again without gigatoken" in printed


def test_a_corpus_whose_library_was_wrong_is_resumed_without_it(
    inputs: list[Path], large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WrongLater(monkeypatch, 1)
    monkeypatch.setattr(reading, "BATCH", 50_000)
    monkeypatch.setattr(tokenizing, "COMPARED_FIRST", 1 << 30)
    used = []
    real = encoding.encode_batch

    def encode(*args: object, fast: bool, **options: object) -> object:
        used.append(fast)
        if len(used) == 3:
            raise KeyboardInterrupt
        return real(*args, fast=fast, **options)

    monkeypatch.setattr(encoding, "encode_batch", encode)
    with pytest.raises(KeyboardInterrupt):
        corpora.prepare(*inputs, out=tmp_path / "out", **SETTINGS)
    corpora.prepare(*inputs, out=tmp_path / "out", **SETTINGS)
    assert used[:2] == [True, False] and not any(used[1:])


def test_without_the_library_the_corpus_is_the_same_and_it_is_said(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora.prepare(*inputs, out=tmp_path / "small", **SETTINGS)
    assert "gigatoken" not in capsys.readouterr().err
    monkeypatch.setattr(pipeline, "WORTHWHILE", 0)
    tokenizing.cached_encoder.cache_clear()
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    corpora.prepare(*inputs, out=tmp_path / "out", **SETTINGS)
    tokenizing.cached_encoder.cache_clear()
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "small")
    expected = "Encoding takes about ten times as long as with gigatoken: the package gigatoken is not installed."
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [False, True])
def test_the_cache_of_a_text_has_the_same_tokens(
    wrong: bool, inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text, tokenizer, built = Text(tuple(inputs)), build_tokenizer("gpt2"), []
    slow = token_cache.tokenize_text(text, tokenizer, train_ratio=0.9, cache_dir=tmp_path / "slow")
    monkeypatch.setattr(token_cache, "WORTHWHILE", 0)
    if wrong:
        WrongLater(monkeypatch, 1)
    monkeypatch.setattr(token_cache, "FastEncoder", lambda *a, **k: built.append(FastEncoder(*a, **k)) or built[-1])
    fast = token_cache.tokenize_text(text, tokenizer, train_ratio=0.9, cache_dir=tmp_path / "fast")
    assert [shard.sha256 for shard in (fast.train, fast.val)] == [shard.sha256 for shard in (slow.train, slow.val)]
    assert [encoder.slow_because for encoder in built] == (["", "the text is small"] if wrong else [""])
    assert ("The text is encoded again without gigatoken" in caplog.text) == wrong
