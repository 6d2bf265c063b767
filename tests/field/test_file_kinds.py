"""Files of every kind are read as the documents that they contain, or refused by name; the same in training and in a corpus."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pretrain.checkpoints.weight_source import find_source
from gpt_pretrain.data.corpus import split_corpus
from gpt_pretrain.data.sources import is_shard_path, open_corpus_at
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.encodings import TextEncoding, detect_encoding
from gpt_pretrain.system.file_recognition import recognize
from gpt_pretrain.texts import decompression, json_values, reading, rows
from gpt_pretrain.texts.chunks import Cursor, ReadPosition
from gpt_pretrain.texts.text import Text, find_text_files
from gpt_pretrain.tokenizers.base import END_OF_TEXT
from tests.helpers import corpora
from tests.helpers.data_settings import data_settings

Script = Callable[..., "CompletedProcess[str]"]

DOCUMENTS = [
    "The old lighthouse stood alone.",
    "今天天气很好\uff0c我们去公园。",
    'He said: "no, [never], {never}\\", and left.',
    "Line one.\nLine two.",
]
PLAIN = "The old lighthouse stood alone. Nobody had lit it for years.\n" * 200


def in_training(path: Path, **settings: object) -> list[str]:
    """Return the documents of what data=text reads."""
    return "".join(Text(find_text_files(str(path), **settings), **settings).pieces()).split(END_OF_TEXT)  # type: ignore[arg-type]


def in_corpus(path: Path, out: Path, **settings: object) -> list[str]:
    """Return the documents of what gpt-pretrain prepare reads."""
    corpora.prepare(path, out=out, **({"val_fraction": 0.0, "max_rejected": 0.0, "max_failed_files": 0} | settings))
    return corpora.texts(out, "train")


def check(path: Path, documents: list[str], **settings: object) -> None:
    """Check that training and a corpus have exactly these documents."""
    assert in_training(path, **settings) == documents
    assert in_corpus(path, path.parent / f"corpus of {path.name}", **settings) == documents


def tar(files: dict[str, bytes], mode: str = "w", **options: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def lines(documents: list[str] = DOCUMENTS) -> bytes:
    return "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(documents)).encode()


def table(documents: list[str] = DOCUMENTS, delimiter: str = ",") -> bytes:
    rows = [f'{n}{delimiter}"{text.replace(chr(34), 2 * chr(34))}"{delimiter}x' for n, text in enumerate(documents)]
    return "\n".join([delimiter.join(["id", "text", "more"]), *rows]).encode() + b"\n"


def parquet(documents: list[str] = DOCUMENTS) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": documents, "n": list(range(len(documents)))}), stream)
    return stream.getvalue()


RECORDS: dict[str, bytes] = {
    "a.jsonl": lines(),
    "a.ndjson": lines().replace(b"\n", b"\r\n"),
    "mac.jsonl": lines().replace(b"\n", b"\r"),
    "mark.jsonl": b"\xef\xbb\xbf" + lines(),
    "wide.jsonl": lines().decode().encode("utf-16"),
    "array.json": json.dumps([{"text": text} for text in DOCUMENTS]).encode(),
    "pretty.json": json.dumps([{"n": [1, {"a": 2}], "text": text} for text in DOCUMENTS], indent=2, ensure_ascii=False).encode(),
    "objects.json": "\n".join(json.dumps({"text": text}, indent=1) for text in DOCUMENTS).encode(),
    "commas.json": ",\n".join(json.dumps({"text": text}, indent=1) for text in DOCUMENTS).encode(),
    "arrays.json": b"".join(json.dumps([{"text": text}]).encode() + b"\n" for text in DOCUMENTS),
    "array.jsonl": b" \n" + json.dumps([{"text": text} for text in DOCUMENTS]).encode(),
    "a.csv": table(),
    "crlf.csv": b"\xef\xbb\xbf" + table().replace(b"x\n", b"x\r\n"),
    "semicolons.csv": table(delimiter=";"),
    "a.tsv": table(delimiter="\t"),
    "a.csv.gz": gzip.compress(table()),
    "a.parquet": parquet(),
    "a.jsonl.gz": gzip.compress(lines()),
    "a.jsonl.bz2": bz2.compress(lines()),
    "a.jsonl.xz": lzma.compress(lines()),
    "a.jsonl.lzma": lzma.compress(lines(), lzma.FORMAT_ALONE),
    "a.jsonl.zst": zstandard.ZstdCompressor().compress(lines()),
    "two.jsonl.xz": lzma.compress(lines(DOCUMENTS[:1])) + bytes(8) + lzma.compress(lines(DOCUMENTS[1:])),
    "no suffix": lines(),
    "wrong suffix.dat": gzip.compress(lines()),
    "table in.zip": zipped({"deep/a.parquet": parquet()}),
    "nameless in.zip": zipped({"": lines()}),
    "lines in.tgz": tar({"deep/a.jsonl": lines()}, "w:gz"),
    "nested.tar.xz": tar({"one.xz": lzma.compress(tar({"a.jsonl": lines()}))}, "w:xz"),
    "zip in.tar": tar({"inner.zip": zipped({"a.json.gz": gzip.compress(lines())})}),
    "array in.zip": zipped({"a.json": json.dumps([{"text": text} for text in DOCUMENTS]).encode()}, zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_read_from_files_of_every_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(RECORDS[name])
    check(tmp_path / name, DOCUMENTS)


@pytest.mark.parametrize(
    "text", [PLAIN, "Привет, мир! Как дела?\n" * 50, "今天天气很好我们去公园\n" * 50, "한국어 문장입니다.\n" * 50, "Hi 😀!\n" * 9]
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_text_is_read_in_every_unicode_encoding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, encoding: str
) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    check(tmp_path / "a.txt", [text])
    assert encoding == "utf-8-sig" or encoding[:6].upper() in caplog.text


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


REFUSED: dict[str, tuple[bytes, str]] = {
    "cover.jpg": (b"\xff\xd8\xff\xe0" + bytes(2000), "JPEG image"),
    "a.png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG image"),
    "paper.pdf": (b"%PDF-1.7\n" + b"1 0 obj << /Type /Catalog >> endobj\n" * 50, "PDF document.*pdftotext"),
    "page.html": (b"<!DOCTYPE html>\n<html><body>" + b"<p>Hello.</p>" * 50, "HTML page.*as_text=true"),
    "error page.txt": (b"\n<html><head><title>404</title></head></html>", "HTML page"),
    "feed.xml": (b'<?xml version="1.0"?><a>text</a>', "XML document"),
    "book.docx": (zipped({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"}), "word processor document"),
    "renamed": (zipped({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}), "spreadsheet"),
    "book.epub": (zipped({"mimetype": b"application/epub+zip"}, zipfile.ZIP_STORED), "EPUB book"),
    "old.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "old Office program"),
    "a.out": (b"\x7fELF" + bytes(100), "program"),
    "random": (random.Random(0).randbytes(5000), "binary file"),
    "train.bin": (np.arange(5000, dtype="<u2").tobytes(), "token ids.*data=shards"),
    "bytes.bin": (np.frombuffer(PLAIN.encode(), np.uint8).astype("<u2").tobytes(), "token ids.*data=shards"),
    "fineweb_train_000001.bin": (struct.pack("<3i", 20240520, 1, 9) + bytes(2000), r"llm\.c.*data=shards"),
    "tokens.idx": (b"MMIDIDX\0\0" + bytes(50), "Megatron-LM"),
    "tokens.npy": (b"\x93NUMPY\x01\0" + bytes(200), "NumPy array.*data=shards"),
    "model.safetensors": (struct.pack("<Q", 60) + b'{"a": {"dtype": "F32"}}' + bytes(100), "safetensors.*init_from="),
    "model.gguf": (b"GGUF" + bytes(100), "GGUF"),
    "pytorch_model.bin": (zipped({"archive/data.pkl": b"x"}, zipfile.ZIP_STORED), "PyTorch checkpoint"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "7z x"),
    "a.db": (b"SQLite format 3\0" + bytes(100), "SQLite database"),
    "a.arrow": (b"ARROW1\0\0" + bytes(100), "dataset=FOLDER"),
    "a.mp4": (b"\0\0\0\x20ftypisom" + bytes(100), "MP4 video"),
    "a.jpg.gz": (gzip.compress(b"\xff\xd8\xff\xe0" + bytes(2000)), "JPEG image"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_refused_by_name_and_left_out_of_a_folder(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, message = REFUSED[name]
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / name).write_bytes(content)
    for read in (in_training, lambda path: in_corpus(path, tmp_path / "out")):
        with pytest.raises(UserError, match=message):
            read(folder / name)
        with pytest.raises(UserError, match="no file that can be read: 1 "):
            read(folder)
    (folder / "a.txt").write_text(PLAIN)
    check(folder, [PLAIN])
    assert f"mixed: 1 file left out: 1 {recognize(name, content).name.split(' without')[0]}" in caplog.text or "gz" in name


def test_settings_beside_texts_are_left_out_of_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, content in {
        "a.txt": PLAIN,
        "meta.json": '{"title": "x",\n "n": 3}',
        "page.html": "<p>Hello.</p>",
        "e.txt": "",
        "notebook.ipynb": '{"cells": [],\n "nbformat": 4}',
        "list.csv": "id,name\n1,a.txt\n",
    }.items():
        (folder / name).write_text(content)
    check(folder, [PLAIN])
    assert (
        "5 files left out: 1 empty file (e.txt), 1 table" in caplog.text
        and "1 JSON object without a field text (meta.json), 1 Jupyter notebook (notebook.ipynb)" in caplog.text
        and "1 table without a column text" in caplog.text
    )
    with pytest.raises(UserError, match=r"no field text in an object with title, n.*data\.text_field="):
        in_training(folder / "meta.json")


def parquet_without_text() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"body": ["one"]}), stream)
    return stream.getvalue()


BESIDE_TEXTS: dict[str, bytes] = {
    "settings.json": b'{"title": "x",\n "n": 3, "size": 1e400}',
    "sizes.json": b'{"n": ' + b"9" * 400 + b"}",
    "list.json": b'[{"file": "a.txt"},\n {"file": "b.txt"}]',
    "numbers.json": b"[[1, 2], [3]]",
    "list.csv": b"id,name\n1,a.txt\n",
    "list.tsv.gz": gzip.compress(b"id\tname\n1\ta.txt\n"),
    "settings.json.gz": gzip.compress(b'{"title": "x"}'),
    "wide.json": '{"title": "x"}'.encode("utf-16"),
    "table.parquet": parquet_without_text(),
}


@pytest.mark.parametrize("name", BESIDE_TEXTS)
def test_what_has_no_text_beside_texts_is_left_out_of_folders_and_archives(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    files = {"a.txt": PLAIN.encode(), "records.json": lines(), name: BESIDE_TEXTS[name], "z.txt": b"last"}
    for file, content in files.items():
        (folder / file).write_bytes(content)
    (tmp_path / "a.zip").write_bytes(zipped(files))
    (tmp_path / "a.tgz").write_bytes(tar(files, "w:gz"))
    (tmp_path / "other.zip").write_bytes(zipped({"inner.tar": tar({"a.txt": b"first"}), "b.tar": tar({name: files[name]})}))
    for path in (folder, tmp_path / "a.zip", tmp_path / "a.tgz"):
        caplog.clear()
        assert sorted(in_training(path)) == sorted([PLAIN, *DOCUMENTS, "last"])
        assert sorted(in_corpus(path, tmp_path / f"corpus of {path.name}")) == sorted([PLAIN, *DOCUMENTS, "last"])
        assert (
            f"1 file left out: 1 {'table' if ('list' in name and 'json' not in name) or 'table' in name else 'JSON'}"
            in caplog.text
        )
    check(tmp_path / "other.zip", ["first"])
    (tmp_path / "only.zip").write_bytes(zipped({name: files[name]}))
    choice = "" if "numbers" in name else r"Set (data\.)?text_field= to the one that contains the text: \w"
    for read in (in_training, lambda path: in_corpus(path, tmp_path / "out")):
        with pytest.raises(UserError, match=f"it contains no file that can be read: 1 .*{choice}"):
            read(tmp_path / "only.zip")


def test_a_damaged_archive_is_not_taken_for_a_short_one_by_looking_for_the_field(tmp_path: Path) -> None:
    data = gzip.compress(json.dumps([{"text": "word " * 9} for _ in range(9999)]).encode())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.json.gz").write_bytes(data[:-100])
    (tmp_path / "folder" / "b.txt").write_text("more")
    with pytest.raises(UserError, match="truncated"):
        in_training(tmp_path / "folder")
    (tmp_path / "a.tgz").write_bytes(
        tar({"a.json": b'[{"text": "one"}]' + b" " * 3_000_000, "b.csv": b"text\none\n"}, "w:gz")[:-900]
    )
    with pytest.raises(UserError, match="truncated"):
        in_training(tmp_path / "a.tgz")


def test_source_is_read_as_text_if_asked_for(tmp_path: Path) -> None:
    for name, text in (("page.html", "<html><body>Hello.</body></html>"), ("a.jsonl", lines().decode()), ("a.csv", "a,b\n1,2\n")):
        (tmp_path / name).write_text(text)
        check(tmp_path / name, [text], as_text=True)


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


def test_columns_with_dots_in_their_names_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"article.body": "one"}\n{"article": {"x.y": {"z": 0}, "body": "two"}}\n')
    check(tmp_path / "a.jsonl", ["one", "two"], text_field="article.body")


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
    monkeypatch.setattr("gpt_pretrain.texts.rows.MAX_ROWS", 1)
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


def test_token_ids_are_never_taken_for_text() -> None:
    rng = np.random.default_rng(0)
    story = "The old lighthouse stood alone. " * 3000
    for ids in (
        corpora.cached_tokenizer("gpt2").encode(PLAIN),
        rng.integers(0, 50257, 20_000),
        rng.integers(0, 65, 20_000),
        range(9),
    ):
        assert detect_encoding(np.array([*ids], "<u2").tobytes()) is None
        assert detect_encoding(np.array([*ids], "<u4").tobytes()) is None
    assert detect_encoding(story.encode("latin-1")).name == "utf-8"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Grüße aus München, schöne Straße!\n"),
        ("cp1251", "Привет, мир! Как дела?\n"),
        ("gbk", "今天天气很好\uff0c我们去公园。\n"),
    ],
)
def test_text_in_an_old_encoding_is_refused_with_the_command_that_converts_it(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "old.txt").write_bytes((text * 40).encode(encoding))
    for read in (in_training, lambda path: in_corpus(path, tmp_path / "out")):
        with pytest.raises(UserError) as caught:
            read(tmp_path / "old.txt")
        name = str(caught.value).partition("iconv -f ")[2].split()[0]
        assert (text * 40).encode(encoding).decode(name) == text * 40


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress])
def test_every_archive_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]) -> None:
    monkeypatch.setattr(decompression, "ALWAYS_READ", 1_000_000)
    bomb = compress(tar({"a.txt": b"a " * 10_000_000}))
    (tmp_path / "bomb.txt").write_bytes(bomb if len(bomb) * decompression.MAX_EXPANSION < 20_000_000 else compress(bomb))
    with pytest.raises(UserError, match="250 times as large"):
        in_training(tmp_path / "bomb.txt")


WITHOUT_SPACES = {
    "Chinese": "这是一个没有标点的中文文本我们在公园里散步然后回家吃饭他说今天天气很好",
    "Japanese": "わたしはきょうこうえんにいきましたそしていえにかえりました",
    "Thai": "ฉันไปสวนสาธารณะเมื่อวานนี้และกลับบ้านไปกินข้าวกับครอบครัว",
    "Khmer": "ខ្ញុំទៅសួនច្បារហើយត្រឡប់មកផ្ទះវិញ",
    "Korean": "나는오늘공원에갔다가집에돌아와서밥을먹었다",
}


@pytest.mark.parametrize("language", WITHOUT_SPACES)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_wide_text_needs_no_spaces_and_no_line_ends(tmp_path: Path, language: str, encoding: str) -> None:
    text = WITHOUT_SPACES[language] * 40
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    check(tmp_path / "a.txt", [text])


SAVED: dict[str, tuple[bytes, str]] = {
    "script.pt": (zipped({"m/code/__torch__.py": b"class M(Module): pass"}), "PyTorch checkpoint"),
    "script.ptl": (zipped({"m/version": b"2"}), "PyTorch checkpoint"),
    "m.keras": (zipped({"config.json": b"{}"}), "Keras model"),
    "a.mds": (struct.pack("<I", 3) + bytes(60) + b'{"column_names":["text"]}', "MDS shard of MosaicML Streaming"),
    "m.onnx": (b"\x08\x08\x12\x07pytorch" + bytes(range(200)), "ONNX model"),
    "m.msgpack": (b"\x81\xabtransformer" + bytes(range(256)), "msgpack file, such as weights of Flax"),
    "stream.arrow": (b"\xff\xff\xff\xff\x78\0\0\0\x10\0\0\0" + bytes(range(100)), "Arrow file"),
    "a.au": (b".snd\0\0\0\x18" + bytes(range(100, 250)), "AU recording"),
    "a": (b"FORM\0\0\1\0AIFFCOMM" + bytes(40), "AIFF recording"),
    "a.mo": (struct.pack("<7I", 0x950412DE, 0, 2, 28, 44, 0, 0) + b"abc\0", "catalog of translated messages"),
    "strings.cpython-311.pyc": (
        b"\xa7\r\r\n" + bytes(12) + b"\xe3" + bytes(9) + b"A page of text within a module.\n" * 99,
        "program",
    ),
    "a.ani": (b"RIFF\0\1\0\0ACONanih" + bytes(40), "RIFF file"),
}


@pytest.mark.parametrize("name", SAVED)
def test_what_other_programs_save_is_named(name: str) -> None:
    content, kind = SAVED[name]
    assert recognize(name, content).name == kind
    assert not recognize(name, content).is_read


def test_other_bytes_are_not_taken_for_wide_text_without_spaces() -> None:
    generator = random.Random(5)
    for low, high, size in ((0, 1 << 16, 2), (0, 50257, 2), (0x4E00, 0x9FA5, 2), (-400, 400, 2), (0, 100_000, 4)):
        numbers = b"".join(generator.randrange(low, high).to_bytes(size, "little", signed=low < 0) for _ in range(4000))
        assert detect_encoding(numbers) is None or detect_encoding(numbers) == TextEncoding("utf-8")
    for encoding in ("gbk", "shift_jis", "tis-620", "euc-kr", "cp949"):
        text = "".join(text for text in WITHOUT_SPACES.values()).encode(encoding, errors="ignore")
        assert detect_encoding(text * 20) == TextEncoding("utf-8")


@pytest.mark.parametrize("where", ["after", "before", "between", "after UTF-16"])
def test_a_text_with_nuls_around_it_is_read_with_a_warning(tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture) -> None:
    data, nuls = PLAIN.encode(), b"\0" * 60_000
    content = {"after": data + nuls, "before": nuls + data, "between": data.replace(b"\n", b"\0")}
    content["after UTF-16"] = PLAIN.encode("utf-16-le") + nuls
    (tmp_path / "a.txt").write_bytes(content[where])
    text = content[where].decode() if where in ("after", "before", "between") else PLAIN + "\0" * 30_000
    check(tmp_path / "a.txt", [text])
    assert "% of the text is NUL" in caplog.text
    assert recognize("a.txt", nuls).refusal("a.txt").startswith("a.txt is a file of NULs, not text. It was never filled.")


def test_many_control_characters_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ("word " * 20 + "\0") * 500
    (tmp_path / "a.txt").write_text(text)
    check(tmp_path / "a.txt", [text])
    assert "a.txt: 0.99% of the text is NUL, as in a file that was never filled" in caplog.text
    assert "Warning: 0.99% of the text is NUL" in capsys.readouterr().out


def test_a_window_of_any_size_is_decompressed(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(compressor.compress(PLAIN.encode()) + compressor.flush())
    check(tmp_path / "a.txt.zst", [PLAIN])


@pytest.mark.parametrize("name", ["story.txt", "a.jsonl", "cover.jpg", "tokens.npy"])
def test_weights_are_not_looked_for_in_other_files(tmp_path: Path, name: str) -> None:
    contents = {"story.txt": PLAIN.encode(), "a.jsonl": lines()}
    (tmp_path / name).write_bytes(contents.get(name) or REFUSED[name][0])
    with pytest.raises(UserError, match=f"{name} is an? [^,]+, not weights") as caught:
        find_source(tmp_path / name)
    assert len(caught.value.problems) == 1
    assert ("data=text data.path=" in str(caught.value)) == name.endswith(("txt", "jsonl"))


def test_shards_are_not_looked_for_in_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PLAIN)
    (tmp_path / "cover.jpg").write_bytes(REFUSED["cover.jpg"][0])
    with pytest.raises(UserError, match=r"1 text file \(a\.txt\), 1 JPEG image \(cover\.jpg\).*data=text data\.path="):
        open_corpus_at(str(tmp_path), data_settings(tmp_path, name="shards"))
    with pytest.raises(UserError, match=r"a\.txt is a text file, not a folder of token shards\. Add data=text"):
        open_corpus_at(str(tmp_path / "a.txt"), data_settings(tmp_path, name="shards"))


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


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ('id\ttext\n1\t"Hello\n2\tHe said "no"\n3\tyes"\n', ['"Hello', 'He said "no"', 'yes"']),
        ('id\ttext\n1\t"Hello ""you"""\n2\t"two\nlines"\n', ['Hello "you"', "two\nlines"]),
        ('text\n"a, b"\n"c\r\nd"\n\nplain\n', ["a, b", "c\nd", "plain"]),
    ],
)
def test_quotes_in_tables_are_what_the_table_means(tmp_path: Path, content: str, documents: list[str]) -> None:
    name = "a.tsv" if "\t" in content else "a.csv"
    (tmp_path / name).write_bytes(content.encode())
    check(tmp_path / name, documents)


@pytest.mark.parametrize("content", ['text,n\n"never closed,1\nb,2\n', 'text,n\n"a"b,1\n', "text,n\na, b,1\n", "text\na\nb,c\n"])
def test_a_broken_row_is_never_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=r"a\.csv, record \d: broken row"):
        in_training(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_two_columns_of_the_same_name_are_not_guessed_between(tmp_path: Path, name: str) -> None:
    if name == "a.csv":
        (tmp_path / name).write_text("text,text\na,b\n")
    else:
        pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / name)
    for read in (in_training, lambda path: in_corpus(path, tmp_path / "out")):
        with pytest.raises(UserError, match=r"has 2 columns named text\. Rename all but the one"):
            read(tmp_path / name)


def test_one_column_is_not_several(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\na\n")
    with pytest.raises(UserError, match=r"broken row \(1 column instead of 2\)"):
        in_training(tmp_path / "a.csv")


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


@pytest.mark.parametrize("start", ["sep=;\r\n", '\ufeff"sep=;"\n', ""])
def test_tables_of_spreadsheets_are_read(tmp_path: Path, start: str) -> None:
    (tmp_path / "a.csv").write_text(start + "id; text \n1;one, two, three\n2;four\n", newline="")
    check(tmp_path / "a.csv", ["one, two, three", "four"])


def test_a_mark_in_the_middle_of_concatenated_files_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines() + b"\xef\xbb\xbf" + lines())
    check(tmp_path / "a.jsonl", DOCUMENTS * 2)


def test_frames_without_content_are_skipped(tmp_path: Path) -> None:
    skipped = b"\x5e\x2a\x4d\x18" + struct.pack("<I", 5) + b"hello"
    frames = [zstandard.ZstdCompressor().compress(lines(part)) for part in (DOCUMENTS[:2], DOCUMENTS[2:])]
    (tmp_path / "a.jsonl.zst").write_bytes(skipped + frames[0] + skipped + frames[1] + skipped)
    check(tmp_path / "a.jsonl.zst", DOCUMENTS)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(alphabet='ab1 \n\r,;\t"é東', max_size=12).filter(str.strip), min_size=1, max_size=6),
    st.sampled_from([",", ";", "|"]),
    st.integers(1, 9),
)
def test_tables_are_read_as_they_were_written(texts: list[str], delimiter: str, block: int) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["n", "text", "more"], *([n, text, ""] for n, text in enumerate(texts))])
    data = stream.getvalue().encode()
    blocks = [data[start : start + block] for start in range(0, len(data), block)]
    cursor = Cursor("name", ReadPosition(), bytes_read=lambda: 0)
    found = [value for chunk in rows.split_rows(blocks, cursor, "text") for value in chunk.content]  # type: ignore[union-attr]
    assert found == texts and cursor.offset == len(data)


def test_text_for_a_terminal_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.txt").write_text("\x1b[31mred\x1b[0m line\n" * 500)
    in_training(tmp_path / "log.txt")
    assert "the colors of a terminal" in caplog.text


def test_a_damaged_character_in_utf8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße, 今天.\n".encode() * 50 + b"\xff more")
    with pytest.raises(UserError, match=r"invalid start byte near byte 850\).*The rest of the text is UTF-8.*iconv -c"):
        in_training(tmp_path / "a.txt")


def test_a_folder_with_weights_is_no_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PLAIN)
    (tmp_path / "pytorch_model.bin").write_bytes(REFUSED["pytorch_model.bin"][0])
    assert not is_shard_path(str(tmp_path))
    (tmp_path / "train.bin").write_bytes(REFUSED["train.bin"][0])
    assert is_shard_path(str(tmp_path))


def test_a_run_trains_on_compressed_records_and_says_what_it_leaves_out(script: Script, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    records = [{"article": {"body": PLAIN[: 100 + n]}} for n in range(20)]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    (folder / "cover.jpg").write_bytes(REFUSED["cover.jpg"][0])
    tiny = ["model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16", "tokenizer=byte"]
    data = ["data=text", f"data.path={folder}", "data.text_field=article.body", f"data.cache_dir={tmp_path / 'cache'}"]
    done = script("train.py", *tiny, *data, "trainer.max_steps=1", "trainer.accelerator=cpu", "callbacks=minimal")
    assert done.returncode == 0, done.stderr
    assert "1 file left out: 1 JPEG image (cover.jpg)" in done.stdout + done.stderr
    characters = sum(100 + n for n in range(20)) + 19 * len(END_OF_TEXT)
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
