"""Small files from strangers neither fill the memory nor keep a reader busy; each ends in one clear message."""

from __future__ import annotations

import copy
import gzip
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.checkpoints.serialization.tensor_files import read_torch_file
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.prepare import shards
from gpt_pretrain.prepare.segments import JOURNAL, SegmentWriter, read_journal
from gpt_pretrain.prepare.tokenizing import encode_batch
from gpt_pretrain.system.json_files import count_outer_marks, parse_json
from gpt_pretrain.system.nested_values import MAX_VALUES
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.texts import reading
from gpt_pretrain.texts.chunks import ReadPosition, RejectedRecord
from gpt_pretrain.texts.inputs import CorpusInputs, stat_input_file
from gpt_pretrain.texts.text import Text
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.conftest import ROOT
from tests.helpers.hostile_files import save_with_checksum, shared_list
from tests.helpers.resource_limits import within
from tests.security.fuzz import fuzz
from tests.security.fuzz_readers import READERS


def lines_of(path: Path) -> Iterator[Any]:
    """Read and encode a file as `gpt-pretrain prepare` does, in this process."""
    inputs = CorpusInputs([stat_input_file(str(path))], None, "text", None, [], [])
    for chunks in reading.batch_chunks(reading.read_inputs(inputs, ByteTokenizer(), start=ReadPosition())):
        yield encode_batch(chunks, "byte", "text")


def test_a_line_of_countless_values_is_left_out(tmp_path: Path) -> None:
    line = b'{"text":"hello","x":[' + b"[]," * 20_000_000 + b"0]}\n"
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb") as stream:
        stream.write(line + b'{"text":"a second one"}\n')
    with within(seconds=10, megabytes=400):
        found = list(lines_of(tmp_path / "bomb.jsonl.gz"))
    assert [record.reason for batch in found for record in batch.rejected] == ["too many values"]
    assert sum(len(batch.rows) for batch in found) == 1


def test_a_book_as_one_json_string_is_read(tmp_path: Path) -> None:
    text = 'He said: "no, [never], {never}", and left; ' * 250_000
    (tmp_path / "book.jsonl").write_text(json.dumps({"text": text}) + "\n")
    batches = list(lines_of(tmp_path / "book.jsonl"))
    assert sum(int(batch.rows["bytes"].sum()) for batch in batches) == len(text)


def test_short_lines_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_bytes(b"x\n" * 100_000)
    batches = lines_of(tmp_path / "short.jsonl")
    with within(seconds=20, megabytes=100):
        rejected = [batch.by_reason.total() for batch in batches]
    assert sum(rejected) == 100_000 and max(rejected) < 50_000


def test_an_archive_that_would_fill_the_disk_is_left_at_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.ALWAYS_READ", 1_000_000)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"a " * 10_000_000))
    (tmp_path / "fine.txt.gz").write_bytes(gzip.compress(b"a " * 400_000))
    chunks = list(
        reading.read_inputs(
            CorpusInputs([stat_input_file(str(tmp_path / "bomb.txt.gz"))], None, "text", None, [], []),
            ByteTokenizer(),
            start=ReadPosition(),
        )
    )
    assert isinstance(chunks[-1].content, RejectedRecord) and "250 times as large" in chunks[-1].content.detail
    assert sum(int(batch.rows["bytes"].sum()) for batch in lines_of(tmp_path / "fine.txt.gz")) == 800_000


HOSTILE = {
    "columns.csv": b"text," + b"," * 40_000_000 + b"\n",
    "row.csv": b"text,a\n" + b"ab," * 20_000_000 + b"\n",
    "quote.csv": b'text,a\n"' + b"x\n" * 400_000,
    "array.json": b"[" + b"[]," * 400_000 + b"[]]",
    "deep.json": b"[" * 100_000_000,
    "escapes.json": b'["' + b"\\" * 100_000_000,
    "values.json": b'[{"text":"a","x":[' + b"[]," * 20_000_000 + b"[]]}]",
    "lines.csv": b"text\n" + b"\n" * 2_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_and_arrays_are_read_in_little_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(HOSTILE[name], 1))
    with within(seconds=30, megabytes=400):
        rows = sum(len(batch.rows) for batch in lines_of(tmp_path / f"{name}.gz"))
    assert rows == 0


def test_archives_of_countless_files_are_read_in_little_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(200_000):
            archive.writestr(zipfile.ZipInfo(f"{number:x}" + "y" * 100), b"")
    with within(seconds=10, megabytes=100), pytest.raises(UserError, match="too many files"):
        list(Text((tmp_path / "many.zip",)).pieces())
    header = tarfile.TarInfo("a").tobuf()
    with gzip.open(tmp_path / "many.tar.gz", "wb", 1) as stream:
        stream.write(header * 20_000)
    with within(seconds=60, megabytes=100):
        assert list(Text((tmp_path / "many.tar.gz",)).pieces()) == []


def test_a_text_in_a_table_that_is_not_utf8_is_left_out_alone(tmp_path: Path) -> None:
    values = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers())
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    batches = list(lines_of(tmp_path / "a.parquet"))
    assert [record.reason for batch in batches for record in batch.rejected] == ["not UTF-8"]
    assert sum(len(batch.rows) for batch in batches) == 2


def test_a_hostile_journal_is_damaged(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b'{"piece": {"path": "/etc/passwd"}, "state": {}}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl is damaged"):
        read_journal(tmp_path)


def test_no_segment_is_listed_again(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, itemsize=2)
    writer.finish_segment(complete=True)
    writer.close()
    (tmp_path / JOURNAL).write_bytes((tmp_path / JOURNAL).read_bytes() * 2)
    with pytest.raises(UserError, match=r"it names '00000\.bin' in place of 00001\.bin"):
        read_journal(tmp_path)


def test_a_shard_is_read_once_however_often_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"file": "train-00000.bin", "starts": "train-00000.idx", "documents": 1, "tokens": 1, "bytes": 1}
    entry |= {"sha256": "0", "starts_sha256": "0"}
    for name in (shards.FINISHED, "../train-00000.bin", "../train-00000.idx"):
        (tmp_path / shards.WORK).mkdir(exist_ok=True)
        (tmp_path / shards.WORK / name).write_bytes(json.dumps(entry).encode() + b"\n")
    (tmp_path / shards.WORK / shards.FINISHED).write_bytes((json.dumps(entry).encode() + b"\n") * 100)
    read = list[Path]()
    monkeypatch.setattr(shards, "sha256", lambda path: read.append(path) or "0")
    assert list(shards._finished_shards(tmp_path, {"train-00000": None})) == ["train-00000"]  # type: ignore[dict-item]
    assert len(read) == 2


@pytest.mark.parametrize("content", ["[],", '{"":0},', "{},", '{"a":[1]},'])
def test_the_memory_of_json_is_bounded_before_it_is_parsed(content: str) -> None:
    data = '{"a": [' + content * (20_000_000 // len(content)) + "0]}"
    with within(seconds=5, megabytes=250), pytest.raises(DamagedFileError, match=f"more than {MAX_VALUES:,} values"):
        parse_json(data)


@given(
    st.recursive(
        st.integers() | st.text('"\\\\[{,:a'), lambda inner: st.lists(inner) | st.dictionaries(st.text('"\\\\,:'), inner)
    ),
    st.integers(1, 9),
)
def test_marks_are_counted_outside_of_strings(value: Any, block: int) -> None:
    data = json.dumps(value).encode()
    expected = sum(map(re.sub(rb'"(?:[^"\\]|\\.)*"', b"", data).count, (b"[", b"{", b",", b":")))
    assert count_outer_marks(data, block=block) == expected


def test_json_has_no_deep_parts_and_no_endless_numbers() -> None:
    for content in ('{"a": ' * 101 + "1" + "}" * 101, '{"a": ' + "[" * 200 + "]" * 200 + "}", '{"a": ' + "9" * 101 + "}"):
        with pytest.raises(DamagedFileError, match=r"levels deep|digits"):
            parse_json(content)
    assert parse_json('{"a": 1000000000000000019884624838656}') == {"a": 1000000000000000019884624838656}


def test_a_value_in_a_message_is_short() -> None:
    for value in (shared_list(20), {"a": "x" * 10**7}, "x" * 10**7, b"x" * 10**7, 10**4000, [[[[[[1]]]]]], torch.zeros(9)):
        assert len(short_repr(value)) < 500
    assert short_repr([1, "a", None, 1.5, {"b": (2,)}]) == "[1, 'a', None, 1.5, {'b': (2,)}]"
    with within(seconds=1, megabytes=50), pytest.raises(UserError):
        GPTConfig(shared_list(), 1, 1, "x" * 10**6, 1)  # type: ignore[arg-type]


def test_a_storage_that_is_shorter_than_its_tensor_is_damaged(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(100.0), "b": torch.zeros(100)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content[:40] if name.endswith("data/0") else content)
    with pytest.raises(UserError, match="claims 400 bytes, and the archive has 40"):
        read_torch_file(tmp_path / "x.pth")


def test_an_index_of_pieces_names_each_row_once(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "data" / "compat" / "0.1.0" / "sharded" / "checkpoints", tmp_path / "pieces")
    path = tmp_path / "pieces" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    assert read_checkpoint(path)["state_dict"]
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "the invalid reference": lambda content: content["state_dict"].update(again=next(iter(content["state_dict"].values()))),
        "lists a shard twice": lambda content: content["shards"].update(files=content["shards"]["files"] * 2),
        "describes a shard as": lambda content: content["shards"]["files"].append({}),
        "does not list its shards": lambda content: content.update(shards=[]),
        "are missing": lambda content: next(iter(content["state_dict"].values())).update(rows=10**12),
        "list its shards": lambda content: content["shards"].update(folder=".."),
        "describes a shard as {'name'": lambda content: content["shards"]["files"][0].update(name="a\0b"),
        "lists invalid rows": lambda content: content["shards"]["files"][0]["rows"].update(x=[0, -1]),
    }
    for message, change in changes.items():
        changed = copy.deepcopy(content)
        change(changed)
        with within(seconds=3, megabytes=100), pytest.raises(UserError, match=message):
            read_checkpoint(save_with_checksum(changed, path))


@pytest.mark.parametrize("name", [name for name in READERS if name != "page"])
def test_changed_files_end_in_a_message(name: str) -> None:
    """A few of the cases that `python -m tests.security.fuzz` runs by the thousand."""
    assert fuzz(name, cases=30).findings == []


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_changed_files_end_in_a_message(name: str) -> None:
    assert fuzz(name, cases=20 if name == "page" else 500, seed=1).findings == []


@pytest.mark.parametrize("name", ["torch", "tokenizer", "study"])
def test_the_files_that_a_fuzzer_changes_are_the_same_each_time(name: str, tmp_path: Path) -> None:
    made = []
    for number in range(2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        READERS[name].make(folder)
        made.append({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert made[0] == made[1]
