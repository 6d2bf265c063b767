"""Texts, corpora and vocabularies that cannot be read or made: each has a message that says what is wrong and what helps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pretrain.commands.tokenizer import tokenizer_command
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import cluster
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.texts.inputs import check_unchanged, stat_input_file
from gpt_pretrain.texts.records import csv_rows
from gpt_pretrain.texts.text import find_text_files
from gpt_pretrain.tokenizers import bpe_training
from gpt_pretrain.tokenizers.bpe_training import train_bpe_sizes
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.formats.sentencepiece_model import sentencepiece_fields
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer
from tests.helpers import corpora

ENCODING: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}}


def refused(path: Path, **settings: Any) -> str:
    """Return the message with which an input of a corpus is refused."""
    with pytest.raises(UserError) as caught:
        corpora.prepare(path, out=path.parent / "out", **({"max_rejected": 0.0, "max_failed_files": 0} | settings))
    return str(caught.value)


def test_archives_within_archives_have_a_limit(tmp_path: Path) -> None:
    content = b"some text"
    for _ in range(8):
        content = gzip.compress(content)
    (tmp_path / "a.gz").write_bytes(content)
    assert "damaged file (its archives are nested more than 6 levels deep)" in refused(tmp_path / "a.gz")


def test_a_text_that_is_given_twice_is_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "text": "two"}\n')
    assert "cannot be used (ambiguous record: 1)" in refused(tmp_path / "a.jsonl")


def test_a_damaged_part_of_a_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"number {n}" for n in range(5000)]}), path, compression="gzip", **ENCODING)
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    content[start + 2000 : start + 2200] = b"\xff" * 200
    path.write_bytes(content)
    assert "damaged file (a part of it cannot be decompressed: " in refused(path)


def test_a_line_without_end_in_a_table_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "LONGEST_RECORD", 1000)
    (tmp_path / "a.csv").write_text("id,text\n1," + "word " * 500)
    assert "damaged file (a line is longer than 1,000 bytes)" in refused(tmp_path / "a.csv")


def test_a_file_that_has_gone_since_the_start_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    before = stat_input_file(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt has disappeared since this command started\. Start again"):
        check_unchanged([before])


def test_several_files_are_given_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("some text")
    with pytest.raises(UserError, match=r"matches no file\. Several files are given as a folder or as a quoted glob; -m trains"):
        find_text_files("a.txt,b.txt")


@pytest.mark.parametrize("damage", ["shorter", "count"])
def test_a_damaged_unfinished_corpus_is_named(tmp_path: Path, damage: str) -> None:
    inputs = corpora.write_short_inputs(tmp_path)
    corpora.interrupt_before_shards(inputs, tmp_path / "out")
    (journal,) = (tmp_path / "out").rglob("journal.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    if damage == "shorter":
        (journal.parent / Path(lines[0]["piece"]["path"]).name).write_bytes(b"")
    else:
        lines[0]["piece"]["tokens"] = 1.5
        journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(UserError) as caught:
        corpora.prepare(*inputs, out=tmp_path / "out", **corpora.SHORT)
    assert "is damaged: " in str(caught.value)
    assert "to start over" in str(caught.value) or "Start over with overwrite=true." in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "executor", "message"),
    [
        ("datatrove", "local", r'executor=local needs the package datatrove\. Run: pip install "gpt-pretrain\[scale\]"$'),
        ("ray", "ray", r"executor=ray needs the package ray\. Run: pip install ray$"),
        ("sbatch", "slurm", r"executor=slurm: this machine has no sbatch\. Run the command where it is installed, such as on"),
    ],
)
def test_what_a_cluster_needs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, executor: str, message: str
) -> None:
    if missing != "datatrove":
        pytest.importorskip("datatrove", reason="the extra scale is not installed")
    (tmp_path / "a.txt").write_text("some text")
    find = cluster.importlib.util.find_spec
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = {"slurm_partition": "any"} if executor == "slurm" else {}
    with pytest.raises(UserError, match=message):
        corpora.prepare(tmp_path / "a.txt", out=tmp_path / "out", executor=executor, **slurm)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("kill -9 $$", "The training of the vocabulary was killed, probably because memory ran out. Give it less text."),
        ("echo no room >&2; exit 3", "The vocabulary could not be trained: no room."),
        ("exit 3", "The vocabulary could not be trained: exit code 3."),
    ],
)
def test_a_vocabulary_that_was_not_trained_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(bpe_training.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError) as caught:
        train_bpe_sizes(["some text"], [300])
    assert str(caught.value) == message


def test_a_vocabulary_in_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(UserError, match=r"out=\. is the current folder\. A vocabulary needs a folder of its own\."):
        tokenizer_command(["out=.", "a.txt"])


def test_the_name_of_a_stored_vocabulary_is_no_place_of_it() -> None:
    with pytest.raises(UserError, match=r"tokenizer=bpe@0123456789ab: this vocabulary is stored in a checkpoint, a corpus or"):
        build_tokenizer("bpe@0123456789ab")


UNIGRAM = {"type": "Unigram", "vocab": [["a", 0.0], ["b", 0.0]], "unk_id": 0}


def test_an_added_token_that_cannot_have_its_id_is_named(tmp_path: Path) -> None:
    added = {"id": 3, "content": "<x>", "special": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": UNIGRAM, "added_tokens": [added]}))
    with pytest.raises(UserError, match=r"its added token '<x>' cannot have the id 3\."):
        build_tokenizer(str(tmp_path))


def test_an_end_of_text_that_is_no_token_is_named() -> None:
    with pytest.raises(DamagedFileError, match=r"its end of text, '<end>', is not in its vocabulary"):
        VocabularyTokenizer("x", {"version": "1.0", "model": UNIGRAM}, "<end>")


def field(number: int, content: bytes) -> bytes:
    """Return a field of a protocol buffer with bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it has 0 tokens, but must have 1 to 4,000,000, none of them very long"),
        (field(1, field(1, b"a")) * 2, "two of its tokens are the same"),
        (field(1, field(1, b"\xff")), "one of its tokens is not UTF-8"),
        (field(1, field(1, b"")), "its token '' is empty, too long or without a valid score"),
        (field(1, field(1, b"a")) + field(2, field(3, b"x")), "its settings have the wrong types"),
    ],
    ids=["empty", "twice", "encoding", "token", "settings"],
)
def test_a_damaged_model_of_sentencepiece_is_named(content: bytes, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        sentencepiece_fields(content)


@pytest.mark.parametrize("ending", [".tiktoken", "-vocab.json"])
def test_one_of_several_vocabularies_in_a_folder_must_be_named(tmp_path: Path, ending: str) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}{ending}").write_text("{}")
    with pytest.raises(UserError) as caught:
        build_tokenizer(str(tmp_path))
    assert str(caught.value).endswith(
        f"this folder has several vocabularies: one{ending}, two{ending}. "
        f"Name one of them, such as tokenizer={tmp_path}/one{ending}"
    )
