"""Datasets of strangers: what they cost in memory and time, and what of them is read."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.zip import ZipFileSystem

from gpt_pretrain.errors import UserError
from gpt_pretrain.texts.datasets import guard
from gpt_pretrain.texts.datasets.arrow_tables import ArrowLimit
from gpt_pretrain.texts.datasets.guard import own_files_only
from gpt_pretrain.texts.inputs import StreamedDataset
from gpt_pretrain.texts.records.tables import _open_dataset
from tests.conftest import ROOT
from tests.helpers.read_datasets import read
from tests.helpers.resource_limits import within
from tests.security.test_costly_archives import shared

pytest.importorskip("datasets")


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_a_small_archive_does_not_expand_without_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.ALWAYS_READ", 1 << 20)
    content = b"a" * 4095 + b"\n"
    for count, fits in ((10, True), (10_000, False)):
        if kind == "gz":
            packer = zlib.compressobj(9, wbits=31)
            (tmp_path / "x.txt.gz").write_bytes(packer.compress(content * count) + packer.flush())
        else:
            with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("x.txt", content * count)
        if fits:
            assert len(read(tmp_path)) == count
        else:
            with pytest.raises(UserError, match="expands to more than 250 times its size"):
                read(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.txt.gz", b"a\n" * 12_000),
        ("x.jsonl.gz", b'{"text":"a"}\n' * 12_000),
        ("x.json.gz", b"[" + b",".join([b'{"text":"a"}'] * 12_000) + b"]"),
        ("x.csv.gz", b"text,n\n" + b"a,1\n" * 12_000),
        ("x.csv.gz", b"text,n\n" + b"a<|endoftext|>" * 12_000 + b",1\n"),
    ],
)
def test_a_small_archive_has_no_more_records_than_its_size_explains(
    name: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.ALWAYS_READ", 1 << 20)
    (tmp_path / name).write_bytes(gzip.compress(data))
    with pytest.raises(UserError, match="more records than its size explains"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "n_rows", "problem"),
    [
        ("a" * 1000, 3000, "is more than 250 times as large"),
        ("a", 30_000, "more records than its size explains"),
        ("a<|endoftext|>" * 10, 2000, "more records than its size explains"),
    ],
)
def test_the_rows_of_a_small_table_are_left_at_a_limit(
    text: str, n_rows: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.ALWAYS_READ", 1 << 20)
    values = pa.DictionaryArray.from_arrays(pa.array([0] * n_rows, pa.int8()), pa.array([text]))
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet", store_schema=False)
    with pytest.raises(UserError, match=problem):
        read(tmp_path)


def test_the_members_of_an_archive_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_lists, read_list = [0], zipfile.ZipFile._RealGetContents  # type: ignore[attr-defined]

    def counted(archive: zipfile.ZipFile) -> None:
        n_lists[0] += 1
        read_list(archive)

    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        for number in range(50):
            made.writestr(f"{number:02d}.txt", f"{number}\n")
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", counted)
    assert read(tmp_path) == [str(number) for number in range(50)]
    assert n_lists[0] < 10


def test_only_a_few_of_many_archives_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_OPEN", 3)
    most, open_archive = [0], zipfile.ZipFile.__init__

    def opened(archive: zipfile.ZipFile, *arguments: Any, **options: Any) -> None:
        most[0] = max(most[0], len(ZipFileSystem._cache))
        open_archive(archive, *arguments, **options)

    for number in range(20):
        with zipfile.ZipFile(tmp_path / f"{number:02d}.zip", "w") as made:
            made.writestr("a.txt", f"{number}\n")
    monkeypatch.setattr(zipfile.ZipFile, "__init__", opened)
    assert read(tmp_path) == [str(number) for number in range(20)]
    assert 0 < most[0] < 3


def test_members_of_an_archive_that_share_their_bytes_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(shared(bz2.compress(b"text"), 1))
    assert read(tmp_path) == ["text"]
    (tmp_path / "x.zip").write_bytes(shared(bz2.compress(b"text"), 3))
    with pytest.raises(UserError, match="overlap"):
        read(tmp_path)


def test_a_small_description_of_a_dataset_does_not_expand(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    doubling = "a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 33))
    for name, text in (("README.md", f"---\n{doubling}---\n"), (".huggingface.yaml", doubling)):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="its description is not read: it holds the key <<"):
            read(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "README.md").write_text(f"---\n{doubling.replace('<<', 'x')}---\n")
    with pytest.raises(UserError, match="its description is not read: its aliases stand for more than"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("n_patterns", "message"),
    [(20, ""), (21, r"data\.jsonl 21 times, and it would be read each time"), (40, "more than 60 times for them")],
)
def test_a_description_does_not_list_a_file_many_times(
    n_patterns: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MAX_PATTERNS", 60)
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n')
    listed = "  - data.jsonl\n" * n_patterns
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n")
    if not message:
        assert read(tmp_path) == ["one"] * n_patterns
        return
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_a_description_has_a_limited_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_DESCRIPTION", 1000)
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "README.md").write_text("---\ntags:\n" + "- a\n" * 300 + "---\n")
    with pytest.raises(UserError, match="its description is not read: it has more than 1,000 characters"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "setting"),
    [
        ("a.csv", "text\n" + "a" * 40 + "!\n", 'sep: "(a+)+b"'),
        ("a.csv", "text\n" + "a" * 40 + "!\n", 'delimiter: "(a+)+b"'),
        ("a.csv", "text\n" + '",' * 3000, "sep: null"),
        ("a.csv", "text\none\n", "engine: python"),
        ("a.txt", "a\n" * 30_000, "sample_by: paragraph\n  chunksize: 1"),
        ("a.jsonl", '{"text": "one"}\n', "block_size: 1"),
    ],
)
def test_a_description_does_not_choose_how_long_reading_takes(tmp_path: Path, name: str, content: str, setting: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {name}\n  {setting}\n---\n")
    with pytest.raises(UserError, match=r"its description sets (sep|engine|chunksize|block_size)=.* unlimited time"):
        read(tmp_path)


def test_a_description_may_say_what_separates_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n;text\n1;one\n")
    (tmp_path / "README.md").write_text('---\nconfigs:\n- config_name: default\n  data_files: a.csv\n  sep: ";"\n---\n')
    assert read(tmp_path) == ["one"]


@pytest.mark.parametrize("encoding", ["punycode", "' PunyCode'"])
def test_an_encoding_that_takes_quadratic_time_is_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("-" + "a" * 1000)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: a.txt\n  encoding: " + f"{encoding}\n---\n"
    )
    with pytest.raises(UserError, match=r"asks for the encoding \s?(?i:punycode)"):
        read(tmp_path)


def test_a_small_parquet_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 300_000]))
    pq.write_table(pa.table({"text": rows, "n": list(range(1000))}), tmp_path / "train.parquet", store_schema=False)
    pool = pa.default_memory_pool()
    with own_files_only(str(tmp_path)):
        records = _open_dataset(StreamedDataset(str(tmp_path), None, "train"), "text", ArrowLimit())
        before = pool.bytes_allocated()
        table = next(iter(records.with_format("arrow").iter(batch_size=1)))
        assert len(table["text"][0].as_py()) == 300_000 and pool.bytes_allocated() - before < 100e6


def repeat_in_lists(n_rows: int) -> pa.ListArray:
    """Return lists, of which one stands for 4 GB of text in a few hundred bytes."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 40_000, pa.int32()), pa.array(["x" * 100_000]))
    return pa.ListArray.from_arrays(pa.array([0] * n_rows + [40_000], pa.int32()), text)


def test_only_the_column_of_text_is_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["one", "two"], "other": repeat_in_lists(2)})
    pq.write_table(table, tmp_path / "train.parquet", compression="zstd", store_schema=False)
    with within(seconds=5, megabytes=100):
        assert read(tmp_path) == ["one", "two"]


def test_each_parquet_file_has_the_column_as_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "train-0.parquet")
    hostile = pa.table({"text": repeat_in_lists(1)})
    pq.write_table(hostile, tmp_path / "train-1.parquet", compression="zstd", store_schema=False)
    with within(seconds=5, megabytes=100), pytest.raises(UserError, match=r"train-1\.parquet: .* of the type list<.*, not text"):
        read(tmp_path)


# Reads in a process of its own: another one may still have freed memory, which no limit counts.
READ_BOUNDED = """
import sys
from pathlib import Path
from gpt_pretrain.texts.datasets import guard
from gpt_pretrain.texts.records import tables
from tests.helpers.resource_limits import within
from tests.helpers.read_datasets import read
tables.DATASET_MEMORY = 1 << 26
with within(seconds=20, megabytes=600):
    try:
        read(Path(sys.argv[1]))
    except tables.UserError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
@pytest.mark.parametrize("kind", ["jsonl", "txt", "csv", "arrow of texts", "arrow of lists"])
def test_the_memory_of_other_kinds_is_bounded(kind: str, tmp_path: Path) -> None:
    if "arrow" in kind:
        column = pa.array(["x" * 3_000_000] * 60) if "texts" in kind else repeat_in_lists(1)
        table = pa.table({"text": column} if "texts" in kind else {"text": ["one"], "other": column})
        with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
            stream.write_table(table)
    else:
        path = tmp_path / f"a.{kind}"
        path.write_bytes({"jsonl": b'{"text": "', "txt": b"", "csv": b'text,n\n"'}[kind])
        os.truncate(path, 2 << 30)  # a line without end, of zeros that take no space on the disk
    command = [sys.executable, "-c", READ_BOUNDED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert re.search(r"needs more than .* GB of memory .* as inputs", done.stdout), done.stderr


def test_a_description_does_not_filter_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: a.parquet\n  filters: [[n, '>', 0]]\n---\n"
    )
    with pytest.raises(UserError, match="its description filters the rows"):
        read(tmp_path)


def test_parquet_files_of_a_dataset_are_read_in_order(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text {n}" for n in range(1000)], "n": [{"a": [n] * 3} for n in range(1000)]})
    for name in ("train-0.parquet", "train-1.parquet"):
        pq.write_table(table, tmp_path / name, row_group_size=300)
    assert read(tmp_path) == [f"text {n}" for n in range(1000)] * 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\n".join(f'{{"f{number}": 1}}' for number in range(20_000))),
        ("a.jsonl", "".join(f'{{"f{number}": 1}}' for number in range(20_000))),
        ("a.json", "[" + ",".join(f'{{"f{number}": 1}}' for number in range(20_000)) + "]"),
    ],
    ids=["lines", "one line", "array"],
)
def test_records_with_very_many_fields_are_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with within(seconds=20, megabytes=600), pytest.raises(UserError, match="more than 2,000 different fields"):
        read(tmp_path)


def test_a_record_of_brackets_within_brackets_does_not_end_the_program(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "x": ' + "[" * 5_000_000 + "\n")
    command = [sys.executable, "-c", READ_BOUNDED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert "far too many brackets within brackets" in done.stdout, done.stderr


def test_objects_with_any_names_in_a_field_are_read(tmp_path: Path) -> None:
    rows = [{"text": "one", "facts": {f"f{number}": number}} for number in range(3000)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read(tmp_path) == ["one"] * 3000


def test_other_columns_of_csv_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,text\n1,one\n2,two\n", encoding="utf-8")
    with own_files_only(str(tmp_path)):
        records = _open_dataset(StreamedDataset(str(tmp_path), None, "train"), "text", ArrowLimit())
        assert list(records) == [{"text": "one"}, {"text": "two"}]
