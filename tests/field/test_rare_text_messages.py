"""Give each part of reading texts and corpora an input that it refuses, and check what its message says."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt_pretrain.commands import tokenizer
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.remote import remote_files
from gpt_pretrain.data.remote.web import _redirect_problem
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.corpus_folder import _shards
from gpt_pretrain.system import environment
from gpt_pretrain.system.json_files import check_json_values
from gpt_pretrain.system.recognition.file_kinds import FileKind
from gpt_pretrain.texts import finding
from gpt_pretrain.texts.chunks import Cursor, ReadPosition
from gpt_pretrain.texts.containers import archives
from gpt_pretrain.texts.datasets import small_tables
from gpt_pretrain.texts.datasets.guard import _OwnFiles
from gpt_pretrain.texts.datasets.limited_stream import LimitedStream
from gpt_pretrain.texts.invalid_utf8 import explain_invalid_utf8
from gpt_pretrain.texts.parquet.rows import DATA, decompress_values
from gpt_pretrain.texts.records import tables
from gpt_pretrain.texts.records.json_values import split_values
from gpt_pretrain.texts.records.record_text import record_text
from gpt_pretrain.texts.text import Text
from gpt_pretrain.tokenizers import build
from gpt_pretrain.tokenizers.build import StoredTokenizer, build_tokenizer, restore_tokenizer
from tests.helpers.refusals import Make, check_each


def utf8_of_java(_: Path) -> object:
    block = "".join("я\0" for _ in range(40)).encode().replace(b"\0", b"\xc0\x80")
    try:
        block.decode()
    except UnicodeDecodeError as error:
        return explain_invalid_utf8(block, error, 0, "a.tar:b.txt")


def broken_links(folder: Path) -> object:
    for name in "ab":
        (folder / name).symlink_to("gone")
    return finding._existing_files(folder.iterdir())


def json_without_its_end(_: Path) -> object:
    return list(
        split_values([b'{"text": "a"} {"text": '], Cursor("a.json", ReadPosition(), bytes_read=lambda: 0), is_array=False)
    )


def archive_without_text(folder: Path) -> object:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.png", b"\x89PNG\r\n\x1a\n" + bytes(99))
    return list(Text((folder / "a.zip",)).pieces())


def pipe(folder: Path) -> object:
    os.mkfifo(folder / "train.bin")
    return LocalFiles(folder).read("train.bin", 0, 2)


def manifest(**changes: Any) -> Make:
    """Return the reading of a manifest whose only part has another entry."""
    shard = {"file": "train-00000.bin", "starts": "train-00000.idx", "documents": 1, "tokens": 2}
    part = {"bytes": 1, "documents": 1, "tokens": 2, "shards": [shard]} | changes
    return lambda folder: _shards({"itemsize": changes.get("itemsize", 2), "parts": {"train": part}}, folder)


PAGE = SimpleNamespace(start=0, levels=0, compressed=20, size=9, kind=DATA, says_compressed=True)

TEXTS: dict[str, tuple[Make, str]] = {
    "refused_kind_without_advice": (
        lambda _: FileKind("sound").refusal("a.wav"),
        "a.wav is a sound, not text. Only text is read.",
    ),
    "json_of_many_values": (lambda _: check_json_values(b"[1,1,1,1,1]", max_values=3), "it holds more than 3 values"),
    "header_of_a_tar_archive": (lambda _: list(archives.read_tar([b"x" * 512])), "the header at byte 0 is damaged"),
    "fields_of_a_tar_archive": (
        lambda _: archives._parse_extended(b"6 a=b\n" * 5000),
        f"it describes a member with more than {archives.MAX_FIELDS:,} fields",
    ),
    "nuls_of_java": (utf8_of_java, "It contains NULs as Java writes them, C0 80. Leave them out"),
    "links_to_nothing": (broken_links, "Restore the files, or delete the links."),
    "json_that_is_cut_off": (json_without_its_end, "the JSON ends in the middle of a value"),
    "byte_in_a_column": (lambda _: record_text("ab\udcff", "text", is_json=False), "invalid byte 0xff at character 2"),
    "archive_without_text": (archive_without_text, "a.zip is not read: it contains no file that can be read"),
    "tokenizer_in_a_checkpoint": (
        lambda _: restore_tokenizer(StoredTokenizer("bpe@0", '{"kind": '), origin="last.ckpt"),
        "last.ckpt: its tokenizer cannot be used: ",
    ),
    "itemsize_of_a_manifest": (manifest(itemsize=3), "a token has neither two nor four bytes"),
    "count_of_a_manifest": (manifest(bytes=-1), "a count is not a whole number"),
    "sum_of_a_manifest": (manifest(documents=5), "the counts of a part are not those of its shards"),
    "pattern_of_a_dataset": (
        lambda _: _OwnFiles("name").check_pattern(print)("/etc/*", ""),
        "dataset=name: its description names /etc/*, which is not a file of the dataset itself",
    ),
    "url_of_a_dataset": (lambda _: _OwnFiles("name").check_url(print)("/etc/passwd"), "dataset=name: it names /etc/passwd,"),
    "archive_of_a_dataset": (
        lambda _: _OwnFiles("name").check_url(print)("zip://a::/etc/b.zip"),
        "one of its files is named zip://a::/etc/b.zip,",
    ),
    "protocol_of_a_dataset": (lambda _: _OwnFiles("name").check_protocol(print)("ssh"), "it asks for ssh:,"),
    "old_compression_of_a_table": (
        lambda _: list(decompress_values(io.BytesIO(bytes(20)), PAGE, SimpleNamespace(compression="LZ4"))),  # type: ignore[arg-type]
        "an old form of LZ4 is not supported here; write the file anew with another compression",
    ),
    "end_of_a_compressed_file": (
        lambda _: LimitedStream(io.BytesIO(), 9).seek(0, io.SEEK_END),
        "a compressed file has no known end",
    ),
    "shard_that_is_a_pipe": (pipe, "it is a pipe, not a regular file"),
    "tokenizer_with_a_long_name": (
        lambda _: build_tokenizer("a/" * 3000),
        "this path cannot be read. Check the name, and the permissions of its folder.",
    ),
    "redirect_without_an_address": (lambda _: _redirect_problem("https://a", "https://[b"), "an address that is not valid"),
    "redirect_with_a_backslash": (lambda _: _redirect_problem("https://a", "https://b\\c"), "an address with a backslash"),
    "redirect_without_encryption": (
        lambda _: _redirect_problem("https://a", "http://b"),
        "an address with http://, which https:// must not lead to",
    ),
    "redirect_to_an_odd_host": (
        lambda _: _redirect_problem("https://a", "https://b%c"),
        "an address whose host is no plain name",
    ),
}


def test_texts_that_are_refused(tmp_path: Path) -> None:
    check_each(TEXTS, tmp_path)


def test_a_text_of_few_words_has_not_the_sizes_to_compare() -> None:
    part = SimpleNamespace(n_bytes=60_000, texts=lambda: ["ab " * 20_000])
    settings, samples = SimpleNamespace(pattern="gpt2", special_tokens=""), SimpleNamespace(training=part, held_out=part)
    with pytest.raises(tokenizer.UserError, match=r"trial: this text has only [\d,]+ tokens, too few to compare sizes\."):
        tokenizer._trial_tokenizers(settings, samples)  # type: ignore[arg-type]


def test_a_table_of_a_dataset_that_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_tables, "MAX_TABLE_FILE", 1 << 20)
    (tmp_path / "a.parquet").write_bytes(bytes((1 << 20) + 1))
    generate = small_tables.read_small_tables(print)
    with pytest.raises(small_tables.DamagedArchiveError, match="it has a file of more than 1 MB"):
        list(generate(SimpleNamespace(), [tmp_path / "a.parquet"], [None]))


def test_a_shard_that_is_deleted_during_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    files = remote_files.RemoteFiles.__new__(remote_files.RemoteFiles)
    files.location = "s3://bucket/corpus"
    monkeypatch.setattr(remote_files.RemoteFiles, "size", lambda *_: None)
    with pytest.raises(
        remote_files.UserError, match=r"s3://bucket/corpus/a\.bin no longer exists\. Restore it and resume the run"
    ):
        files.read("a.bin", 0, 1)


def test_a_saved_dataset_lacks_a_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(tables.UserError, match=r"has no split test\. Set dataset_split= to one of its splits: train\."):
        tables._open_dataset(tables.StreamedDataset(str(tmp_path / "saved"), None, "test"), "text", tables.ArrowLimit())


def test_a_model_of_the_hub_without_a_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "fetch_tokenizer", lambda _: None)
    with pytest.raises(
        UserError, match=r"^tokenizer=some/model: this model on the hub has no vocabulary that can be read\. Choose"
    ):
        build_tokenizer("some/model")


def test_a_name_in_the_encoding_of_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UserError) as caught:
        environment.decode_arguments(["caf\udce9"])
    assert str(caught.value) == "'caf\\xe9' is not ASCII, the encoding of this system's names. Set PYTHONUTF8=1."
