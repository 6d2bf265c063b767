"""Files without text: each is named for what it is, refused, and left out of folders and archives."""

import gzip
import io
import json
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pretrain.checkpoints.weight_source import find_source
from gpt_pretrain.data.sources import is_shard_path, open_corpus_at
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.recognition.encodings import detect_encoding
from gpt_pretrain.system.recognition.file_recognition import recognize
from gpt_pretrain.texts.text import Text, find_text_files
from tests.helpers import corpora
from tests.helpers.data_settings import data_settings
from tests.helpers.text_inputs import DOCUMENTS, PLAIN, check, in_corpus, in_training, lines, tar, zipped

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
    "written in another order.txt": (
        zipped({"docProps/app.xml": b"<x/>", "_rels/.rels": b"<x/>", "xl/workbook.xml": b"<x/>"}), "spreadsheet"
    ),
    "essay.pages": (zipped({"Index/Document.iwa": bytes(100)}, zipfile.ZIP_STORED), "Apple's iWork"),
    "rels.txt": (b'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"/>', "XML document"),
    "tei": (b'<!-- c -->\n<tei:TEI\n xmlns:tei="http://www.tei-c.org/ns/1.0"><text>a</text></tei:TEI>', "XML document"),
    "a.cpio": (b"070701" + b"0" * 104 + b"a.txt\0" + PLAIN.encode(), "cpio archive.*cpio -idm"),
    "a.feather": (b"ARROW1\0\0" + bytes(100), "Feather table.*read_feather"),
    "secret.parquet": (b"PARE" + bytes(100) + b"PARE", "encrypted Parquet"),
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
    choice = "" if "numbers" in name else r"Set (data\.)?text_field= to the field that contains the text: \w"
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


def test_a_folder_with_weights_is_no_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PLAIN)
    (tmp_path / "pytorch_model.bin").write_bytes(REFUSED["pytorch_model.bin"][0])
    assert not is_shard_path(str(tmp_path))
    (tmp_path / "train.bin").write_bytes(REFUSED["train.bin"][0])
    assert is_shard_path(str(tmp_path))


def test_a_folder_of_the_package_datasets_gets_the_command_that_reads_it(tmp_path: Path) -> None:
    table = pa.table({"text": ["One.", "Two."]})
    with pa.ipc.new_stream(str(tmp_path / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "dataset_info.json").write_text('{"citation": "", "description": ""}')
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    with pytest.raises(UserError, match=r"1 Arrow file .*gpt-pretrain prepare dataset=FOLDER out=CORPUS\.$"):
        find_text_files(str(tmp_path))


def test_what_is_left_out_of_an_archive_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with zipfile.ZipFile(tmp_path / "books.zip", "w") as archive:
        archive.writestr("book.txt", "A text. " * 20)
        archive.writestr("cover.png", b"\x89PNG\r\n\x1a\n" + bytes(200))
    for _ in range(2):
        assert "".join(Text((tmp_path / "books.zip",)).pieces()) == "A text. " * 20
    assert caplog.text.count("1 file left out: 1 PNG image (cover.png).") == 1


def test_backups_of_editors_beside_their_files_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", "a.txt~", "#a.txt#", "b.txt", "b.txt.bak", "alone.txt~"):
        (tmp_path / name).write_text("A quiet morning by the sea.\n" * 3, encoding="utf-8")
    find_text_files(str(tmp_path))
    (warning,) = [line for line in caplog.messages if "backup" in line]
    assert "(and 2 more files like it) is an editor's backup of a file that is read as well" in warning

    caplog.clear()
    find_text_files(str(tmp_path / "*.bak"))
    assert not [line for line in caplog.messages if "backup" in line]


def test_what_is_left_out_is_logged_once_however_often_a_text_is_found_and_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text(PLAIN)
    (tmp_path / "b.zip").write_bytes(zipped({"c.txt": PLAIN.encode(), "d.png": REFUSED["a.png"][0]}))
    (tmp_path / "e.png").write_bytes(REFUSED["a.png"][0])
    for _ in range(3):
        list(Text(find_text_files(str(tmp_path))).pieces())
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "1 file left out: 1 PNG image (e.png).",
        "1 file left out: 1 PNG image (d.png).",
    ]
    (tmp_path / "f.png").write_bytes(REFUSED["a.png"][0])
    find_text_files(str(tmp_path))
    assert "2 files left out: 2 PNG images" in caplog.text


def test_descriptions_of_a_cloned_repository_of_data_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data").mkdir()
    for name in ("README.md", "LICENSE", "data/README.md"):
        (tmp_path / name).write_text(PLAIN, encoding="utf-8")
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n', encoding="utf-8")
    texts = [str(file.relative_to(tmp_path)) for file in find_text_files(str(tmp_path))]
    assert texts == ["LICENSE", "README.md", "data/README.md", "data/train.jsonl"]
    lfs = "filter=lfs diff=lfs merge=lfs -text\n"
    (tmp_path / ".gitattributes").write_text(f"*.csv text\n*.png {lfs}", encoding="utf-8")  # code, or a game
    assert [str(file.relative_to(tmp_path)) for file in find_text_files(str(tmp_path))] == texts
    (tmp_path / ".gitattributes").write_text(f"*.png {lfs}*.parquet {lfs}", encoding="utf-8")
    texts = [str(file.relative_to(tmp_path)) for file in find_text_files(str(tmp_path))]
    assert texts == ["data/README.md", "data/train.jsonl"]
    assert "2 files left out: 2 descriptions of a repository of data (LICENSE, ...)." in caplog.text
    assert find_text_files(str(tmp_path / "README.md")) == (tmp_path / "README.md",)
