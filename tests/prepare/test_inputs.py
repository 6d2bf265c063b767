"""What a corpus is read from: tables, archives, and records that are no good."""

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
from gpt_pretrain.prepare import encoding, items, sources, streams, stretches, tables
from gpt_pretrain.prepare.items import ReadPosition
from gpt_pretrain.prepare.sources import find_sources
from tests.conftest import ROOT
from tests.helpers import corpora

DOCUMENTS = [f"document {number}, {'word ' * (number % 40)}" for number in range(500)]


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def write_parquet(path: Path, documents: list[object], **options: object) -> Path:
    pq.write_table(pa.table({"text": documents, "n": list(range(len(documents)))}), path, **options)
    return path


def rejected(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def test_tables_and_archives_give_the_documents_of_the_lines_they_hold(tmp_path: Path) -> None:
    half = len(DOCUMENTS) // 2
    packed = zstandard.ZstdCompressor().compress
    files = {
        "a.parquet": None,
        "b.jsonl.zst": packed(lines(DOCUMENTS)),
        "several.jsonl.zst": packed(lines(DOCUMENTS[:half])) + packed(lines(DOCUMENTS[half:])),
        "several.json.gz": gzip.compress(lines(DOCUMENTS[:half])) + gzip.compress(lines(DOCUMENTS[half:])) + b"\0" * 512,
        "mark.ndjson": b"\xef\xbb\xbf" + lines(DOCUMENTS).replace(b"\n", b"\r\n").rstrip(b"\n"),
    }
    for name, data in files.items():
        if data is None:
            write_parquet(tmp_path / name, [*DOCUMENTS], row_group_size=77)
        else:
            (tmp_path / name).write_bytes(data)
        corpora.made(tmp_path / name, out=tmp_path / "out" / name, val_fraction=0.0)
        assert corpora.texts(tmp_path / "out" / name, "train") == DOCUMENTS, name
    texts = tmp_path / "texts.txt.gz"
    texts.write_bytes(gzip.compress("\n---\n".join(DOCUMENTS).encode()))
    corpora.made(texts, out=tmp_path / "out" / "texts", val_fraction=0.0, document_separator="\\n---\\n")
    assert corpora.texts(tmp_path / "out" / "texts", "train") == DOCUMENTS


@pytest.mark.parametrize("kind", ["folder", "saved", "split"])
def test_a_dataset_is_read_as_a_stream(tmp_path: Path, kind: str) -> None:
    place, code = tmp_path / "data", "import datasets; d = datasets.Dataset.from_dict({'body': open('texts').read().split('|')});"
    (tmp_path / "texts").write_text("|".join(DOCUMENTS))
    if kind == "folder":
        place.mkdir()
        for number in range(2):
            (place / f"{number}.jsonl").write_bytes(
                lines(DOCUMENTS[250 * number : 250 * number + 250]).replace(b'"text"', b'"body"')
            )
    else:
        code += "d.save_to_disk('data')" if kind == "saved" else "datasets.DatasetDict({'part': d}).save_to_disk('data')"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    words = [f"dataset={place}", "text_field=body", f"out={tmp_path / 'out'}", "tokenizer=byte", "val_fraction=0"]
    words += ["dataset_split=part"] if kind == "split" else []
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[1:] = ['prepare', *{words}]; from gpt_pretrain.commands.main import main\ntry: main()\nexcept SystemExit as end: assert not end.code\n"
         "assert 'torch' not in sys.modules and 'datasets' in sys.modules"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert corpora.texts(tmp_path / "out", "train") == DOCUMENTS
    (source,) = corpora.manifest(tmp_path / "out")["source"]
    assert source["dataset"] == str(place) and source["bytes"] > 0


def test_a_dataset_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(DOCUMENTS))
    found = [item.content for item in tables.read_dataset(str(tmp_path), None, "train", "text", ReadPosition(0, 390, 390))]
    assert [text for values in found for text in values] == DOCUMENTS[390:]


@pytest.mark.parametrize("record", [0, 1, 76, 77, 78, 300, 499])
def test_a_table_goes_on_where_it_was(tmp_path: Path, record: int) -> None:
    source = write_parquet(tmp_path / "a.parquet", [*DOCUMENTS], row_group_size=77)
    (found,) = find_sources([str(source)], out=tmp_path / "out")
    contents = [item.content for item in tables.read_parquet(found, "text", ReadPosition(0, record, record), 0)]
    assert [text for values in contents for text in values] == DOCUMENTS[record:]


def test_a_dataset_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(DOCUMENTS))
    with pytest.raises(UserError, match="no column body, but text"):
        corpora.made(dataset=str(tmp_path), text_field="body", out=tmp_path / "out")
    with pytest.raises(UserError, match=r"behind record 0: .*test"):
        corpora.made(dataset=str(tmp_path), dataset_split="test", out=tmp_path / "other")


BAD_LINES = {
    b'{"text": "cut': "broken JSON",
    b'{"body": "another field"}': "field missing",
    b'{"text": 5}': "text no string",
    b'{"text": null}': "text no string",
    b'["text"]': "no object",
    b'{"text": "latin \xe9"}': "not UTF-8",
    b'{"text": "half \\ud83d"}': "not UTF-8",
    b"[" * 100_000: "broken JSON",
}


def test_bad_lines_are_left_out_counted_and_kept(tmp_path: Path) -> None:
    good = lines(DOCUMENTS).splitlines()
    mixed = [*good[:3], b"", b'{"text": " \\n "}', *BAD_LINES, *good[3:]]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(mixed))
    about = corpora.made(tmp_path / "a.jsonl", out=tmp_path / "out", val_fraction=0.0)
    assert corpora.texts(tmp_path / "out", "train") == DOCUMENTS
    found = rejected(tmp_path / "out")
    assert [(one["record"], one["reason"]) for one in found] == [
        (6 + place, reason) for place, reason in enumerate(BAD_LINES.values())
    ]
    assert all(one["file"] == str(tmp_path / "a.jsonl") and one["begins"] for one in found)
    reasons = list(BAD_LINES.values())
    assert about["rejected"] == {
        "records": len(BAD_LINES),
        "by_reason": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt.gz"])
def test_an_archive_that_was_cut_off_gives_what_is_left(tmp_path: Path, name: str) -> None:
    path, many = tmp_path / name, []
    if name == "a.parquet":
        write_parquet(path, [*DOCUMENTS])
    elif name == "a.txt.gz":
        path.write_bytes(gzip.compress(os.urandom(40_000).hex().encode()))
    else:
        many = [os.urandom(100).hex() for _ in range(5000)]
        path.write_bytes((gzip.compress if name.endswith("gz") else zstandard.ZstdCompressor().compress)(lines(many)))
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    (tmp_path / "whole.jsonl").write_bytes(lines(["whole"]))
    about = corpora.made(path, tmp_path / "whole.jsonl", out=tmp_path / "out", val_fraction=0.0)
    *found, last = corpora.texts(tmp_path / "out", "train")
    assert last == "whole" and found == many[: len(found)]
    assert name not in ("a.jsonl.gz", "a.jsonl.zst") or 1000 < len(found) < 4000
    assert about["rejected"] == {"records": 1, "by_reason": {"damaged archive": 1}}


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_an_archive_that_swells_comes_in_small_blocks(tmp_path: Path, name: str) -> None:
    data = b"\0" * 40_000_000
    (tmp_path / name).write_bytes((gzip.compress if name == "a.gz" else zstandard.ZstdCompressor().compress)(data))
    with open(tmp_path / name, "rb") as stream:
        found = list(streams.blocks(sources.source(str(tmp_path / name)), stream))
    assert b"".join(found) == data and max(map(len, found)) < 2 * streams.BLOCK


def test_a_text_that_is_not_utf8_is_left_out_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "PART", 1000)
    bad = b"good " * 1000 + "Grüße".encode("latin-1") + b" bad" * 1000
    (tmp_path / "a.txt").write_bytes(b"before<>" + bad + b"<>behind<>" + bad)
    about = corpora.made(tmp_path / "a.txt", out=tmp_path / "out", val_fraction=0.0, document_separator="<>")
    assert corpora.texts(tmp_path / "out", "train") == ["before", "behind"]
    assert [(one["record"], one["reason"]) for one in rejected(tmp_path / "out")] == [(2, "not UTF-8"), (4, "not UTF-8")]
    assert "near byte 5010" in str(rejected(tmp_path / "out")[0]["detail"])
    assert about["parts"]["train"]["bytes"] == len("beforebehind")


def test_lines_and_texts_that_are_too_long_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (items, encoding, stretches, tables):
        monkeypatch.setattr(module, "LONGEST_RECORD", 10_000)
    monkeypatch.setattr(streams, "BLOCK", 4_000)
    documents = ["first", "x" * 30_000, "middle", "y" * 9_000, "z" * 10_500, "last", "w" * 40_000]
    expected = ["first", "middle", "y" * 9_000, "last"]
    (tmp_path / "a.jsonl").write_bytes(lines(documents))
    write_parquet(tmp_path / "a.parquet", [*documents])
    for name in ("a.jsonl", "a.parquet"):
        corpora.made(tmp_path / name, out=tmp_path / "out" / name, val_fraction=0.0)
        assert corpora.texts(tmp_path / "out" / name, "train") == expected
        assert [(one["record"], one["reason"]) for one in rejected(tmp_path / "out" / name)] == [
            (n, "too long") for n in (2, 5, 7)
        ]


def test_too_many_bad_records_stop_the_job_and_may_be_allowed_then(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{\n" + lines(DOCUMENTS))
    with pytest.raises(UserError) as caught:
        corpora.made(tmp_path / "a.jsonl", out=tmp_path / "out", max_rejected=0.001)
    text = str(caught.value)
    assert "1 of 501 records (0.2 %)" in text and "a.jsonl, record 1: broken JSON" in text
    assert not (tmp_path / "out" / "manifest.json").exists() and len(rejected(tmp_path / "out")) == 1
    allowed = float(text.partition("leave them out with max_rejected=")[2].partition(":")[0])
    assert corpora.made(tmp_path / "a.jsonl", out=tmp_path / "out", max_rejected=allowed)["rejected"]["records"] == 1


def test_where_many_records_are_bad_the_job_stops_before_it_has_read_all(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"other": 1}\n' * 400_000)
    with pytest.raises(UserError, match="field missing") as caught:
        corpora.made(tmp_path / "a.jsonl", out=tmp_path / "out", max_rejected=0.5)
    assert "400,000" not in str(caught.value)


def test_words_that_lead_nowhere_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        corpora.made(tmp_path / "nothing.txt", tmp_path / "empty", "wokers=3", out=tmp_path / "out")
    assert len(caught.value.problems) == 3
    (tmp_path / "a.txt").write_text(" \n ")
    with pytest.raises(UserError, match="The corpus is empty"):
        corpora.made(tmp_path / "a.txt", out=tmp_path / "out")
    write_parquet(tmp_path / "a.parquet", ["x"])
    with pytest.raises(UserError, match=r"has no column body, but text, n\."):
        corpora.made(tmp_path / "a.parquet", out=tmp_path / "other", text_field="body")


def test_no_file_is_read_twice_and_none_of_the_corpus_itself(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    about = corpora.made(tmp_path / "b.txt", tmp_path, tmp_path / "b.txt", out=tmp_path / "out", val_fraction=0.0)
    assert [source["path"] for source in about["source"]] == [str(tmp_path / "b.txt"), str(tmp_path / "a.md")]
    assert corpora.texts(tmp_path / "out", "train") == ["b", "a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_files_that_may_not_be_read_or_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(UserError, match=r"a.txt cannot be read: Permission denied"):
        corpora.made(tmp_path / "a.txt", out=tmp_path / "out")
    (tmp_path / "a.txt").chmod(0o600)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o500)
    with pytest.raises(UserError, match=r"out.*Permission denied"):
        corpora.made(tmp_path / "a.txt", out=tmp_path / "out")


def test_without_the_extra_plain_files_are_read_and_others_say_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pyarrow", "pyarrow.parquet", "zstandard", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(["a"])))
    corpora.made(tmp_path / "a.jsonl.gz", out=tmp_path / "plain")
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    (tmp_path / "a.parquet").write_bytes(b"")
    for options in ({"inputs": [tmp_path / "a.jsonl.zst"]}, {"inputs": [tmp_path / "a.parquet"]}):
        with pytest.raises(UserError, match=r'pip install "gpt-pretrain\[corpora\]"'):
            corpora.made(*options["inputs"], out=tmp_path / options["inputs"][0].suffix)
    with pytest.raises(UserError, match=r"package datasets, .* pip install"):
        corpora.made(dataset="some/thing", out=tmp_path / "out2")


def test_a_column_of_bytes_is_text_where_it_is_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    values = [text.encode() for text in DOCUMENTS[:50]] + [b"\xff"]
    pq.write_table(pa.table({"text": pa.array(values, pa.binary())}), file)
    made = corpora.made(file, out=tmp_path / "out", val_fraction=0)
    assert corpora.texts(tmp_path / "out", "train") == DOCUMENTS[:50]
    assert made["rejected"]["by_reason"] == {"not UTF-8": 1}


def test_a_file_that_is_one_array_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}]))
    with pytest.raises(UserError, match="a JSON array; one object a line is wanted, with the field text"):
        corpora.made(tmp_path / "a.json", out=tmp_path / "out", max_rejected=0.0)
