"""Anybody's vocabulary: read from every kind of file, used with its weights, kept with what was made with it."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import huggingface_hub
import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gpt_pretrain.checkpoints.huggingface import export
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.config.checkpoint_settings import admit_settings
from gpt_pretrain.data.corpus import split_corpus
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.formats import open_corpus
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import Tokenizer, decode, fingerprint, missing_ids
from gpt_pretrain.tokenizers.build import StoredTokenizer, build_tokenizer, restore_tokenizer
from gpt_pretrain.tokenizers.fitting import fit_to_rows, with_end_of_text
from gpt_pretrain.tokenizers.ranks import CL100K_PATTERN
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer, gpt2_merges, gpt2_vocabulary
from tests.helpers.hub_server import Hub
from tests.helpers.other_models import to_nanogpt
from tests.helpers.vocabularies import (
    PROBES,
    TEXT,
    byte_level,
    gpt2_files,
    llama_like,
    rank_file,
    unigram,
    word_pieces,
    words,
)

Script = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = [
    *("model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16", "data.batch_size=4"),
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=2", "callbacks=minimal", "logger=csv"),
]
KINDS = {"byte_level": byte_level, "unigram": unigram, "llama_like": llama_like, "word_pieces": word_pieces, "words": words}
CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder with a vocabulary of each kind."""
    folder = tmp_path_factory.mktemp("vocabularies")
    made = {name: make(folder / name) for name, make in KINDS.items()}
    return made | {"gpt2_files": gpt2_files(folder / "gpt2_files", added={"<|user|>": 401, "<pad>": 402})}


def save_model(folder: Path, vocab_size: int, *, favorite: int | None = None, unused_from: int | None = None) -> Path:
    """Save a GPT-2 of transformers, which always prefers one token, or whose logits are lowest for all used ones."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocab_size, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[:] = -1.0 + 0.01 * torch.randn(vocab_size, 16)
        if favorite is not None:
            model.transformer.wte.weight[favorite] = 1.0
        if unused_from is not None:
            model.transformer.wte.weight[unused_from:] = 0.0
    model.save_pretrained(folder)
    return folder


def copy_vocabulary(source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.name != "config.json":
            shutil.copy(file, target)
    return target


# Reading


@pytest.mark.parametrize("kind", [*KINDS, "gpt2_files"])
def test_the_ids_are_those_of_transformers(kind: str, vocabularies: dict[str, Path]) -> None:
    ours, theirs = build_tokenizer(str(vocabularies[kind])), AutoTokenizer.from_pretrained(vocabularies[kind])
    for text in [*PROBES, *TEXT[:2], "<|user|>Hi<pad> there"]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert ours.encode_ordinary(text).tolist() == ours.encode(text)
    end = theirs.eos_token
    if end is not None:
        assert ours.encode(f"One.{end}Two") == theirs.encode(f"One.{end}Two", add_special_tokens=False)
        assert ours.eos_id == theirs.eos_token_id
        assert ours.eos_id in ours.encode("One<|endoftext|>Two")


@settings(max_examples=60)
@given(text=st.text(max_size=40))
def test_any_text_has_the_ids_of_transformers(vocabularies: dict[str, Path], text: str) -> None:
    ours, theirs = _pair(vocabularies["byte_level"])
    assert ours.encode_ordinary(text).tolist() == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert decode(ours, ours.encode(text)) == text


_pairs: dict[Path, tuple[Tokenizer, Any]] = {}


def _pair(folder: Path) -> tuple[Tokenizer, Any]:
    if folder not in _pairs:
        _pairs[folder] = build_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    return _pairs[folder]


@pytest.mark.parametrize("kind", ["byte_level", "gpt2_files", "llama_like"])
def test_every_byte_comes_back(kind: str, vocabularies: dict[str, Path]) -> None:
    tokenizer = build_tokenizer(str(vocabularies[kind]))
    text = "".join(map(chr, range(1, 0x250))) + "\u2028\ufeff\U0010ffff"
    assert decode(tokenizer, tokenizer.encode(text)).removeprefix(" ") == text


@pytest.mark.parametrize(("kind", "text"), [("unigram", "die Freude"), ("word_pieces", "die freude"), ("words", "Der Sinn")])
def test_words_come_back_with_blanks_between_them(kind: str, text: str, vocabularies: dict[str, Path]) -> None:
    tokenizer = build_tokenizer(str(vocabularies[kind]))
    assert decode(tokenizer, tokenizer.encode(text)).strip() == text


def test_a_file_of_ranks_has_the_ids_of_tiktoken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gpt2 = build_tokenizer("gpt2")
    assert isinstance(gpt2, TiktokenTokenizer)
    ranks = {token: rank for token, rank in gpt2.ranks.items() if rank < 5000}
    theirs = tiktoken.Encoding("x", pat_str=CL100K_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 5000})
    ours = build_tokenizer(str(rank_file(tmp_path / "own.tiktoken", ranks)))
    for text in [*PROBES, *TEXT[:2]]:
        assert ours.encode(text) == theirs.encode(text)
    assert "states neither how it splits a text into words" in caplog.text
    assert (ours.vocab_size, ours.eos_id) == (5001, 5000)


def test_gpt2_s_own_files_are_recognized(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(gpt2_vocabulary()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, gpt2_merges())) + "\n")
    assert build_tokenizer(str(tmp_path)).name == "gpt2"
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": 50257}))
    tokenizer = build_tokenizer(str(tmp_path))
    assert (tokenizer.vocab_size, tokenizer.encode("[PAD]")) == (50258, [50257])
    assert fit_to_rows(tokenizer, 50257, origin="a model").name == "gpt2"


def test_the_same_tokenizer_has_the_same_name_from_all_of_its_files(vocabularies: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = build_tokenizer(str(vocabularies["gpt2_files"]))
    AutoTokenizer.from_pretrained(vocabularies["gpt2_files"]).save_pretrained(tmp_path / "saved")
    again = build_tokenizer(str(tmp_path / "saved"))
    assert again.name.partition("@")[2] == tokenizer.name.partition("@")[2]
    assert fingerprint(again) == fingerprint(tokenizer)
    assert build_tokenizer(str(tmp_path / "saved" / "tokenizer.json")).name == again.name


def configure(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"tokenizer_class": "GPT2Tokenizer"}
    path.write_text(json.dumps(config | changes), encoding="utf-8")
    return folder


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_a_text_begins_with_a_blank_where_the_configuration_says_so(
    tmp_path: Path, vocabularies: dict[str, Path], saved: bool, add_prefix_space: bool
) -> None:
    folder = Path(shutil.copytree(vocabularies["gpt2_files"], tmp_path / "x"))
    if saved:  # as tokenizer.json
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
        folder = tmp_path / "saved"
    configure(folder, add_prefix_space=add_prefix_space)
    ours, theirs = build_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert ours.encode("Der Sinn") == theirs.encode("Der Sinn")


def test_special_tokens_that_only_the_configuration_names_follow_the_vocabulary(tmp_path: Path) -> None:
    folder = configure(byte_level(tmp_path / "x", specials=[]), pad_token="<pad>", eos_token="</s>", bos_token="<s>")
    configure(folder, additional_special_tokens=["<a>", "<b>"])
    ours, theirs = build_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    text = "<s>a</s>b<pad><a>c<b>"
    assert ours.encode(text) == theirs.encode(text)
    assert (ours.eos_id, ours.vocab_size) == (theirs.eos_token_id, len(theirs))


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("mine-vocab.json", "mine-merges.txt")])
def test_the_files_of_a_vocabulary_have_several_names(
    tmp_path: Path, vocabularies: dict[str, Path], names: tuple[str, str]
) -> None:
    expected = build_tokenizer(str(vocabularies["gpt2_files"] / "vocab.json")).encode("Der Sinn")
    for source, target in zip(("vocab.json", "merges.txt"), names, strict=True):
        shutil.copy(vocabularies["gpt2_files"] / source, tmp_path / target)
    for place in (tmp_path, *(tmp_path / name for name in names)):
        assert build_tokenizer(str(place)).encode("Der Sinn") == expected


def test_tokens_with_blanks_keep_their_merges(tmp_path: Path) -> None:
    fields = {"model": {"type": "BPE", "vocab": {"a": 0, " ": 1, "a ": 2, " a": 3}, "merges": [["a", " "], [" ", "a"]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    assert build_tokenizer(str(tmp_path)).encode("a a") == [2, 0]
    fields["model"]["merges"] = ["a  "]  # an old file, which cannot say it
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="the tokenizers library cannot use it"):
        build_tokenizer(str(tmp_path))


@pytest.mark.parametrize("kind", [*KINDS, "gpt2_files"])
def test_a_tokenizer_is_restored_from_its_definition_alone(kind: str, vocabularies: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vocabularies[kind], tmp_path / kind))
    tokenizer = build_tokenizer(str(folder))
    shutil.rmtree(folder)
    again = restore_tokenizer(StoredTokenizer.of(tokenizer), origin="x.ckpt")
    assert (again.name, fingerprint(again)) == (tokenizer.name, fingerprint(tokenizer))
    assert again.encode(PROBES[0]) == tokenizer.encode(PROBES[0])


def test_a_vocabulary_without_an_end_of_text_gets_one_for_new_weights(tmp_path: Path) -> None:
    plain = build_tokenizer(str(byte_level(tmp_path / "plain", specials=[])))
    assert plain.eos_id is None
    ended = with_end_of_text(plain)
    assert (ended.eos_id, ended.vocab_size) == (plain.vocab_size, plain.vocab_size + 1)
    assert ended.encode("a<|endoftext|>b") == [*plain.encode("a"), plain.vocab_size, *plain.encode("b")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", b"\n\x0e\n\x05<unk>", "is a SentencePiece model, which is not read. Convert it once"),
        ("vocab.json", b"{}", "the merges.txt that belongs to it is missing"),
        ("tokenizer.json", b"{}", "has no model with a vocabulary"),
        ("x.tiktoken", b"hello world\n", "is not a token in base64 and its number"),
        ("meta.pkl", pickle.dumps({"itos": {1: "a"}}), "has no table itos"),
        ("merges.txt", b"a b\n", "is not a tokenizer's file"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused_for_what_it_is(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        build_tokenizer(str(tmp_path / name))


def test_a_name_that_is_nothing_is_refused_with_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean cl100k_base\? Choose byte, .*a folder or file with a vocabulary"):
        build_tokenizer("cl100k")
    with pytest.raises(UserError, match="this folder has no vocabulary"):
        build_tokenizer(str(tmp_path))


def test_a_character_without_a_token_is_named_and_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({f"wort{number}": number for number in range(50)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="has no token for 'D'"):
        build_tokenizer(str(tmp_path)).encode("Der Sinn")


# Files that mean harm


def fields(**changes: Any) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    return {"version": "1.0", "model": model, **changes}


def split_by(pattern: str) -> dict[str, Any]:
    return fields(pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})


def replace_all(*contents: str) -> dict[str, Any]:
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": content} for content in contents]
    return fields(normalizer={"type": "Sequence", "normalizers": steps})


HOSTILE = {
    "deep": ('{"model":' * 50_000, "cannot be read as JSON|nested"),
    "deep parts": (
        json.dumps(fields(decoder=None))[:-1] + ', "x": ' + "[" * 5000 + "]" * 5000 + "}",
        "nested more than|cannot be read as JSON",
    ),
    "huge id": (json.dumps(fields(model={"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []})), "has the id 4000000000"),
    "negative id": (json.dumps(fields(added_tokens=[{"id": -1, "content": "x"}])), "has the id -1"),
    "equal ids": (json.dumps(fields(added_tokens=[{"id": 0, "content": "x"}])), "the same id"),
    "long number": (json.dumps(fields())[:-1] + ', "x": ' + "9" * 5000 + "}", "digits"),
    "many values": ('{"a":[' + "[]," * 4_100_000 + "[]]}", "more than 4,000,000 values"),
    "nested repetition": (json.dumps(split_by("(a+)+x")), "holds repetitions or alternatives"),
    "repeated alternatives": (json.dumps(split_by("(?:a|a)*x")), "holds repetitions or alternatives"),
    "optional parts": (json.dumps(split_by("a?" * 40 + "a" * 40)), "too many repetitions"),
    "back reference": (json.dumps(split_by(r"(a*)\1+x")), "may take unlimited time"),
    "recursion": (json.dumps(split_by(r"(?<n>a\g<n>*)*")), "may take unlimited time"),
    "growing text": (json.dumps(replace_all(*["aa"] * 40)), "times as long"),
    "long replacement": (json.dumps(replace_all("a" * 100_000)), "times as long"),
    "charsmap": (
        json.dumps(
            fields(
                normalizer={
                    "type": "Precompiled",
                    "precompiled_charsmap": base64.b64encode(b"\4\0\0\0abcd" + b"x" * 100_000).decode(),
                }
            )
        ),
        "not a table of replacements",
    ),
    "long words": (
        json.dumps(fields(model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 10**9})),
        "max_input_chars_per_word",
    ),
    "unknown part": (json.dumps(fields(decoder={"type": "os.system"})), "the tokenizers library cannot use it"),
    "half a pair": ('{"model":{"type":"BPE","vocab":{"\\ud800":0},"merges":[]}}', "surrogate|cannot"),
    "merge of nothing": (json.dumps(fields(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]})), "cannot use it"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_json_is_refused_soon(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    (tmp_path / "tokenizer.json").write_text(content)
    start = time.perf_counter()
    with pytest.raises(UserError, match=message):
        build_tokenizer(str(tmp_path))
    assert time.perf_counter() - start < 5


def test_a_pattern_that_backtracks_ends_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(split_by("a*a*a*a*[^a]")))
    start = time.perf_counter()
    with pytest.raises(UserError, match="fails on a text"):
        build_tokenizer(str(tmp_path)).encode("a" * 3000)
    assert time.perf_counter() - start < 20


def test_a_meta_pkl_that_would_run_code_runs_nothing(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'marker')!r}, 'w')",)

    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": Harm()}))
    with pytest.raises(UserError, match=r"it needs builtins\.eval"):
        build_tokenizer(str(tmp_path / "meta.pkl"))
    assert not (tmp_path / "marker").exists()


def test_a_checkpoint_never_opens_a_place_for_its_tokenizer(vocabularies: dict[str, Path]) -> None:
    for name in (str(vocabularies["byte_level"]), "someone/model", "byte_level@0123456789ab"):
        with pytest.raises(UserError, match="but does not contain it"):
            restore_tokenizer(StoredTokenizer(name), origin="x.ckpt")
    stored = StoredTokenizer.of(build_tokenizer(str(vocabularies["byte_level"])))
    with pytest.raises(UserError, match="is damaged: its tokenizer is"):
        restore_tokenizer(StoredTokenizer("byte_level@0123456789ab", stored.definition), origin="x.ckpt")


# With weights


def test_weights_bring_their_own_vocabulary(tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    folder = copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 400))
    tokenizer = open_weights(folder).build_tokenizer()
    assert tokenizer.name.startswith("model@")
    assert tokenizer.encode("Der Sinn") == build_tokenizer(str(vocabularies["byte_level"])).encode("Der Sinn")


def test_added_tokens_are_read_and_shown(script: Script, tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    copy_vocabulary(vocabularies["gpt2_files"], save_model(tmp_path / "model", 403, favorite=401))
    done = script("generate.py", "pretrained=model", "prompt=<|user|>Hi", "sampler.max_new_tokens=3")
    assert (done.returncode, done.stdout) == (0, "<|user|>Hi<|user|><|user|><|user|>\n")


@pytest.mark.parametrize("temperature", [0, 1])
def test_rows_without_a_token_are_never_generated(
    script: Script, tmp_path: Path, vocabularies: dict[str, Path], temperature: int
) -> None:
    copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 512, unused_from=400))
    more = ("sampler.max_new_tokens=8", f"sampler.temperature={temperature}", "sampler.top_k=null")
    done = script("generate.py", "pretrained=model", "prompt=Hi", *more)
    assert done.returncode == 0
    assert len(done.stdout.strip()) > len("Hi")
    done = script("train.py", "init_from=model", *TINY[5:], "model.context_length=16", "callbacks=default", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "run" / "samples.txt").read_text(encoding="utf-8").split("Every effort moves you")[1].strip()) > 20


def test_unused_ids_within_a_vocabulary_are_rows_without_a_token() -> None:
    tokenizer = build_tokenizer("byte")
    assert missing_ids(tokenizer, 260) == [257, 258, 259]


def test_any_number_of_padded_rows_is_loaded(tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    bare = save_model(tmp_path / "bare", 3000)
    with pytest.raises(UserError, match=r"does not name a tokenizer, and no known tokenizer has 3,000 tokens"):
        open_weights(bare).build_tokenizer()
    typed = open_weights(bare).build_tokenizer(str(vocabularies["byte_level"]))
    assert typed.vocab_size == 400
    with pytest.raises(UserError, match=r"has a vocabulary of 3,000 tokens, but the tokenizer gpt2 has 50,257"):
        open_weights(bare).build_tokenizer("gpt2")


def test_a_size_alone_is_a_guess_that_is_said_and_not_exported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_model(tmp_path / "german", 50265)
    weights = open_weights(folder)
    assert weights.build_tokenizer().name == "gpt2"
    assert "does not name a tokenizer. gpt2 is used, because the vocabulary has 50,265 tokens" in caplog.text
    export(weights, tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert "does not name a tokenizer, so the export has none" in caplog.text


def test_training_goes_on_with_the_vocabulary_of_the_weights(
    script: Script, tmp_path: Path, vocabularies: dict[str, Path]
) -> None:
    copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 400))
    start = ["init_from=model", *TINY[5:], "model.context_length=16"]
    done = script("train.py", *start, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "vocabulary 400 (model@" in done.stdout + done.stderr
    shutil.rmtree(tmp_path / "model")
    done = script("generate.py", "checkpoint=run", "prompt=Der Sinn", "sampler.max_new_tokens=4")
    assert done.returncode == 0, done.stderr
    done = script("train.py", "resume=run", "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr


def test_another_vocabulary_than_that_of_the_weights_is_refused(
    script: Script, tmp_path: Path, vocabularies: dict[str, Path]
) -> None:
    copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 400))
    done = script("train.py", "init_from=model", *TINY[5:], "model.context_length=16", "tokenizer=byte")
    assert done.returncode == 2
    assert "has tokenizer=model@" in done.stderr
    assert "which your overrides contradict. Remove those overrides." in done.stderr


# From the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of this test, and an empty cache."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    changes = {"HF_HUB_OFFLINE": False, "ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    for name, value in (changes | {"HUGGINGFACE_CO_URL_TEMPLATE": template}).items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["byte_level", "gpt2_files", "word_pieces"])
def test_the_vocabulary_of_a_hub_s_model_is_fetched_with_it(
    hub: Hub, tmp_path: Path, vocabularies: dict[str, Path], kind: str
) -> None:
    folder = copy_vocabulary(vocabularies[kind], save_model(tmp_path / "model", 403))
    hub.files = {f"someone/german-gpt2/{file.name}": file.read_bytes() for file in folder.iterdir()}
    ours = build_tokenizer(str(vocabularies[kind]))
    tokenizer = open_weights("someone/german-gpt2").build_tokenizer()
    assert tokenizer.name == f"german-gpt2@{ours.name.partition('@')[2]}"
    assert tokenizer.encode(PROBES[0]) == ours.encode(PROBES[0])
    assert build_tokenizer("someone/german-gpt2").name == tokenizer.name


def test_a_hub_s_model_works_without_a_network_once_it_was_fetched(
    hub: Hub, tmp_path: Path, vocabularies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_vocabulary(vocabularies["gpt2_files"], save_model(tmp_path / "model", 403))
    hub.files = {f"someone/model/{file.name}": file.read_bytes() for file in folder.iterdir()}
    name = open_weights("someone/model").build_tokenizer().name
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert open_weights("someone/model").build_tokenizer().name == name


def test_gpt2_s_size_on_the_hub_is_no_proof_of_gpt2_s_vocabulary(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(tmp_path / "model", 50257)
    hub.files = {f"someone/model/{file.name}": file.read_bytes() for file in folder.iterdir()}
    assert open_weights("someone/model").build_tokenizer().name == "gpt2"
    assert "someone/model does not name a tokenizer" in caplog.text
    caplog.clear()
    hub.files = {f"openai-community/gpt2/{file.name}": file.read_bytes() for file in folder.iterdir()}
    assert open_weights("openai-community/gpt2").build_tokenizer().name == "gpt2"
    assert caplog.text == ""


# nanoGPT


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


def test_four_byte_ids_are_still_recognized(tmp_path: Path) -> None:
    folder = save_meta(tmp_path / "own", {"vocab_size": 300}, 300)
    np.random.default_rng(0).integers(0, 300, 2000).astype("<u4").tofile(folder / "train.bin")
    corpus = open_corpus(LocalFiles(folder))
    with pytest.raises(UserError, match="seem to have four bytes"):
        split_corpus(corpus, corpus.build_tokenizer(), train_ratio=0.9)


def test_a_start_context_that_the_alphabet_lacks_is_refused_if_typed(script: Script, tmp_path: Path) -> None:
    save_meta(tmp_path / "dna", {"itos": dict(enumerate("\nACGT"))}, 5)
    done = script("train.py", *TINY, "data=shards", "data.path=dna", "start_context=hello")
    assert done.returncode == 2
    assert (
        r"start_context=hello: The character 'h' is not among the 5 characters of the model's alphabet: '\nACGT'." in done.stderr
    )


# Kept with what was made with it


def test_a_run_needs_nothing_but_itself(script: Script, tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    shutil.copytree(vocabularies["byte_level"], tmp_path / "mine")
    done = script("train.py", *TINY, "tokenizer=mine", "hydra.run.dir=run", "export=true")
    assert done.returncode == 0, done.stderr
    ids = build_tokenizer(str(tmp_path / "mine")).encode(PROBES[0])
    shutil.rmtree(tmp_path / "mine")
    for folder in (tmp_path / "run", tmp_path / "run" / "huggingface"):
        assert AutoTokenizer.from_pretrained(folder).encode(PROBES[0]) == ids
    shown = [
        script("generate.py", source, "prompt=Der Sinn", "sampler.max_new_tokens=6", "precision=32-true", "device=cpu").stdout
        for source in ("checkpoint=run", "pretrained=run/huggingface")
    ]
    assert shown[0].startswith("Der Sinn")
    assert shown[0] == shown[1]
    done = script("train.py", "resume=run", "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr
    done = script("train.py", "resume=run", "trainer.max_steps=4", "tokenizer=byte")
    assert done.returncode == 2
    assert "tokenizer.name was mine@" in done.stderr


def test_a_resumed_run_takes_the_same_vocabulary_from_anywhere(
    script: Script, tmp_path: Path, vocabularies: dict[str, Path]
) -> None:
    shutil.copytree(vocabularies["byte_level"], tmp_path / "mine")
    assert script("train.py", *TINY, "tokenizer=mine", "hydra.run.dir=run").returncode == 0
    (tmp_path / "mine").rename(tmp_path / "moved")
    done = script("train.py", "resume=run", "trainer.max_steps=3", "tokenizer=moved/tokenizer.json")
    assert done.returncode == 0, done.stderr


def test_a_corpus_holds_its_vocabulary(script: Script, tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    shutil.copytree(vocabularies["byte_level"], tmp_path / "mine")
    (tmp_path / "text.txt").write_text("".join(TEXT * 5), encoding="utf-8")
    prepare = ("-m", "gpt_pretrain", "prepare", "text.txt", "out=corpus", "workers=1", "val_fraction=0", "--report")
    done = script(*prepare, "tokenizer=mine")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "mine")
    assert build_tokenizer(str(tmp_path / "corpus")).encode(PROBES[0]) == build_tokenizer(str(vocabularies["byte_level"])).encode(
        PROBES[0]
    )
    done = script("train.py", *TINY, "data=shards", "data.path=corpus", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "vocabulary 400 (mine@" in done.stdout + done.stderr
    (tmp_path / "corpus" / "tokenizer.json").unlink()
    done = script("train.py", *TINY, "data=shards", "data.path=corpus", "hydra.run.dir=run2")
    assert done.returncode == 2
    assert "but does not contain it" in done.stderr


def test_a_stranger_s_settings_name_no_place_of_a_tokenizer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name, is_taken in {"gpt2": True, "mine@0123456789ab": True, "/etc": False, "someone/model": False, "../x": False}.items():
        for own in (False, True):
            admitted = admit_settings(
                {"tokenizer": {"name": name}}, {}, is_typed=lambda _: False, own=own, origin="x.ckpt", folder=None
            )
            assert (admitted.settings == {"tokenizer": {"name": name}}) is is_taken, name
            assert bool(admitted.problems) is not is_taken
