"""Assigning documents to the training and validation sets, leaving out duplicates, and the report of a corpus."""

import json
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import assigning, report
from gpt_pretrain.prepare.assigning import DocumentSplit, choose_split, find_duplicates
from gpt_pretrain.prepare.encoded_batch import COMPLETE, REJECTED, ROW
from gpt_pretrain.prepare.encoded_corpus import EncodedCorpus
from gpt_pretrain.prepare.segments import RecordCounts
from tests.helpers import corpora
from tests.helpers.command_line import gpt_pretrain


class CorpusOfRows(EncodedCorpus):
    """An encoded corpus that has rows but no tokens."""

    def __init__(self, rows: np.ndarray) -> None:
        self._all_rows, self.n_rows = rows, len(rows)

    def rows(self, start: int = 0, *, count: int = 1000):
        for first in range(start, self.n_rows, count):
            yield first, self._all_rows[first : first + count]


def random_rows(count: int, *, seed: int, n_texts: int | None = None) -> np.ndarray:
    """Return documents of random lengths, some of them rejected.

    Args:
        n_texts: Number of different texts; by default all are different.
    """
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, ROW)
    hashes = rng.bytes(16 * (n_texts or count))
    chosen = np.arange(count) if n_texts is None else rng.integers(n_texts, size=count)
    rows["hash"] = np.frombuffer(hashes, "V16")[chosen]
    rows["tokens"], rows["bytes"] = rng.integers(1, 1000, count), rng.integers(1, 4000, count)
    rows["state"] = np.where(rng.random(count) < 0.05, REJECTED, COMPLETE)
    return rows


@pytest.mark.parametrize("bucket_bytes", [1 << 26, 5000])
def test_the_first_of_several_equal_texts_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_bytes: int) -> None:
    monkeypatch.setattr(assigning, "BUCKET_BYTES", bucket_bytes)
    rows = random_rows(5000, seed=1, n_texts=2000)
    seen: set[bytes] = set()
    expected = []
    for row in rows:
        text, rejected = row["hash"].tobytes(), row["state"] == REJECTED
        expected.append(assigning.LEFT_OUT if rejected or text in seen else assigning.TRAIN)
        seen |= set() if rejected else {text}
    path, count = find_duplicates(CorpusOfRows(rows), tmp_path)
    split = DocumentSplit("", path)
    assigned = np.concatenate([split.assign(first, some) for first, some in CorpusOfRows(rows).rows(count=77)])
    assert assigned.tolist() == expected
    assert count == sum(rows["state"] == COMPLETE) - expected.count(assigning.TRAIN) > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["duplicates"]


@pytest.mark.parametrize("n_tokens", [1, 999, 50_000, 1_000_000])
def test_val_tokens_takes_the_smallest_hashes_until_it_is_reached(n_tokens: int) -> None:
    rows = random_rows(4000, seed=2)
    split = choose_split(CorpusOfRows(rows), val_fraction=0.5, val_tokens=n_tokens, duplicates=None)
    expected, tokens = set(), 0
    for row in sorted(rows[rows["state"] == COMPLETE], key=lambda row: row["hash"].tobytes()):
        if tokens >= n_tokens:
            break
        expected.add(row["hash"].tobytes())
        tokens += int(row["tokens"])
    found = rows[split.assign(0, rows) == assigning.VAL]
    assert {row["hash"].tobytes() for row in found} == expected


def test_val_fraction_takes_its_share_of_the_hashes_and_at_least_one() -> None:
    rows = random_rows(4000, seed=3)
    for fraction in (0.0, 0.1, 0.75):
        split = choose_split(CorpusOfRows(rows), val_fraction=fraction, val_tokens=None, duplicates=None)
        share = (split.assign(0, rows) == assigning.VAL).sum() / (rows["state"] == COMPLETE).sum()
        assert share == fraction == 0 or abs(share - fraction) < 0.03
    few = rows[rows["state"] == COMPLETE][:3]
    assigned = choose_split(CorpusOfRows(few), val_fraction=1e-9, val_tokens=None, duplicates=None).assign(0, few)
    smallest = min(range(3), key=lambda number: few["hash"][number].tobytes())
    assert [value == assigning.VAL for value in assigned] == [number == smallest for number in range(3)]
    for one_text in (few[:1], few[[1, 1, 1]]):
        split = choose_split(CorpusOfRows(one_text), val_fraction=0.5, val_tokens=None, duplicates=None)
        assert (split.assign(0, one_text) == assigning.TRAIN).all()
    for options in ({"val_fraction": 0.0, "val_tokens": 10**9}, {"val_fraction": 1 - 1e-12, "val_tokens": None}):
        with pytest.raises(UserError, match="leaves none for training"):
            choose_split(CorpusOfRows(few), duplicates=None, **options)


def test_duplicates_are_left_out_and_counted_across_files_of_different_kinds(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *texts[::3]]))
    (tmp_path / "b.txt").write_text("<>".join(["new", *texts[::-1], "new"]))
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    manifest = corpora.prepare(*inputs, out=tmp_path / "exact", dedup="exact", document_separator="<>", val_fraction=0.3)
    corpora.check_manifest(tmp_path / "exact")
    assert manifest["duplicates"] == 17 + 50 + 1
    train, val = (corpora.texts(tmp_path / "exact", part) for part in ("train", "val"))
    assert train == [text for text in [*texts, "new"] if not corpora.is_validation(text, 0.3)]
    assert val == [text for text in [*texts, "new"] if corpora.is_validation(text, 0.3)]
    manifest = corpora.prepare(*inputs, out=tmp_path / "all", document_separator="<>", val_fraction=0.3)
    assert manifest["duplicates"] == 0
    assert manifest["parts"]["train"]["documents"] + manifest["parts"]["val"]["documents"] == 119
    assert not set(corpora.texts(tmp_path / "all", "train")) & set(corpora.texts(tmp_path / "all", "val"))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`gpt-pretrain prepare`, run in the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        gpt_pretrain("prepare", *arguments)

    return run


def test_a_report_shows_lengths_compression_and_excerpts(tmp_path: Path, command, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = [1, 2, 3, 4, 7, 8, 900, 5]
    (tmp_path / "a.txt").write_text("|".join(chr(ord("a") + index) * length for index, length in enumerate(lengths)))
    arguments = (
        "a.txt",
        "out=out",
        "tokenizer=byte",
        "document_separator=|",
        "shard_tokens=100",
        "workers=1",
        "--val_fraction=0",
    )
    command(*arguments, "--dedup", "exact", "--report")
    first = capsys.readouterr().out
    command(*arguments, "--dedup=exact", "--report")
    again = capsys.readouterr().out
    shown = again[again.index("\ntrain: ") :]
    assert shown == first[first.index("\ntrain: ") :]
    assert "1.00 bytes of text per token" in shown and "Tokens per document: 1 to 900, 116 on average" in shown
    bins = {line.split()[0]: line.split()[3] for line in shown.splitlines() if " to " in line and line.startswith("  ")}
    assert bins == {"1": "1", "2": "2", "4": "3", "8": "1", "16": "0", "32": "0", "64": "0", "128": "0", "256": "0", "512": "1"}
    assert "document 1: a\n" in shown and "document 3: ccc\n" in shown and "document 6: ffffffff\n" in shown
    document = {"part": corpora.read_manifest(tmp_path / "out")["parts"]["train"], "folder": tmp_path / "out", "number": 6}
    excerpt = report.document_excerpt(**document, tokenizer=corpora.cached_tokenizer("byte"), itemsize=2)
    assert excerpt == "g" * report.EXCERPT_TOKENS + " ..."
    document["number"] = 7
    assert report.document_excerpt(**document, tokenizer=corpora.cached_tokenizer("byte"), itemsize=2) == "hhhhh"


def test_all_invalid_settings_are_reported_together(command, capsys: pytest.CaptureFixture[str]) -> None:
    invalid = {
        "val_fraction": "1",
        "dedup": "fuzzy",
        "shard_tokens": "0",
        "workers": "0",
        "max_rejected": "2",
        "document_separator": "",
    }
    with pytest.raises(SystemExit) as caught:
        command("out=out", *(f"--{name}={value}" for name, value in invalid.items()))
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert all(f"{name}=" in message for name in invalid)
    assert "There is no input" in message and not Path("out").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_document(tmp_path: Path) -> None:
    peaks = []
    for megabytes in (20, 120):
        with open(tmp_path / "a.txt", "wb") as stream:
            for _ in range(megabytes):
                stream.write(b"some words of a very long text\n" * 32_258)
        arguments = [str(tmp_path / "a.txt"), f"out={tmp_path / str(megabytes)}", "workers=2", "tokenizer=byte"]
        process = psutil.Popen([sys.executable, "-m", "gpt_pretrain", "prepare", *arguments])
        peak = 0
        while process.poll() is None:
            try:
                peak = max(peak, sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]))
            except psutil.NoSuchProcess:
                continue
        assert process.returncode == 0
        peaks.append(peak)
    assert peaks[1] < 450e6 and peaks[1] < peaks[0] + 150e6, peaks


@pytest.mark.parametrize(("val", "warned"), [(5, False), (500, True)])
def test_more_validation_than_training_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], val: int, warned: bool
) -> None:
    parts = {
        name: {"documents": 1, "tokens": size, "bytes": size, "shards": ["a"]} for name, size in (("train", 50), ("val", val))
    }
    report.print_summary({"parts": parts, "duplicates": 0}, RecordCounts(records=2), tmp_path)
    assert ("The validation set has more text than the training set." in capsys.readouterr().out) == warned
