"""Which vocabulary a run takes if none is typed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from gpt_pretrain.commands.prepare import prepare_command
from gpt_pretrain.config.overrides import full_form
from gpt_pretrain.config.schema import USUAL_BATCH, SourceSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.training.preflight import prepare_training
from gpt_pretrain.training.run_tokenizer import ENOUGH_CHARACTERS, ENOUGH_IF_CUT, fitting_size
from tests.helpers.data_settings import data_settings

Compose = Callable[..., DictConfig]
WAY_BACK = "The text gets a vocabulary of its own; tokenizer=gpt2 uses GPT-2's instead"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Return a file with just enough text for a vocabulary of its own."""
    lines = "".join(f"Line {n * n} of the book says {n % 977} and {n % 89}.\n" for n in range(4000))
    return write(tmp_path / "book.txt", lines[: int(ENOUGH_CHARACTERS / 0.9) + 2])


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def tokenizer_of(compose: Compose, *overrides: str, run_dir: Path | None = None) -> tuple[str, int | None]:
    """Return the name of the tokenizer of a new run, and the size of the vocabulary that is trained for it."""
    overridden = {full_form(override, script="train").partition("=")[0] for override in overrides}
    settings = prepare_training(compose(*overrides, run_dir=run_dir), overridden=overridden).settings
    return settings.tokenizer.name.partition("@")[0], settings.tokenizer.vocab_size


def test_a_long_text_of_the_users_own_gets_a_vocabulary(
    compose_train: Compose, book: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gpt_pretrain")
    own = ["data=text", f"data.path={book}"]
    for typed in ([], ["experiment=small_text"], ["model=modern_tiny"], ["tokenizer=auto"]):
        caplog.clear()
        assert tokenizer_of(compose_train, *own, *typed) == ("bpe-1024", 1024)
        assert caplog.messages.count(WAY_BACK) == 1
    mixture = f"data.sources=[{{path: {book}, weight: 1}}]"
    assert tokenizer_of(compose_train, "data=mixture", mixture) == ("bpe-1024", 1024)
    assert tokenizer_of(compose_train, *own, "tokenizer.vocab_size=300") == ("bpe-300", 300)


def test_muon_with_a_trained_vocabulary_takes_larger_steps_if_nobody_has_chosen_them(compose_train: Compose, book: Path) -> None:
    for typed, batch in {
        "tokenizer=auto": 8,
        "tokenizer=bpe": 8,
        "data.batch_size=null": 8,
        "model=modern_tiny": 32,
        "trainer.devices=3": 2,
        "experiment=modern": 12,
        "model.context_length=2048": USUAL_BATCH,
        "data.batch_size=2": 2,
        "trainer.accumulate_grad_batches=2": USUAL_BATCH,
        "tokenizer=gpt2": USUAL_BATCH,
        "optimizer=adamw": USUAL_BATCH,
        "model=tiny": USUAL_BATCH,
    }.items():
        config = compose_train("data=text", f"data.path={book}", typed)  # as from a file of the user's own: nothing is overridden
        assert prepare_training(config, overridden=frozenset()).settings.data.batch_size == batch, typed


def test_a_resumed_run_keeps_its_vocabulary_and_its_steps(
    compose_train: Compose, train: Callable[..., float], book: Path, tmp_path: Path
) -> None:
    small = ["model=modern_tiny", "model.emb_dim=32", "model.n_layers=1", "model.n_heads=1", "model.context_length=128"]
    first = ["trainer.max_steps=1", "callbacks=minimal", "logger=none", "trainer.precision=32-true"]
    train("data=text", f"data.path={book}", *first, base=small, run_dir=tmp_path / "run")
    resumed = [*small, f"resume={tmp_path / 'run'}", "trainer.max_steps=2"]
    for typed in (
        [],
        ["data=text"],
        ["data.batch_size=null"],
        ["tokenizer.vocab_size=null"],
        ["tokenizer=auto"],
        ["tokenizer=bpe"],
    ):
        config = compose_train(*resumed, *typed, f"data.path={book}", run_dir=tmp_path / "run")
        overridden = {full_form(override, script="train").partition("=")[0] for override in (*typed, "trainer.max_steps=2")}
        settings = prepare_training(config, overridden=overridden).settings
        assert (settings.data.batch_size, settings.tokenizer.vocab_size) == (16, 1024), typed


def test_a_text_with_too_few_tokens_for_a_size_is_a_warning_only_if_that_size_is_typed(
    compose_train: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "lines.txt", "The same line again.\n" * 6000)
    own, warning = ["data=text", f"data.path={file}"], "is more than this text has: its vocabulary has 272 tokens"
    assert tokenizer_of(compose_train, *own) == ("bpe-1024", 1024)
    assert warning not in caplog.text
    assert tokenizer_of(compose_train, *own, "tokenizer=bpe", "tokenizer.vocab_size=300") == ("bpe-300", 300)
    assert f"tokenizer.vocab_size=300 {warning}" in caplog.text


def test_all_other_runs_keep_the_vocabulary_of_gpt2(compose_train: Compose, book: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = write(book.with_name("short.txt"), book.read_text(encoding="utf-8")[:ENOUGH_CHARACTERS])
    own = ["data=text", f"data.path={book}"]
    for typed in (["data=text", f"data.path={short}"], [], [*own, "model=tiny"], [*own, "tokenizer=gpt2"]):
        assert tokenizer_of(compose_train, *typed) == ("gpt2", None)
    assert tokenizer_of(compose_train, *own, "experiment=bytes") == ("byte", None)
    assert WAY_BACK not in caplog.text
    assert tokenizer_of(compose_train, f"data.path={short}", "data=text", "tokenizer=bpe")[1] == 1024


@pytest.mark.parametrize(
    ("letters", "characters", "name"),
    [
        ("ж", ENOUGH_IF_CUT, "bpe-512"),
        ("ж", ENOUGH_IF_CUT - 1, "gpt2"),
        ("語", ENOUGH_IF_CUT, "bpe-512"),
        ("th", ENOUGH_IF_CUT, "gpt2"),
    ],
)
def test_a_shorter_text_is_enough_if_the_vocabulary_of_gpt2_cuts_it(
    compose_train: Compose, tmp_path: Path, letters: str, characters: int, name: str
) -> None:
    text = f"{letters}{letters} e{letters} " * 10_000
    file = write(tmp_path / "text.txt", text[: 2 * characters])
    assert tokenizer_of(compose_train, "data=text", f"data.path={file}", "data.train_ratio=0.5")[0] == name


def test_corpora_and_weights_bring_their_own(
    compose_train: Compose, train: Callable[..., float], book: Path, tmp_path: Path
) -> None:
    prepare_command([str(book), f"out={tmp_path / 'corpus'}", "tokenizer=byte", "val_fraction=0.1"])
    assert tokenizer_of(compose_train, "data=shards", f"data.path={tmp_path / 'corpus'}") == ("byte", None)
    train("model=modern_tiny", "tokenizer=byte", "trainer.max_steps=1", run_dir=tmp_path / "a")
    own = ["data=text", f"data.path={book}"]
    assert tokenizer_of(compose_train, *own, f"init_from={tmp_path / 'a'}", run_dir=tmp_path / "b") == ("byte", None)
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=300 .* Add tokenizer=bpe\."):
        tokenizer_of(compose_train, *own, f"init_from={tmp_path / 'a'}", "tokenizer.vocab_size=300", run_dir=tmp_path / "c")
    resumed = [f"resume={tmp_path / 'a'}", "trainer.max_steps=2"]
    for typed in ([], ["tokenizer=auto"]):
        assert tokenizer_of(compose_train, *resumed, *typed, run_dir=tmp_path / "a") == ("byte", None)


@pytest.mark.parametrize(("characters", "size"), [(1, 512), (76_799, 512), (76_800, 1024), (307_199, 2048), (307_200, 4096)])
def test_the_size_follows_from_the_length_of_the_training_set(tmp_path: Path, characters: int, size: int) -> None:
    file = write(tmp_path / "text.txt", "é" * 2 * characters)
    assert fitting_size(data_settings(tmp_path / "cache", name="text", path=str(file), train_ratio=0.5)) == size
    halves = [SourceSettings(str(write(tmp_path / f"{n}.txt", "x" * characters)), float(n)) for n in (1, 2)]
    assert fitting_size(data_settings(tmp_path / "cache", name="mixture", sources=halves, train_ratio=0.5)) == size


@pytest.mark.parametrize("typed", ["data.batch_size=0", "model.n_heads=7", "optimizer.lr=-1"])
@pytest.mark.parametrize("tokenizer", ["auto", "bpe", "gpt2"])
def test_invalid_settings_are_refused_before_the_text_is_tokenized(
    compose_train: Compose, book: Path, tmp_path: Path, typed: str, tokenizer: str
) -> None:
    own = ["data=text", f"data.path={book}", f"data.cache_dir={tmp_path / 'cache'}", f"tokenizer={tokenizer}"]
    with pytest.raises(UserError, match=typed):
        tokenizer_of(compose_train, *own, typed)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("cache/*/*.json")), "no tokens and no vocabulary"
