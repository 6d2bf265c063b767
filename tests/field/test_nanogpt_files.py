"""nanoGPT's own data and checkpoints are read with their own tokens."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.export.tokenizer_files import write_tokenizer
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.shards.corpus import split_corpus
from gpt_pretrain.data.shards.formats import open_corpus
from gpt_pretrain.data.token_cache import tokenize_text
from gpt_pretrain.errors import UserError
from gpt_pretrain.texts.text import Text
from gpt_pretrain.tokenizers.base import decode
from gpt_pretrain.tokenizers.characters import CharacterTokenizer
from gpt_pretrain.tokenizers.formats.nanogpt_meta import read_meta
from gpt_pretrain.tokenizers.splitting import encode_prompt
from tests.helpers import corpora
from tests.helpers.other_models import to_nanogpt

Script = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = [
    *("model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16", "data.batch_size=4"),
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=2", "callbacks=minimal", "logger=csv"),
]
CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def save_nanogpt(folder: Path, *, dataset: str = "shakespeare_char") -> Path:
    """Save a checkpoint of nanoGPT whose tokens are 65 characters."""
    torch.manual_seed(0)
    size = len(CHARACTERS)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0)
    )
    arguments = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32, "bias": True, "vocab_size": size, "dropout": 0.0}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model": to_nanogpt(model.state_dict()), "model_args": arguments, "config": {"dataset": dataset}}
    torch.save(content, folder / "ckpt.pt")
    return folder / "ckpt.pt"


def save_meta(folder: Path, meta: dict[str, Any], n_ids: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    generator = np.random.default_rng(0)
    for part, count in (("train", 2000), ("val", 400)):
        generator.integers(0, n_ids, count).astype("<u2").tofile(folder / f"{part}.bin")
    return folder


def character_meta() -> dict[str, Any]:
    return {"vocab_size": len(CHARACTERS), "itos": dict(enumerate(CHARACTERS)), "stoi": {c: i for i, c in enumerate(CHARACTERS)}}


@pytest.mark.parametrize("place", ["out/data", "out", "data/shakespeare_char", "out/data/shakespeare_char"])
def test_a_character_checkpoint_finds_its_alphabet(tmp_path: Path, place: str) -> None:
    path = save_nanogpt(tmp_path / "out")
    save_meta(tmp_path / place, character_meta(), len(CHARACTERS))
    tokenizer = open_weights(path).build_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.eos_id, decode(tokenizer, tokenizer.encode("First"))) == (65, None, "First")


def test_a_character_checkpoint_alone_takes_a_typed_alphabet(script: Script, tmp_path: Path) -> None:
    save_nanogpt(tmp_path / "out")
    save_meta(tmp_path / "elsewhere", character_meta(), len(CHARACTERS))
    alone = script("generate.py", "pretrained=out/ckpt.pt", "prompt=First")
    assert alone.returncode == 2
    assert "does not name a tokenizer, and no known tokenizer has 65 tokens" in alone.stderr
    for typed in ("elsewhere/meta.pkl", "elsewhere", "characters:" + quote(CHARACTERS, safe="")):
        done = script("generate.py", "pretrained=out/ckpt.pt", "prompt=First", f"tokenizer={typed}", "sampler.max_new_tokens=5")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("First")


def test_training_goes_on_from_a_character_checkpoint(script: Script, tmp_path: Path) -> None:
    save_nanogpt(tmp_path / "char")
    save_meta(tmp_path / "char" / "data", character_meta(), len(CHARACTERS))
    start = ["init_from=char/ckpt.pt", "data=shards", "data.path=char/data", *TINY[5:], "model.context_length=16"]
    done = script("train.py", *start, "start_context=First", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "vocabulary 65 " in done.stdout + done.stderr


def test_training_goes_on_from_a_character_checkpoint_on_several_files(script: Script, tmp_path: Path) -> None:
    save_nanogpt(tmp_path / "char")
    save_meta(tmp_path / "char" / "data", character_meta(), len(CHARACTERS))
    (tmp_path / "plays").mkdir()
    (tmp_path / "plays" / "1.txt").write_text("First Citizen\n" * 60)
    (tmp_path / "plays" / "2.txt").write_text("Second Citizen\n<|endoftext|>Third Citizen\n" * 60)
    done = script("train.py", "init_from=char/ckpt.pt", "data.path=plays", *TINY[5:], "model.context_length=16", "plan=true")
    assert done.returncode == 0, done.stderr
    assert "has 60 <|endoftext|> markers, but the vocabulary" in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("number", range(4))
def test_every_vocabulary_without_an_end_of_text_has_the_same_rule(tmp_path: Path, number: int) -> None:
    meta, part = [
        ({"itos": dict(enumerate("\nACGT"))}, "GATTACA"),
        ({"itos": dict(enumerate("\n<|endoftx>"))}, "one\n"),
        ({"itos": ["up", "down"]}, "up down"),
        ({"vocab_size": 9}, "1 8 3"),
    ][number]
    tokenizer = read_meta(pickle.dumps(meta), end_of_text=False)
    (tmp_path / "a.txt").write_text(f"{part}<|endoftext|>{part}")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": part}))
    text = Text((tmp_path / "a.txt", tmp_path / "b.jsonl"))
    ids = tokenizer.encode(part) * 3
    assert tokenize_text(text, tokenizer, train_ratio=1.0, cache_dir=tmp_path / "cache").train.read().tolist() == ids
    assert encode_prompt(f"{part}<|endoftext|>{part}<|endoftext|>{part}", tokenizer) == ids


def test_a_corpus_of_a_table_has_nothing_between_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_meta(tmp_path / "moves", {"itos": ["up", "down"]}, 2)
    (tmp_path / "a.txt").write_text("up down<|endoftext|>up")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "down down<|endoftext|>up"}))
    sources = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    corpora.prepare(*sources, out=tmp_path / "out", tokenizer=str(tmp_path / "moves"), val_fraction=0.0, report=True)
    assert corpora.tokens(tmp_path / "out", "train").tolist() == [0, 1, 0, 1, 1, 0]
    shown = capsys.readouterr().out
    assert "train  4 documents, 6 tokens" in shown and "Tokens per document: 1 to 2, 2 on average" in shown


METAS: list[tuple[dict[str, Any], int, str]] = [
    ({"vocab_size": 1500}, 1500, "12 7"),
    ({"vocab_size": 3, "itos": {0: "up", 1: "down", 2: "left"}}, 3, "up left"),
    ({"itos": ["up", "down"]}, 2, "up"),
    ({"stoi": {"do": 0, "re": 1, "mi": 2}}, 3, "mi re"),
    ({"vocab_size": 5, "itos": dict(enumerate("\nACGT"))}, 5, "GATTACA"),
    ({"vocab_size": np.int64(5), "itos": dict(enumerate("\nACGT"))}, 5, "GATTACA"),
    ({"vocab_size": np.int32(2), "itos": {np.int64(0): np.str_("a"), np.int64(1): np.str_("b")}}, 2, "ab"),
    ({"vocab_size": 3, "itos": {0: " the", 1: " cat", 2: "."}}, 3, " the cat."),
]


@pytest.mark.parametrize(("meta", "n_ids", "prompt"), METAS)
def test_nanogpt_s_own_tokens_are_read(tmp_path: Path, meta: dict[str, Any], n_ids: int, prompt: str) -> None:
    corpus = open_corpus(LocalFiles(save_meta(tmp_path / "own", meta, n_ids)))
    tokenizer = corpus.build_tokenizer()
    assert split_corpus(corpus, tokenizer, train_ratio=0.9).train.count == 2000
    assert tokenizer.vocab_size - (tokenizer.eos_id is not None) == n_ids
    assert decode(tokenizer, tokenizer.encode(prompt)).strip() == prompt.strip()


@pytest.mark.parametrize(("meta", "n_ids", "prompt"), [METAS[0], METAS[1], METAS[4]])
def test_nanogpt_s_own_tokens_are_trained_on(
    script: Script, tmp_path: Path, meta: dict[str, Any], n_ids: int, prompt: str
) -> None:
    save_meta(tmp_path / "own", meta, n_ids)
    done = script("train.py", *TINY, "data=shards", "data.path=own", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "own")
    done = script("generate.py", "checkpoint=run", f"prompt={prompt}", "sampler.max_new_tokens=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(prompt)


@pytest.mark.parametrize(("dtype", "size"), [("<u4", "four"), ("<i8", "eight")])
def test_longer_ids_are_still_recognized(tmp_path: Path, dtype: str, size: str) -> None:
    folder = save_meta(tmp_path / "own", {"vocab_size": 300}, 300)
    np.random.default_rng(0).integers(0, 300, 2000).astype(dtype).tofile(folder / "train.bin")
    corpus = open_corpus(LocalFiles(folder))
    with pytest.raises(UserError, match=f"seem to have {size} bytes"):
        split_corpus(corpus, corpus.build_tokenizer(), train_ratio=0.9)


def test_a_start_context_that_the_alphabet_lacks_is_refused_if_typed(script: Script, tmp_path: Path) -> None:
    save_meta(tmp_path / "dna", {"itos": dict(enumerate("\nACGT"))}, 5)
    done = script("train.py", *TINY, "data=shards", "data.path=dna", "start_context=hello")
    assert done.returncode == 2
    assert (
        r"start_context=hello: The character 'h' is not among the 5 characters of the model's alphabet: '\nACGT'." in done.stderr
    )


# Exported


@pytest.mark.parametrize("end_of_text", [False, True])
@pytest.mark.parametrize("alphabet", ["\n !abc.zé🙂'\\\"<|>ω", "ab"])
def test_an_alphabet_is_exported_with_the_same_ids(tmp_path: Path, alphabet: str, end_of_text: bool) -> None:
    ours = CharacterTokenizer(alphabet, end_of_text=end_of_text)
    write_tokenizer(ours, tmp_path, context_length=64)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = alphabet + alphabet[::-1] + "<|endoftext|>" * end_of_text
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode(theirs.encode(text)) == text
    assert (len(theirs), theirs.eos_token_id) == (ours.vocab_size, ours.eos_id)
    with pytest.raises(Exception, match="UNK"):
        theirs.encode("X")


def test_a_character_checkpoint_is_exported(tmp_path: Path) -> None:
    path = save_nanogpt(tmp_path / "out")
    save_meta(tmp_path / "out", character_meta(), len(CHARACTERS))
    export(open_weights(path), tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").encode("First") == open_weights(path).build_tokenizer().encode(
        "First"
    )
    assert open_weights(tmp_path / "exported").build_tokenizer().name == open_weights(path).build_tokenizer().name
