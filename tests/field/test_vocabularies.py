"""Anybody's vocabulary is read from every kind of file, or refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import Tokenizer, decode, fingerprint
from gpt_pretrain.tokenizers.build import StoredTokenizer, build_tokenizer, restore_tokenizer
from gpt_pretrain.tokenizers.fitting import fit_to_rows, with_end_of_text
from gpt_pretrain.tokenizers.formats.ranks import CL100K_PATTERN
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer, gpt2_merges, gpt2_vocabulary
from tests.helpers.vocabularies import KINDS, PROBES, TEXT, byte_level, rank_file

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
    with pytest.raises(UserError, match="its merge 'a  ' is not a pair of tokens"):
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
        ("tokenizer.model", b"\n\x0e\n\x05<unk>", "it is not a SentencePiece model, or is cut off"),
        ("vocab.json", b"{}", "the merges.txt that belongs to it is missing"),
        ("tokenizer.json", b"{}", "has no model with a vocabulary"),
        ("x.tiktoken", b"hello world\n", "is not a token in base64 and its number"),
        ("meta.pkl", pickle.dumps({"itos": {1: "a"}}), "has no table itos"),
        (
            "meta.pkl",
            pickle.dumps({"itos": {0: "a", 1: "b"}, "stoi": {"a": 1, "b": 0}}),
            "its stoi gives 'a' the id 1, but by its itos that is 'b'",
        ),
        (
            "meta.pkl",
            pickle.dumps({"itos": ["a"], "stoi": {"a": 0, "b": 1}}),
            "its stoi gives 'b' the id 1, which its itos lacks",
        ),
        ("merges.txt", b"a b\n", "is a text file, not a file of a tokenizer"),
        (
            "vocab.txt",
            "của 1234\nvà 900\nhọc@@ 12\n".encode(),
            "its lines are words with their counts, as in a dictionary of fairseq",
        ),
        ("tokenizer_config.json", b"{}", "says how a vocabulary is used, but does not hold one. Give its folder: tokenizer="),
        ("config.json", b"{}", "says how a vocabulary is used, but does not hold one"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused_for_what_it_is(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        build_tokenizer(str(tmp_path / name))


@pytest.mark.parametrize("name", ["byte", "gpt2"])
def test_a_run_without_files_of_a_vocabulary_names_its_tokenizer(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").write_text(f"tokenizer:\n  name: {name}\n")
    assert build_tokenizer(tmp_path).name == name


@pytest.mark.parametrize("content", ["tokenizer: byte\n", "tokenizer:\n  name: ..\n", "tokenizer:\n  name: [a]\n", "{", "a: 1\n"])
def test_settings_that_name_no_tokenizer_are_no_vocabulary(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match="this folder has no vocabulary"):
        build_tokenizer(tmp_path)


def test_a_name_that_is_nothing_is_refused_with_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean cl100k_base\? Choose byte, .*a folder or file with a vocabulary"):
        build_tokenizer("cl100k")
    with pytest.raises(UserError, match="this folder has no vocabulary"):
        build_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match=r"tokenizer= is empty\. Give a name such as gpt2"):
        build_tokenizer("")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("GPT2", "gpt2"),
        ("gpt-2", "gpt2"),
        ("gpt2-medium", "gpt2"),
        ("gpt-4o", "o200k_base"),
        ("Cl100k", "cl100k_base"),
        ("gtp2", "gpt2"),
        ("bpee", "bpe"),
    ],
)
def test_a_near_name_is_named(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"tokenizer={typed}: there is no such tokenizer\. Did you mean {meant}\?"):
        build_tokenizer(typed)


def test_a_character_without_a_token_is_named_and_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({f"wort{number}": number for number in range(50)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="has no token for 'D'"):
        build_tokenizer(str(tmp_path)).encode("Der Sinn")
