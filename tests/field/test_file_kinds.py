"""Files with records and texts: each kind is read whole, in training and in a corpus alike."""

import bz2
import gzip
import json
import lzma
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gpt_pretrain.data.shards.corpus import split_corpus
from gpt_pretrain.data.sources import open_corpus_at
from gpt_pretrain.errors import UserError
from gpt_pretrain.texts import reading
from gpt_pretrain.texts.chunks import Cursor, ReadPosition
from gpt_pretrain.texts.containers import decompression
from gpt_pretrain.texts.records import json_values
from gpt_pretrain.texts.text import Text
from tests.helpers import corpora
from tests.helpers.data_settings import data_settings
from tests.helpers.text_inputs import DOCUMENTS, PLAIN, RECORDS, check, in_corpus, in_training, lines, table, tar, zipped

Script = Callable[..., "CompletedProcess[str]"]


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_read_from_files_of_every_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(RECORDS[name])
    check(tmp_path / name, DOCUMENTS)


def test_an_archive_of_books_is_read_member_by_member(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    books = {f"books/b{n}.txt": f"Chapter {n}: {PLAIN}".encode() for n in range(3)}
    others = {"books/cover.jpg": b"\xff\xd8\xff\xe0" + bytes(100), "books/.hidden": b"no", "__MACOSX/b.txt": b"no", "empty": b""}
    files = {**books, **others, "a" * 300 + "/long.txt": b"A long name."}
    expected = [content.decode() for name, content in files.items() if name.endswith("txt") and "MACOSX" not in name]
    archives = {
        **{f"{name}.tar": tar(files, format=form) for name, form in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT))},
        "a.tar.gz": tar(files, "w:gz"),
        "a.tbz2": tar(files, "w:bz2"),
        "a.txz": tar(files, "w:xz"),
        "a.zip": zipped(files),
        "a.tar.zst": zstandard.ZstdCompressor().compress(tar(files)),
        "two.tar": tar(dict(list(files.items())[:2])) + tar(dict(list(files.items())[2:])),
    }
    for name, content in archives.items():
        (tmp_path / name).write_bytes(content)
        caplog.clear()
        check(tmp_path / name, expected)
        assert "1 JPEG image (cover.jpg)" in caplog.text


@pytest.mark.parametrize("name", ["nested.jsonl", "array.json", "a.parquet"])
def test_a_dot_leads_into_a_nested_field(tmp_path: Path, name: str) -> None:
    records = [{"id": n, "article": {"body": text, "a.b": {"c": 1}}} for n, text in enumerate(DOCUMENTS)]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist([*records]), tmp_path / name)
    else:
        (tmp_path / name).write_text(json.dumps(records) if name == "array.json" else "\n".join(map(json.dumps, records)))
    check(tmp_path / name, DOCUMENTS, text_field="article.body")
    with pytest.raises(UserError, match="article"):
        in_training(tmp_path / name, text_field="article.title")


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["pretty.json", "nested.tar.xz", "lines in.tgz", "a.jsonl.bz2", "table in.zip", "a.parquet"])
def test_a_truncated_file_is_never_taken_for_a_whole_one(tmp_path: Path, name: str, cut: float) -> None:
    (tmp_path / name).write_bytes(RECORDS[name][: int(cut * len(RECORDS[name]))])
    with pytest.raises(UserError):
        in_training(tmp_path / name)
    with pytest.raises(UserError):
        in_corpus(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("name", [name for name in RECORDS if not name.endswith("parquet")])
def test_reading_resumes_at_every_position(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "MAX_LINES", 1)
    monkeypatch.setattr("gpt_pretrain.texts.records.csv_rows.MAX_ROWS", 1)
    monkeypatch.setattr(reading, "MAX_LINES", 1)
    path = tmp_path / name
    path.write_bytes(RECORDS[name])
    inputs = corpora.inputs_of(path)
    tokenizer = corpora.cached_tokenizer("byte")
    chunks = list(reading.read_inputs(inputs, tokenizer, start=ReadPosition()))
    for index, chunk in enumerate(chunks):
        after = list(reading.read_inputs(inputs, tokenizer, start=chunk.end))
        assert [other.content for other in after] == [other.content for other in chunks[index + 1 :]]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 50, 10_000])
@pytest.mark.parametrize("name", ["array.json", "pretty.json", "objects.json", "commas.json", "array.jsonl", "arrays.json"])
def test_values_are_split_alike_for_any_size_of_blocks(name: str, block: int) -> None:
    data = RECORDS[name]
    blocks = [data[start : start + block] for start in range(0, len(data), block)]
    cursor = Cursor("name", ReadPosition(), bytes_read=lambda: 0)
    chunks = json_values.split_values(blocks, cursor, is_array="objects" not in name and "commas" not in name)
    found = [json.loads(line)["text"] for chunk in chunks for line in chunk.content.splitlines()]  # type: ignore[union-attr]
    assert found == DOCUMENTS


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress])
def test_every_archive_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]) -> None:
    monkeypatch.setattr(decompression, "ALWAYS_READ", 1_000_000)
    bomb = compress(tar({"a.txt": b"a " * 10_000_000}))
    (tmp_path / "bomb.txt").write_bytes(bomb if len(bomb) * decompression.MAX_EXPANSION < 20_000_000 else compress(bomb))
    with pytest.raises(UserError, match="250 times as large"):
        in_training(tmp_path / "bomb.txt")


def test_a_window_of_any_size_is_decompressed(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(compressor.compress(PLAIN.encode()) + compressor.flush())
    check(tmp_path / "a.txt.zst", [PLAIN])


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i8"])
def test_numpy_arrays_are_token_shards(tmp_path: Path, dtype: str) -> None:
    ids = np.random.default_rng(0).integers(0, 256, 9000)
    np.save(tmp_path / "edu_train_000001.npy", ids[:6000].astype(dtype))
    np.save(tmp_path / "edu_train_000002.npy", ids[6000:8000].astype(dtype))
    np.save(tmp_path / "edu_val_000000.npy", ids[8000:].astype(dtype))
    corpus = open_corpus_at(str(tmp_path), data_settings(tmp_path, name="shards"))
    split = split_corpus(replace(corpus, tokenizer="byte"), corpora.cached_tokenizer("byte"), train_ratio=0.9)
    assert split.train.read(5990, 20).tolist() == ids[5990:6010].tolist()
    assert split.val.read(0, split.val.count).tolist() == ids[8000:].tolist()
    for wrong in (np.zeros((3, 4), "<u2"), np.zeros(9, "<f4"), np.zeros(9, ">u2"), np.array([{}], object)):
        np.save(tmp_path / "edu_train_000003.npy", wrong, allow_pickle=True)
        with pytest.raises(UserError, match=r"edu_train_000003\.npy is not an array of token ids"):
            open_corpus_at(str(tmp_path), data_settings(tmp_path, name="shards"))


@pytest.mark.parametrize("dtype", ["<i4", "<i8"])
def test_negative_token_ids_are_called_negative(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "train.npy", np.array([5, -100, 7] * 100, dtype))
    corpus = open_corpus_at(str(tmp_path), data_settings(tmp_path, name="shards"))
    with pytest.raises(UserError, match=r"has the token id -100, but ids are numbers from 0 on"):
        split_corpus(replace(corpus, tokenizer="byte"), corpora.cached_tokenizer("byte"), train_ratio=0.9)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.zst", "a.txt.bz2", "a.csv.xz"])
def test_a_file_that_was_decompressed_and_kept_its_name_is_what_its_name_says(tmp_path: Path, name: str) -> None:
    content = table() if "csv" in name else lines() if "json" in name else PLAIN.encode()
    (tmp_path / name).write_bytes(content)
    check(tmp_path / name, [PLAIN] if "txt" in name else DOCUMENTS)


def test_frames_without_content_are_skipped(tmp_path: Path) -> None:
    skipped = b"\x5e\x2a\x4d\x18" + struct.pack("<I", 5) + b"hello"
    frames = [zstandard.ZstdCompressor().compress(lines(part)) for part in (DOCUMENTS[:2], DOCUMENTS[2:])]
    (tmp_path / "a.jsonl.zst").write_bytes(skipped + frames[0] + skipped + frames[1] + skipped)
    check(tmp_path / "a.jsonl.zst", DOCUMENTS)


def test_a_run_trains_on_compressed_records_and_says_what_it_leaves_out(script: Script, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    records = [{"article": {"body": PLAIN[: 100 + n]}} for n in range(20)]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    (folder / "cover.jpg").write_bytes(b"\xff\xd8\xff\xe0 a picture")
    tiny = ["model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16", "tokenizer=byte"]
    data = ["data=text", f"data.path={folder}", "data.text_field=article.body", f"data.cache_dir={tmp_path / 'cache'}"]
    done = script("train.py", *tiny, *data, "trainer.max_steps=1", "trainer.accelerator=cpu", "callbacks=minimal")
    assert done.returncode == 0, done.stderr
    assert "1 file left out: 1 JPEG image (cover.jpg)" in done.stdout + done.stderr
    characters = sum(100 + n for n in range(20))
    assert f"{characters:,} characters" in done.stdout


def test_the_remedy_for_a_record_names_the_files_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A text that can be read.\n")
    (tmp_path / "b.jsonl").write_text('{"title": "x"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl, record 1: .* prepare \S*b\.jsonl out=corpus"):
        list(Text((tmp_path / "b.jsonl",)).pieces())
    with pytest.raises(
        UserError, match=r"b\.jsonl, record 1: .* with all of the files as PATH: gpt-pretrain prepare PATH out=corpus"
    ):
        list(Text((tmp_path / "a.txt", tmp_path / "b.jsonl")).pieces())
