"""Corpora of strangers: counts that no shard has, files that are something else, and numbers that contradict each other."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_pretrain.commands.prepare import prepare_command
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.shards.corpus import split_corpus
from gpt_pretrain.data.shards.formats import open_corpus
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import pipeline
from gpt_pretrain.prepare.encoded_batch import ROW
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.formats.nanogpt_meta import read_meta
from tests.helpers.made_shards import BYTE, random_documents, write_shards
from tests.helpers.resource_limits import within


def split(folder: Path, *, verify: bool = False) -> object:
    return split_corpus(open_corpus(LocalFiles(folder)), BYTE, train_ratio=0.9, verify=verify)


@pytest.mark.parametrize("count", [-1, -100, -506])
def test_a_shard_cannot_have_fewer_tokens_than_none(tmp_path: Path, count: int) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = (20240520, 1, count)
    # The size of the file agrees with the count.
    (tmp_path / "x_train_000000.bin").write_bytes(header.tobytes()[: 1024 + 2 * count])
    with pytest.raises(UserError, match=r"x_train_000000\.bin is damaged: it states an impossible number of tokens"):
        split(tmp_path)


@pytest.mark.parametrize("shape", ["0x1" + "0" * 5000, "-5", str(2**63), "True"], ids=["endless", "negative", "huge", "a truth"])
def test_an_array_states_a_number_of_tokens_that_can_be(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({shape},), }}"
    data = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header.encode() + bytes(100)
    (tmp_path / "train.npy").write_bytes(data)
    with pytest.raises(UserError, match=r"train\.npy (is damaged|has 1)"):
        split(tmp_path)


def test_a_file_that_a_manifest_lists_many_times_is_read_once_for_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "corpus", train=random_documents(40, seed=1), val=random_documents(40, seed=2))
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = manifest["parts"]["train"]["shards"]
    shards[:] = shards[:1] * 500
    (folder / "manifest.json").write_text(json.dumps(manifest))
    whole, read_range = list[str](), LocalFiles.read

    def read(files: LocalFiles, name: str, start: int, count: int) -> bytes:
        if name == shards[0]["file"] and start == 0 and count >= shards[0]["bytes"]:
            whole.append(name)
        return read_range(files, name, start, count)

    monkeypatch.setattr(LocalFiles, "read", read)
    split(folder)
    without = len(whole)
    whole.clear()
    split(folder, verify=True)
    assert len(whole) == without + 1


def test_a_link_to_itself_does_not_hide_the_other_files(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "corpus", train=random_documents(20, seed=1))
    (folder / "loop.bin").symlink_to("loop.bin")
    assert "train-00000.bin" in LocalFiles(folder).names() and "loop.bin" not in LocalFiles(folder).names()


# The report of a corpus


@pytest.fixture
def corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"Document {n} " * (n % 5 + 1)}) + "\n" for n in range(50)))
    prepare_command([str(tmp_path / "a.jsonl"), f"out={tmp_path / 'corpus'}", "tokenizer=byte", "workers=1", "val_fraction=0.2"])
    capsys.readouterr()
    return tmp_path / "corpus"


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a number as text": lambda part: part.update(documents="7"),
    "more documents than in the shards": lambda part: part.update(documents=10**6),
    "no size of the text": lambda part: part.pop("bytes"),
    "fewer tokens than none": lambda part: part["shards"][0].update(tokens=-1),
    "an endless number": lambda part: part.update(bytes=10**99),
    "shards that are no list": lambda part: part.update(shards=7),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_report_of_a_corpus_refuses_numbers_that_cannot_be(corpus: Path, name: str) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    MANIFESTS[name](manifest["parts"]["train"])
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json is damaged|differs from the manifest"):
        prepare_command([f"out={corpus}", "report=true"])


@pytest.mark.parametrize("source", [5, "x", ["x"], {"a": 1}, None])
def test_the_sources_of_a_corpus_may_be_anything(corpus: Path, source: object) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    (corpus / "manifest.json").write_text(json.dumps(manifest | {"source": source}))
    with pytest.raises(UserError, match=r"contains a corpus \(complete\) that differs from the requested one"):
        prepare_command([str(corpus.parent / "a.jsonl"), f"out={corpus}", "tokenizer=byte", "workers=1", "val_fraction=0.2"])


@pytest.mark.parametrize("failed", [5, "x", {"a": 1}, ["one\nThe corpus is complete"]], ids=["number", "text", "table", "lines"])
def test_the_list_of_files_that_failed_may_be_anything(corpus: Path, failed: object, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    (corpus / "manifest.json").write_text(json.dumps(manifest | {"failed_files": failed}))
    prepare_command([f"out={corpus}", "report=true"])
    assert "\nThe corpus is complete" not in capsys.readouterr().out


STARTS = {"descending": [9, 5, 0], "far beyond": [0, 2**63 - 1, 2**63], "beyond any number": [2**64 - 1], "past the end": [10**6]}


@pytest.mark.parametrize("name", STARTS)
def test_documents_do_not_end_before_they_begin(corpus: Path, name: str) -> None:
    file = corpus / "train-00000.idx"
    starts = np.fromfile(file, "<u8")
    starts[: len(STARTS[name])] = STARTS[name]
    starts.tofile(file)
    with pytest.raises(UserError, match=r"train-00000\.idx is damaged: a document in it would begin after its end"):
        prepare_command([f"out={corpus}", "report=true"])


def test_the_last_document_does_not_begin_far_beyond_the_end(corpus: Path) -> None:
    file = corpus / "train-00000.idx"
    starts = np.arange(file.stat().st_size // 8, dtype="<u8")
    starts[-1] = 2**63 - 1
    starts.tofile(file)
    with pytest.raises(UserError, match=r"train-00000\.idx is damaged: a document in it would begin after its end"):
        prepare_command([f"out={corpus}", "report=true"])


def test_tokens_that_the_tokenizer_does_not_have_are_not_decoded(corpus: Path) -> None:
    file = corpus / "train-00000.bin"
    np.full(file.stat().st_size // 2, 60_000, "<u2").tofile(file)
    with pytest.raises(UserError, match=r"train-00000\.bin has token id 60000, but tokenizer=byte has only 257 ids"):
        prepare_command([f"out={corpus}", "report=true"])


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("name", [".work/plan.json", "manifest.json", "train-00000.bin"])
def test_a_corpus_is_not_prepared_where_a_file_is_something_else(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "a.txt").write_text("Some text. " * 100)
    path = tmp_path / "corpus" / name
    path.parent.mkdir(parents=True)
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    command = [str(tmp_path / "a.txt"), f"out={tmp_path / 'corpus'}", "tokenizer=byte", "workers=1"]
    for more in ([], ["overwrite=true"]):
        if more and kind == "pipe":
            continue  # a pipe of such a name is deleted
        with pytest.raises(UserError, match=r"plan\.json|manifest\.json|train-00000\.bin"):
            prepare_command([*command, *more])


# Tables of nanoGPT


def test_ids_of_a_table_are_bounded_before_they_are_keys() -> None:
    """Multiples of this number all have the hash 0, and a dict with them takes quadratic time."""
    content = pickle.dumps({"stoi": {str(number): number * (2**61 - 1) for number in range(15_000)}}, protocol=2)
    with within(0.5, 30), pytest.raises(DamagedFileError, match="its stoi has 15,000 tokens and gives '1' the id"):
        read_meta(content, end_of_text=False)


def test_an_id_of_a_table_that_is_no_number_is_damage() -> None:
    with pytest.raises(DamagedFileError, match=r"gives 'a' the id \[1\]"):
        read_meta(pickle.dumps({"stoi": {"a": [1]}}), end_of_text=False)


# A folder in which a preparation was interrupted


COMMAND = ["a.txt", "out=corpus", "tokenizer=byte", "workers=1"]
Entry = dict[str, Any]


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepare a corpus up to its shards, and return the folder of its segments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Some text. " * 100)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_shards", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_command(COMMAND)
    return tmp_path / "corpus" / ".work" / "task-00000"


JOURNALS: dict[str, Callable[[Entry], object]] = {
    "far more documents": lambda entry: entry["piece"].update(rows=2**61),
    "far more tokens": lambda entry: entry["piece"].update(tokens=2**61),
    "fewer tokens": lambda entry: entry["piece"].update(tokens=10),
    "a long list of rejected records": lambda entry: entry["state"].update(rejects_size=2**33),
    "a hash that is none": lambda entry: entry["state"].update(open_hash=5, complete=False),
    "an end that is no truth": lambda entry: entry["state"].update(complete="yes"),
    "rejected records of none": lambda entry: entry["state"]["counts"].update(records=0, by_reason={"x": 7}),
    "rejected records that are not listed": lambda entry: entry["state"]["counts"].update(by_reason={"x": 1}),
}


@pytest.mark.parametrize("name", JOURNALS)
def test_a_journal_states_what_its_files_have(interrupted: Path, name: str) -> None:
    journal = interrupted / "journal.jsonl"
    entry = json.loads(journal.read_text())
    JOURNALS[name](entry)
    journal.write_text(json.dumps(entry) + "\n")
    with within(2, 100), pytest.raises(UserError, match=r"task-00000.* is damaged"):
        prepare_command(COMMAND)
    assert sum(path.stat().st_size for path in interrupted.iterdir()) < 1e6


def change_rows(folder: Path, **values: int) -> None:
    """Change the rows of the first segment, and make its journal fit to them."""
    rows = np.fromfile(folder / "00000.rows", ROW)
    for name, value in values.items():
        rows[name] = value
    rows.tofile(folder / "00000.rows")
    entry = json.loads((folder / "journal.jsonl").read_text())
    entry["piece"]["rows_sha256"] = hashlib.sha256(rows.tobytes()).hexdigest()
    (folder / "journal.jsonl").write_text(json.dumps(entry) + "\n")


@pytest.mark.parametrize("values", [{"tokens": 50}, {"tokens": 2**63}], ids=["fewer tokens", "more"])
def test_documents_have_the_tokens_that_are_stored(interrupted: Path, values: dict[str, int]) -> None:
    change_rows(interrupted, **values)
    with pytest.raises(UserError, match="overwrite=true"):
        prepare_command(COMMAND)


@pytest.mark.parametrize("changes", [{"bytes": "many"}, {"tokens": -5}, {"documents": None}, {"bytes": 3}])
def test_a_shard_whose_entry_is_wrong_is_not_taken_for_written(interrupted: Path, changes: Entry) -> None:
    before = interrupted.parents[1].with_name("before")
    shutil.copytree(interrupted.parents[1], before)
    prepare_command(COMMAND)
    manifest = json.loads((interrupted.parents[1] / "manifest.json").read_text())
    (entry,) = manifest["parts"]["train"]["shards"]
    for file in ("train-00000.bin", "train-00000.idx"):
        shutil.copyfile(interrupted.parents[1] / file, before / file)
    (before / ".work" / "shards.jsonl").write_text(json.dumps(entry | changes) + "\n")
    again = [f"out={before}" if word.startswith("out=") else word for word in COMMAND]
    if changes == {"bytes": 3}:
        with pytest.raises(UserError, match=r"\.work is damaged: its shards contain"):
            prepare_command(again)
        return
    prepare_command(again)
    assert json.loads((before / "manifest.json").read_text())["parts"] == manifest["parts"]
