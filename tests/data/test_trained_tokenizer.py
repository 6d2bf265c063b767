"""tokenizer=bpe: a vocabulary of the training set, kept in the cache, in checkpoints, in run folders and in exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.config.schema import SourceSettings
from gpt_pretrain.data import trained_tokenizer as trained_tokenizers
from gpt_pretrain.data.trained_tokenizer import trained_tokenizer
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import decode
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer
from tests.helpers.data_settings import data_settings

TEXT = "Every effort moves you forward, doesn't it? Der Sinn des Lebens.\n" * 40


def settings(folder: Path, text: str = TEXT, **changes: object):
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return data_settings(folder / "cache", name="text", path=str(folder / "text.txt"), train_ratio=0.5, **changes)


def test_nothing_is_learned_from_the_validation_set(tmp_path: Path) -> None:
    half = len(TEXT) // 2
    names = {
        trained_tokenizer(settings(tmp_path, TEXT[:half] + rest), vocab_size=300).name
        for rest in ("Z" * half, TEXT[half:], "привет " * (half // 7 + 1))
    }
    assert len(names) == 1
    assert trained_tokenizer(settings(tmp_path, "Z" * half + TEXT[half:]), vocab_size=300).name not in names


def test_the_cache_is_used_and_what_others_have_put_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = trained_tokenizers.train_bpe
    monkeypatch.setattr(
        trained_tokenizers, "train_bpe", lambda texts, size, **more: sizes.append(size) or original(texts, size, **more)
    )
    first = trained_tokenizer(settings(tmp_path), vocab_size=300)
    assert trained_tokenizer(settings(tmp_path), vocab_size=300).definition == first.definition
    assert trained_tokenizer(settings(tmp_path), vocab_size=280).vocab_size == 280
    assert sizes == [300, 280]
    files = sorted((tmp_path / "cache" / "tokenizers").glob("*.json"))
    assert len(files) == 2
    files[0].write_bytes(files[1].read_bytes())
    files[1].write_bytes(files[1].read_bytes()[:-9])
    for size in (300, 280):
        assert trained_tokenizer(settings(tmp_path), vocab_size=size).name.startswith(f"bpe-{size}@")
    assert sizes == [300, 280, 300, 280]


def test_of_a_large_text_a_sample_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(trained_tokenizers, "SAMPLE_BYTES", 100_000)
    caplog.set_level("INFO")
    trained_tokenizer(settings(tmp_path, TEXT * 200), vocab_size=300)
    assert "of the training set, a sample of it" in caplog.text


def test_of_a_mixture_each_text_counts_as_its_weight(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("aardvark ibex " * 200, encoding="utf-8")
    second.write_text("zebra yak " * 2000, encoding="utf-8")

    def trained(*weights: float) -> VocabularyTokenizer:
        sources = [SourceSettings(str(path), weight) for path, weight in zip((first, second), weights, strict=True)]
        return trained_tokenizer(data_settings(tmp_path / "cache", name="mixture", sources=sources), vocab_size=265)

    def learned(tokenizer: VocabularyTokenizer) -> str:
        return b" ".join(tokenizer.token_bytes(token_id) for token_id in range(256, 264)).decode()

    assert "ibe" in learned(trained(9, 1)) and "ze" not in learned(trained(9, 1))
    assert "zebra" in learned(trained(1, 9)) and "ibe" not in learned(trained(1, 9))
    assert trained(1, 9).name == trained(2, 18).name and trained(1, 9).name != trained(9, 1).name


def test_token_shards_in_a_mixture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.json").write_text("{}")
    sources = [SourceSettings(str(tmp_path / "corpus"), 1.0)]
    with pytest.raises(UserError, match=r"corpus in data\.sources holds tokens\. Train a vocabulary .* vocab_size=300, and prep"):
        trained_tokenizer(data_settings(tmp_path, name="mixture", sources=sources), vocab_size=300)
    with pytest.raises(UserError, match=r"data=mixture needs data\.sources="):
        trained_tokenizer(data_settings(tmp_path, name="mixture"), vocab_size=300)


def test_corpora_and_empty_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is trained on text, not with data=shards\. .* gpt-pretrain tokenizer TEXT out=FOLDER"):
        trained_tokenizer(data_settings(tmp_path, name="shards"), vocab_size=300)
    with pytest.raises(UserError, match="The text is empty"):
        trained_tokenizer(settings(tmp_path, " \n"), vocab_size=300)


def test_a_run_has_its_vocabulary_everywhere(tmp_path: Path, train: Callable[..., float]) -> None:
    run, own = tmp_path / "run", ["tokenizer=bpe", "tokenizer.vocab_size=300"]
    train(*own, "trainer.max_steps=2", run_dir=run)
    stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["tokenizer"]
    assert stored["name"].startswith("bpe-300@") and stored["vocab_size"] == 300
    weights = open_weights(run)
    assert weights.own_tokenizer is not None and weights.own_tokenizer.name == stored["name"]
    assert AutoTokenizer.from_pretrained(run, local_files_only=True).vocab_size == 300
    export(weights, tmp_path / "exported")
    opened = AutoTokenizer.from_pretrained(tmp_path / "exported", local_files_only=True)
    ids = weights.own_tokenizer.encode("Every effort moves you")
    assert opened.encode("Every effort moves you") == ids and decode(weights.own_tokenizer, ids) == opened.decode(ids)

    resume = [f"resume={run}", "trainer.max_steps=3"]
    train(*own, *resume, run_dir=run, base=[])
    with pytest.raises(UserError, match=r"tokenizer.vocab_size was 300, is 400 now"):
        train("tokenizer=bpe", "tokenizer.vocab_size=400", *resume, "trainer.max_steps=4", run_dir=run, base=[])
    with pytest.raises(UserError, match=r"tokenizer.name was bpe-300@\w+, is byte now"):
        train("tokenizer=byte", *resume, "trainer.max_steps=4", run_dir=run, base=[])
    with pytest.raises(UserError, match="which your overrides contradict"):
        train("tokenizer=bpe", f"init_from={run}", run_dir=tmp_path / "other")


def test_another_vocabulary_is_never_taken_for_a_trained_one(tmp_path: Path, train: Callable[..., float]) -> None:
    train("trainer.max_steps=2", run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"tokenizer.name was byte, is bpe now"):
        train("tokenizer=bpe", f"resume={tmp_path / 'run'}", "trainer.max_steps=3", run_dir=tmp_path / "run", base=[])
    with pytest.raises(UserError, match=r"tokenizer.vocab_size=300 is the size of a vocabulary .* Add tokenizer=bpe"):
        train("tokenizer.vocab_size=300", run_dir=tmp_path / "size")
    with pytest.raises(UserError, match=r"tokenizer=bpe is trained by train.py, for new weights and text"):
        open_weights(tmp_path / "run").build_tokenizer("bpe")
