"""Runs on token shards: they equal runs on the text, say what they read, and find it again."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.generated_text import find_training_tokens
from gpt_pretrain.runs.report.saving import save_run_page
from gpt_pretrain.runs.samples import read_samples
from gpt_pretrain.tokenizers.base import END_OF_TEXT
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import TINY_RUN
from tests.helpers.made_shards import BYTE, random_documents, stream, write_nanogpt, write_shards
from tests.helpers.training_runs import Train, checkpoint, same_weights

GPT2 = build_tokenizer("gpt2")
TRAIN, VAL = random_documents(200, seed=1), random_documents(30, seed=2)


def corpus_of(folder: Path, text: str) -> Path:
    """Write a text as shards with the same split as a text; each set is one document."""
    cut = int(0.9 * len(text))
    return write_shards(folder, train=[list(text[:cut].encode())], val=[list(text[cut:].encode())], shard_tokens=997)


def test_a_run_on_shards_equals_a_run_on_the_text(train: Train, tmp_path: Path, story: str) -> None:
    ids, cut = list(story.encode()), int(0.9 * len(story))
    folder = write_nanogpt(tmp_path / "nano", train=ids[:cut], val=ids[cut:])
    train("data=shards", f"data.path='{folder}'", "data.stride=350", "data.batch_size=16", run_dir=tmp_path / "shards")
    train(run_dir=tmp_path / "text")
    a, b = checkpoint(tmp_path / "shards"), checkpoint(tmp_path / "text")
    assert a["train_losses"] == b["train_losses"]
    assert same_weights(a, b)


def test_a_run_reports_its_data(train: Train, tmp_path: Path, story: str, printed: Callable[[], list[str]]) -> None:
    corpus = corpus_of(tmp_path / "corpus", story)
    train("data=shards", f"data.path='{corpus}'", "data.batch_size=16", "trainer.max_steps=1")
    assert any(line.startswith(f"data    {corpus}: 2 documents, ") for line in printed())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["data"]["documents"], record["data"]["characters"]) == (2, None)
    assert f"2 documents, {len(stream([story.encode()])) + 1:,} bytes" in save_run_page(tmp_path / "run").read_text()


def test_a_resumed_run_on_shards_equals_an_uninterrupted_one(train: Train, tmp_path: Path, story: str) -> None:
    corpus = corpus_of(tmp_path / "corpus", story)
    overrides = ["data=shards", f"data.path='{corpus}'", "data.stride=350", "data.batch_size=16", "logger=none"]
    train(*overrides, "trainer.max_epochs=4", run_dir=tmp_path / "whole")
    train(*overrides, "trainer.max_steps=5", "trainer.max_epochs=4", run_dir=tmp_path / "parts")
    train(
        *overrides, "trainer.max_steps=-1", "trainer.max_epochs=4", f"resume='{tmp_path / 'parts'}'", run_dir=tmp_path / "parts"
    )
    assert same_weights(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"))
    corpus_of(corpus, story.replace("keeper", "kepeer"))
    with pytest.raises(UserError, match="the content of the text has changed"):
        train(*overrides, "trainer.max_epochs=5", f"resume='{tmp_path / 'parts'}'", run_dir=tmp_path / "parts")


def test_the_tokenizer_follows_the_shards_unless_it_is_given(train: Train, tmp_path: Path, story: str) -> None:
    corpus = corpus_of(tmp_path / "corpus", story)
    base = ["model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=32", "compile=false",
            "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=1", "eval_iter=1"]  # fmt: skip
    overrides = ["data=shards", f"data.path='{corpus}'", "callbacks=minimal", "logger=none", "trainer.limit_val_batches=1"]
    train(*overrides, base=base)
    assert checkpoint(tmp_path / "run")["tokenizer"] == "byte"
    with pytest.raises(UserError, match=r"tokenizer=gpt2: data\.path=.* was made with byte. Use that tokenizer."):
        train(*overrides, "tokenizer=gpt2", base=base, run_dir=tmp_path / "other")


@pytest.mark.parametrize("path", ["", "train.bin"])
def test_a_nanogpt_folder_can_be_trained_on(train: Train, tmp_path: Path, story: str, path: str) -> None:
    ids = GPT2.encode(story)
    folder = write_nanogpt(tmp_path / "nano", train=ids[:3000], val=ids[3000:])
    base = ["model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=32", "compile=false",
            "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=2", "eval_iter=1"]  # fmt: skip
    best = train("data=shards", f"data.path='{folder / path}'", "callbacks=minimal", "logger=none", base=base)
    assert best == pytest.approx(np.log(50257), abs=0.3)
    assert checkpoint(tmp_path / "run")["tokenizer"] == "gpt2"


def test_a_path_that_is_not_a_folder_is_reported(train: Train) -> None:
    with pytest.raises(UserError, match=r"data\.path=/nowhere: there is no such folder"):
        train("data=shards", "data.path=/nowhere")
    with pytest.raises(UserError, match=r"data=shards needs data\.path="):
        train("data=shards")


def test_a_character_level_nanogpt_corpus_can_be_trained_on(train: Train, tmp_path: Path) -> None:
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 40
    characters = sorted(set(text))
    stoi = {character: number for number, character in enumerate(characters)}
    ids = [stoi[character] for character in text]
    folder = write_nanogpt(tmp_path / "char", train=ids[:2000], val=ids[2000:])
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    overrides = ["data=shards", f"data.path='{folder}'", "data.stride=null", "start_context=First", "logger=none"]
    base = [override for override in TINY_RUN if not override.startswith("tokenizer")]
    train(*overrides, run_dir=tmp_path / "run", base=base)
    model = load_pretrained(str(tmp_path / "run"))
    assert model.config.vocab_size == len(characters) + 1, "the end of text is one more token"
    (sample, _) = read_samples(tmp_path / "run" / "samples.txt")
    assert sample.text.startswith("First") and set(sample.text) <= {*characters, *END_OF_TEXT}
    tokenizer = build_tokenizer(open_weights(str(tmp_path / "run")).tokenizer)
    assert tokenizer.encode("Before we") == [stoi[character] for character in "Before we"]
    with pytest.raises(UserError, match="character 'Q' is not among"):
        tokenizer.encode("Q")


def test_shards_given_as_text_are_reported(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds token ids, not text\. Add data=shards"):
        train(f"data.path='{write_shards(tmp_path / 'c', train=TRAIN)}'")


def test_few_validation_windows_and_missing_documents_cause_warnings(
    train: Train, tmp_path: Path, story: str, printed: Callable[[], list[str]]
) -> None:
    ids = list(story.encode())
    folder = write_nanogpt(tmp_path / "nano", train=ids, val=ids)
    settings = ["data.val_tokens=50", "data.respect_documents=true", "data.train_ratio=0.5"]
    train("data=shards", f"data.path='{folder}'", *settings, "trainer.max_steps=1")
    lines = "\n".join(printed())
    assert "data.train_ratio=0.5 has no effect, since the data bring their own validation set." in lines
    assert "data.val_tokens=50 gives 2 validation windows" in lines
    assert "data.respect_documents=true may have no effect" in lines


def test_few_windows_of_a_given_validation_set_are_no_matter_of_the_ratio(
    train: Train, tmp_path: Path, story: str, printed: Callable[[], list[str]]
) -> None:
    folder = write_nanogpt(tmp_path / "nano", train=list(story.encode()), val=list(story.encode()[:40]))
    train("data=shards", f"data.path='{folder}'", "trainer.max_steps=1")
    assert any("The validation set has only 1 window, so" in line for line in printed())


def test_the_training_set_of_a_run_can_be_found_again(train: Train, tmp_path: Path, story: str) -> None:
    corpus = corpus_of(tmp_path / "corpus", story)
    train("data=shards", f"data.path='{corpus}'", "data.batch_size=16", "trainer.max_steps=1", "logger=none", "callbacks=minimal")
    content = checkpoint(tmp_path / "run")
    found = find_training_tokens(content, BYTE)
    assert found is not None
    assert found.read(0, 20).tolist() == list(story.encode())[:20]
    corpus_of(corpus, story + "!")
    assert find_training_tokens(content, BYTE) is None
