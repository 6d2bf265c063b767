"""Reading inputs: tables, archives, datasets, and records that cannot be used."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gpt_pretrain.errors import UserError
from gpt_pretrain.texts import chunks, reading
from gpt_pretrain.texts.chunks import ReadPosition
from gpt_pretrain.texts.containers import decompression
from gpt_pretrain.texts.containers.blocks import read_stream
from gpt_pretrain.texts.containers.decompression import ContentLimit
from gpt_pretrain.texts.inputs import StreamedDataset, find_input_files
from gpt_pretrain.texts.records import record_text, tables
from gpt_pretrain.tokenizers import splitting
from tests.conftest import ROOT
from tests.helpers import corpora

DOCUMENTS = [f"document {number}, {'word ' * (number % 40)}" for number in range(500)]


def json_lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def write_parquet(path: Path, documents: list[object], **options: object) -> Path:
    pq.write_table(pa.table({"text": documents, "n": list(range(len(documents)))}), path, **options)
    return path


def read_rejected(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def test_tables_and_archives_give_the_documents_that_they_contain(tmp_path: Path) -> None:
    half = len(DOCUMENTS) // 2
    compress = zstandard.ZstdCompressor().compress
    files = {
        "a.parquet": None,
        "b.jsonl.zst": compress(json_lines(DOCUMENTS)),
        "several.jsonl.zst": compress(json_lines(DOCUMENTS[:half])) + compress(json_lines(DOCUMENTS[half:])),
        "several.json.gz": gzip.compress(json_lines(DOCUMENTS[:half]))
        + gzip.compress(json_lines(DOCUMENTS[half:]))
        + b"\0" * 512,
        "mark.ndjson": b"\xef\xbb\xbf" + json_lines(DOCUMENTS).replace(b"\n", b"\r\n").rstrip(b"\n"),
    }
    for name, data in files.items():
        if data is None:
            write_parquet(tmp_path / name, [*DOCUMENTS], row_group_size=77)
        else:
            (tmp_path / name).write_bytes(data)
        corpora.prepare(tmp_path / name, out=tmp_path / "out" / name, val_fraction=0.0)
        assert corpora.texts(tmp_path / "out" / name, "train") == DOCUMENTS, name
    texts = tmp_path / "texts.txt.gz"
    texts.write_bytes(gzip.compress("\n---\n".join(DOCUMENTS).encode()))
    corpora.prepare(texts, out=tmp_path / "out" / "texts", val_fraction=0.0, document_separator="\\n---\\n")
    assert corpora.texts(tmp_path / "out" / "texts", "train") == DOCUMENTS


PREPARE_WITHOUT_TORCH = """
import sys
from gpt_pretrain.commands.main import main
sys.argv.insert(1, "prepare")
try:
    main()
except SystemExit as end:
    assert not end.code
assert "torch" not in sys.modules and "datasets" in sys.modules
"""


@pytest.mark.parametrize("kind", ["folder", "saved", "split"])
def test_a_dataset_is_streamed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data"
    (tmp_path / "texts").write_text("|".join(DOCUMENTS))
    if kind == "folder":
        path.mkdir()
        for number in range(2):
            part = DOCUMENTS[250 * number : 250 * number + 250]
            (path / f"{number}.jsonl").write_bytes(json_lines(part).replace(b'"text"', b'"body"'))
    else:
        code = "import datasets; d = datasets.Dataset.from_dict({'body': open('texts').read().split('|')});"
        code += "d.save_to_disk('data')" if kind == "saved" else "datasets.DatasetDict({'part': d}).save_to_disk('data')"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    arguments = [f"dataset={path}", "text_field=body", f"out={tmp_path / 'out'}", "tokenizer=byte", "val_fraction=0"]
    arguments += ["dataset_split=part"] if kind == "split" else []
    command = [sys.executable, "-c", PREPARE_WITHOUT_TORCH, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert corpora.texts(tmp_path / "out", "train") == DOCUMENTS
    (source,) = corpora.read_manifest(tmp_path / "out")["source"]
    assert source["dataset"] == str(path) and source["bytes"] > 0


def test_reading_a_dataset_resumes_at_a_position(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(DOCUMENTS))
    dataset = StreamedDataset(str(tmp_path), None, "train")
    found = [chunk.content for chunk in tables.read_dataset(dataset, "text", start=ReadPosition(0, 390, 390))]
    assert [text for values in found for text in values] == DOCUMENTS[390:]


@pytest.mark.parametrize("record", [0, 1, 76, 77, 78, 300, 499])
def test_reading_a_table_resumes_at_a_position(tmp_path: Path, record: int) -> None:
    path = write_parquet(tmp_path / "a.parquet", [*DOCUMENTS], row_group_size=77)
    (file,) = find_input_files([str(path)], out=tmp_path / "out")
    cursor = chunks.Cursor(file.path, ReadPosition(0, record, record), bytes_read=lambda: 0)
    found = [
        chunk.content for chunk in tables.read_parquet(file.path, cursor, "text", size=file.size, limit=ContentLimit(file.size))
    ]
    assert [text for values in found for text in values] == DOCUMENTS[record:]


def test_a_missing_column_or_split_of_a_dataset_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(DOCUMENTS))
    with pytest.raises(UserError, match=r"no column body\. Set text_field= to one of its columns: text\."):
        corpora.prepare(dataset=str(tmp_path), text_field="body", out=tmp_path / "out")
    with pytest.raises(UserError, match=r"failed after record 0: .*test"):
        corpora.prepare(dataset=str(tmp_path), dataset_split="test", out=tmp_path / "other")


UNUSABLE_LINES = {
    b'{"text": "cut': "broken JSON",
    b'{"body": "another field"}': "field missing",
    b'{"text": 5}': "text is not a string",
    b'{"text": null}': "text is not a string",
    b'["text"]': "not an object",
    b'{"text": "latin \xe9"}': "not UTF-8",
    b'{"text": "half \\ud83d"}': "not UTF-8",
    b"[" * 100_000: "broken JSON",
}


def test_unusable_lines_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    good = json_lines(DOCUMENTS).splitlines()
    mixed = [*good[:3], b"", b'{"text": " \\n "}', *UNUSABLE_LINES, *good[3:]]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(mixed))
    manifest = corpora.prepare(tmp_path / "a.jsonl", out=tmp_path / "out", val_fraction=0.0)
    assert corpora.texts(tmp_path / "out", "train") == DOCUMENTS
    rejected, reasons = read_rejected(tmp_path / "out"), list(UNUSABLE_LINES.values())
    assert [(record["record"], record["reason"]) for record in rejected] == list(enumerate(reasons, start=6))
    assert all(record["file"] == str(tmp_path / "a.jsonl") and record["begins"] for record in rejected)
    by_reason = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert manifest["rejected"] == {"records": len(UNUSABLE_LINES), "by_reason": by_reason}


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt.gz"])
def test_a_truncated_archive_gives_what_is_before_the_end(tmp_path: Path, name: str) -> None:
    path, documents = tmp_path / name, []
    if name == "a.parquet":
        write_parquet(path, [*DOCUMENTS])
    elif name == "a.txt.gz":
        path.write_bytes(gzip.compress(os.urandom(40_000).hex().encode()))
    else:
        documents = [os.urandom(100).hex() for _ in range(5000)]
        compress = gzip.compress if name.endswith("gz") else zstandard.ZstdCompressor().compress
        path.write_bytes(compress(json_lines(documents)))
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    (tmp_path / "whole.jsonl").write_bytes(json_lines(["whole"]))
    manifest = corpora.prepare(path, tmp_path / "whole.jsonl", out=tmp_path / "out", val_fraction=0.0)
    *found, last = corpora.texts(tmp_path / "out", "train")
    assert last == "whole" and found == documents[: len(found)]
    assert name not in ("a.jsonl.gz", "a.jsonl.zst") or 1000 < len(found) < 4000
    assert manifest["rejected"]["records"] == 0 and f"{name}, record" in manifest["failed_files"][0]


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_a_highly_compressed_archive_is_read_in_small_blocks(tmp_path: Path, name: str) -> None:
    data = b"\0" * 40_000_000
    (tmp_path / name).write_bytes((gzip.compress if name == "a.gz" else zstandard.ZstdCompressor().compress)(data))
    with open(tmp_path / name, "rb") as stream:
        blocks = list(decompression.decompress(read_stream(stream), name[2:], decompression.ContentLimit(0)))
    assert b"".join(blocks) == data and max(map(len, blocks)) < 2 * decompression.BLOCK


def test_a_document_that_is_not_utf8_is_left_out_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "PART", 1000)
    monkeypatch.setattr(splitting, "LOOKAHEAD", 500)
    invalid = b"good " * 1000 + "Grüße".encode("latin-1") + b" bad" * 1000
    (tmp_path / "a.txt").write_bytes(b"before<>" + invalid + b"<>behind<>" + invalid)
    manifest = corpora.prepare(tmp_path / "a.txt", out=tmp_path / "out", val_fraction=0.0, document_separator="<>")
    assert corpora.texts(tmp_path / "out", "train") == ["before", "behind"]
    rejected = read_rejected(tmp_path / "out")
    assert [(record["record"], record["reason"]) for record in rejected] == [(2, "not UTF-8"), (4, "not UTF-8")]
    assert "near byte 5010" in str(rejected[0]["detail"])
    assert manifest["parts"]["train"]["bytes"] == len("beforebehind")


def test_lines_and_texts_that_are_too_long_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chunks, record_text, reading, tables):
        monkeypatch.setattr(module, "LONGEST_RECORD", 10_000)
    monkeypatch.setattr(decompression, "BLOCK", 4_000)
    documents = ["first", "x" * 30_000, "middle", "y" * 9_000, "z" * 10_500, "last", "w" * 40_000]
    expected = ["first", "middle", "y" * 9_000, "last"]
    (tmp_path / "a.jsonl").write_bytes(json_lines(documents))
    write_parquet(tmp_path / "a.parquet", [*documents])
    for name in ("a.jsonl", "a.parquet"):
        out = tmp_path / "out" / name
        corpora.prepare(tmp_path / name, out=out, val_fraction=0.0)
        assert corpora.texts(out, "train") == expected
        assert [(record["record"], record["reason"]) for record in read_rejected(out)] == [(n, "too long") for n in (2, 5, 7)]


def test_too_many_rejected_records_are_an_error_and_can_be_allowed_afterwards(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{\n" + json_lines(DOCUMENTS))
    with pytest.raises(UserError) as caught:
        corpora.prepare(tmp_path / "a.jsonl", out=tmp_path / "out", max_rejected=0.001)
    message = str(caught.value)
    assert "1 of 501 records (0.2%)" in message and "a.jsonl, record 1: broken JSON" in message
    assert not (tmp_path / "out" / "manifest.json").exists() and len(read_rejected(tmp_path / "out")) == 1
    allowed = float(message.partition("leave them out with max_rejected=")[2].partition(":")[0])
    assert corpora.prepare(tmp_path / "a.jsonl", out=tmp_path / "out", max_rejected=allowed)["rejected"]["records"] == 1


def test_many_rejected_records_stop_the_preparation_before_everything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"other": 1}\n' * 400_000)
    with pytest.raises(UserError, match="field missing") as caught:
        corpora.prepare(tmp_path / "a.jsonl", out=tmp_path / "out", max_rejected=0.5)
    assert "400,000" not in str(caught.value)


def test_all_arguments_that_match_nothing_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        corpora.prepare(tmp_path / "nothing.txt", tmp_path / "empty", "wokers=3", out=tmp_path / "out")
    assert len(caught.value.problems) == 3
    (tmp_path / "a.txt").write_text(" \n ")
    with pytest.raises(UserError, match="The inputs contain no text"):
        corpora.prepare(tmp_path / "a.txt", out=tmp_path / "out")
    write_parquet(tmp_path / "a.parquet", ["x"])
    with pytest.raises(UserError, match=r"has no column body\. Set text_field= to one of its columns: text, n\."):
        corpora.prepare(tmp_path / "a.parquet", out=tmp_path / "other", text_field="body")


def test_no_file_is_read_twice_and_no_file_of_the_corpus_is_read(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    manifest = corpora.prepare(tmp_path / "b.txt", tmp_path, tmp_path / "b.txt", out=tmp_path / "out", val_fraction=0.0)
    assert [source["path"] for source in manifest["source"]] == [str(tmp_path / "b.txt"), str(tmp_path / "a.md")]
    assert corpora.texts(tmp_path / "out", "train") == ["b", "a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_missing_permissions_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(UserError, match=r"a.txt cannot be read: Permission denied"):
        corpora.prepare(tmp_path / "a.txt", out=tmp_path / "out")
    (tmp_path / "a.txt").chmod(0o600)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o500)
    with pytest.raises(UserError, match=r"out.*Permission denied"):
        corpora.prepare(tmp_path / "a.txt", out=tmp_path / "out")


def test_plain_files_need_no_extra_packages_and_other_files_name_the_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pyarrow", "pyarrow.parquet", "zstandard", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(["a"])))
    corpora.prepare(tmp_path / "a.jsonl.gz", out=tmp_path / "plain")
    for path, magic in ((tmp_path / "a.jsonl.zst", b"\x28\xb5\x2f\xfd"), (tmp_path / "a.parquet", b"PAR1")):
        path.write_bytes(magic)
        with pytest.raises(UserError, match=r'pip install "gpt-pretrain\[corpora\]"'):
            corpora.prepare(path, out=tmp_path / path.suffix)
    with pytest.raises(UserError, match=r"package datasets, .* pip install"):
        corpora.prepare(dataset="some/thing", out=tmp_path / "out2")


def test_a_column_of_utf8_bytes_is_read_as_text(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    values = [text.encode() for text in DOCUMENTS[:50]] + [b"\xff"]
    pq.write_table(pa.table({"text": pa.array(values, pa.binary())}), file)
    manifest = corpora.prepare(file, out=tmp_path / "out", val_fraction=0)
    assert corpora.texts(tmp_path / "out", "train") == DOCUMENTS[:50]
    assert manifest["rejected"]["by_reason"] == {"not UTF-8": 1}


def test_a_url_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a URL, but only files on this machine are read"):
        corpora.prepare("s3://bucket/a.jsonl", out=tmp_path / "out")
