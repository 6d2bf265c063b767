"""Duplicates, the validation part, and the report of a corpus."""

import json
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import choosing, report
from gpt_pretrain.prepare.choosing import DocumentSplit, choose, find_duplicates
from gpt_pretrain.prepare.items import REJECTED, ROW, WHOLE
from gpt_pretrain.prepare.stage import Stage
from tests.helpers import corpora
from tests.helpers.command_line import gpt_pretrain


class Made(Stage):
    """A stage of rows that a test has made."""

    def __init__(self, rows: np.ndarray) -> None:
        self._made, self.n_rows = rows, len(rows)

    def rows(self, start: int = 0, *, at_once: int = 1000):
        for first in range(start, self.n_rows, at_once):
            yield first, self._made[first : first + at_once]


def made_rows(count: int, *, seed: int, hashes: int | None = None) -> np.ndarray:
    """Documents with random lengths, some of them rejected; with `hashes`, so many different texts."""
    drawn = np.random.default_rng(seed)
    rows = np.zeros(count, ROW)
    known = drawn.bytes(16 * (hashes or count))
    texts = np.arange(count) if hashes is None else drawn.integers(hashes, size=count)
    rows["hash"] = np.frombuffer(known, "V16")[texts]
    rows["tokens"], rows["bytes"] = drawn.integers(1, 1000, count), drawn.integers(1, 4000, count)
    rows["state"] = np.where(drawn.random(count) < 0.05, REJECTED, WHOLE)
    return rows


@pytest.mark.parametrize("bucket_bytes", [1 << 26, 5000])
def test_of_equal_texts_the_first_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_bytes: int) -> None:
    monkeypatch.setattr(choosing, "BUCKET_BYTES", bucket_bytes)
    rows = made_rows(5000, seed=1, hashes=2000)
    seen: set[bytes] = set()
    expected = []
    for row in rows:
        text, bad = row["hash"].tobytes(), row["state"] == REJECTED
        expected.append(choosing.NOWHERE if bad or text in seen else choosing.TRAIN)
        seen |= set() if bad else {text}
    path, count = find_duplicates(Made(rows), tmp_path)
    found = np.concatenate([DocumentSplit("", path).parts(first, some) for first, some in Made(rows).rows(at_once=77)])
    assert found.tolist() == expected
    assert count == sum(rows["state"] == WHOLE) - expected.count(choosing.TRAIN) > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["duplicates"]


@pytest.mark.parametrize("wanted", [1, 999, 50_000, 1_000_000])
def test_the_smallest_hashes_are_for_validation_until_there_are_so_many_tokens(wanted: int) -> None:
    rows = made_rows(4000, seed=2)
    choice = choose(Made(rows), val_fraction=0.5, val_tokens=wanted, duplicates=None)
    expected, tokens = set(), 0
    for row in sorted(rows[rows["state"] == WHOLE], key=lambda row: row["hash"].tobytes()):
        if tokens >= wanted:
            break
        expected.add(row["hash"].tobytes())
        tokens += int(row["tokens"])
    found = rows[choice.parts(0, rows) == choosing.VAL]
    assert {row["hash"].tobytes() for row in found} == expected


def test_a_fraction_of_the_hashes_is_for_validation_and_at_least_one() -> None:
    rows = made_rows(4000, seed=3)
    for fraction in (0.0, 0.1, 0.75):
        choice = choose(Made(rows), val_fraction=fraction, val_tokens=None, duplicates=None)
        share = (choice.parts(0, rows) == choosing.VAL).sum() / (rows["state"] == WHOLE).sum()
        assert share == fraction == 0 or abs(share - fraction) < 0.03
    few = rows[rows["state"] == WHOLE][:3]
    parts = choose(Made(few), val_fraction=1e-9, val_tokens=None, duplicates=None).parts(0, few)
    smallest = min(range(3), key=lambda number: few["hash"][number].tobytes())
    assert [part == choosing.VAL for part in parts] == [number == smallest for number in range(3)]
    for one_text in (few[:1], few[[1, 1, 1]]):
        assert (
            choose(Made(one_text), val_fraction=0.5, val_tokens=None, duplicates=None).parts(0, one_text) == choosing.TRAIN
        ).all()
    for options in ({"val_fraction": 0.0, "val_tokens": 10**9}, {"val_fraction": 1 - 1e-12, "val_tokens": None}):
        with pytest.raises(UserError, match="leaves none for training"):
            choose(Made(few), duplicates=None, **options)


def test_duplicates_are_left_out_and_counted_across_files_and_kinds(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *texts[::3]]))
    (tmp_path / "b.txt").write_text("<>".join(["new", *texts[::-1], "new"]))
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    about = corpora.made(*inputs, out=tmp_path / "exact", dedup="exact", document_separator="<>", val_fraction=0.3)
    corpora.check_files(tmp_path / "exact")
    assert about["duplicates"] == 17 + 50 + 1
    train, val = (corpora.texts(tmp_path / "exact", part) for part in ("train", "val"))
    assert train == [text for text in [*texts, "new"] if not corpora.for_validation(text, 0.3)]
    assert val == [text for text in [*texts, "new"] if corpora.for_validation(text, 0.3)]
    about = corpora.made(*inputs, out=tmp_path / "all", document_separator="<>", val_fraction=0.3)
    assert about["duplicates"] == 0 and about["parts"]["train"]["documents"] + about["parts"]["val"]["documents"] == 119
    assert not set(corpora.texts(tmp_path / "all", "train")) & set(corpora.texts(tmp_path / "all", "val"))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, in the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> None:
        gpt_pretrain("prepare", *words)

    return run


def test_a_report_tells_lengths_compression_and_examples(tmp_path: Path, command, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = [1, 2, 3, 4, 7, 8, 900, 5]
    (tmp_path / "a.txt").write_text("|".join(chr(ord("a") + place) * length for place, length in enumerate(lengths)))
    words = ("a.txt", "out=out", "tokenizer=byte", "document_separator=|", "shard_tokens=100", "workers=1", "--val_fraction=0")
    command(*words, "--dedup", "exact", "--report")
    first = capsys.readouterr().out
    command(*words, "--dedup=exact", "--report")
    again = capsys.readouterr().out
    told = again[again.index("\ntrain: ") :]
    assert told == first[first.index("\ntrain: ") :]
    assert "1.00 bytes of text a token" in told and "Tokens a document: 1 to 900, on average 116" in told
    bins = {line.split()[0]: line.split()[3] for line in told.splitlines() if " to " in line and line.startswith("  ")}
    assert bins == {"1": "1", "2": "2", "4": "3", "8": "1", "16": "0", "32": "0", "64": "0", "128": "0", "256": "0", "512": "1"}
    assert "document 1: a\n" in told and "document 3: ccc\n" in told and "document 6: ffffffff\n" in told
    number = {"part": corpora.manifest(tmp_path / "out")["parts"]["train"], "folder": tmp_path / "out", "number": 6}
    shown = report.example(**number, tokenizer=corpora.tokenizer_of("byte"), itemsize=2)
    assert shown == "g" * report.EXAMPLE_TOKENS + " ..."
    assert report.example(**number | {"number": 7}, tokenizer=corpora.tokenizer_of("byte"), itemsize=2) == "hhhhh"


def test_settings_that_cannot_be_are_told_together(command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command(
            "out=out", "val_fraction=1", "--dedup=fuzzy", "shard_tokens=0", "workers=0", "max_rejected=2", "document_separator="
        )
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert all(
        f"{name}=" in said for name in ("val_fraction", "dedup", "shard_tokens", "workers", "max_rejected", "document_separator")
    )
    assert "No text is named" in said and not Path("out").exists()


@pytest.mark.slow
def test_memory_stays_where_it_is_however_long_a_document_is(tmp_path: Path) -> None:
    peaks = []
    for megabytes in (20, 120):
        with open(tmp_path / "a.txt", "wb") as stream:
            for _ in range(megabytes):
                stream.write(b"some words of a very long text\n" * 32_258)
        process = psutil.Popen(
            [
                sys.executable,
                "-m",
                "gpt_pretrain",
                "prepare",
                str(tmp_path / "a.txt"),
                f"out={tmp_path / str(megabytes)}",
                "workers=2",
                "tokenizer=byte",
            ]
        )
        peak = 0
        while process.poll() is None:
            try:
                peak = max(peak, sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]))
            except psutil.NoSuchProcess:
                continue
        assert process.returncode == 0
        peaks.append(peak)
    assert peaks[1] < 450e6 and peaks[1] < peaks[0] + 150e6, peaks
