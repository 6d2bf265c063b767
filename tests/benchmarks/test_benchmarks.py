"""The benchmarks measure what they claim; no test depends on a speed."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import limits, loading, preparing, report, training
from benchmarks.cases import Case, all_cases
from benchmarks.measure import Measurement, StepClock, repeat
from benchmarks.shapes import Training, gpt2_124m
from tests.conftest import ROOT
from tests.helpers.fork_server import ForkServer

CASES = all_cases(precision="32-true")
SHAPE = Training("tiny", "byte", 257, 32, 2, 1, 16, 2, 0.1, steps=3, warmup=2)


@pytest.mark.slow
@pytest.mark.parametrize("subject", [training.ours, training.bare, training.chapter, training.transformers])
def test_each_loop_trains_and_times_its_steps(subject: object) -> None:
    measured = subject(SHAPE, **({} if subject is training.chapter else {"precision": "32-true"}))  # type: ignore[operator]
    assert len(measured.seconds) == 3
    assert all(0 < seconds < 10 for seconds in measured.seconds)
    assert measured.peak_bytes > 50e6


def test_a_step_lasts_from_one_batch_to_the_next() -> None:
    clock = StepClock(3, lambda: (torch.zeros(1), torch.zeros(1)))
    for number, _ in enumerate(clock):
        time.sleep(0.3 if number == 2 else 0.01)
    first, second = clock.seconds(warmup=1)
    assert 0.01 <= first < second
    assert second >= 0.3


def test_warmup_runs_do_not_count() -> None:
    calls: list[int] = []
    assert len(repeat(lambda: calls.append(1), warmup=2, times=3)) == 3
    assert len(calls) == 5


def test_the_flops_of_a_step_are_those_of_its_matrices() -> None:
    shape = gpt2_124m(drop_rate=0.0)
    matrices = 12 * (768 * 2304 + 768 * 768 + 2 * 768 * 3072) + 50257 * 768
    # Scores and sums over values take 2 operations each, for each token and layer; the backward pass makes it three times as many.
    attention = 12 * 4 * 256 * 768
    assert shape.flops == 512 * (6 * matrices + 3 * attention)
    assert shape.product_flops == 512 * 6 * matrices


def test_preparing_counts_the_same_tokens_as_tiktoken() -> None:
    ours, bare = preparing.ours(megabytes=0.2, workers=2), preparing.tiktoken(megabytes=0.2, threads=2)
    assert ours.notes["tokens"] == bare.notes["tokens"] > 40_000
    assert ours.seconds[0] > bare.seconds[0] > 0
    assert ours.peak_bytes is not None and 30e6 < ours.peak_bytes < 1e9


def test_limits_report_rates_and_loading_reports_memory() -> None:
    assert float(limits.products(SHAPE, dtype=torch.float32).notes["flops_per_second"]) > 1e6
    assert float(limits.memory_reads(n_bytes=1 << 20).notes["bytes_per_second"]) > 1e6
    loaded = loading.ours(n_tokens=100_000, context_length=16, batch_size=4, batches=50)
    assert len(loaded.seconds) == 40
    assert loaded.peak_bytes is not None
    assert loaded.peak_bytes < 50e6


CASE = Case(
    "Title", {name: lambda: Measurement([]) for name in ("ours", "peer", "limit: products, fp32")}, tokens=100, product_flops=1e9
)
ROUNDS = {
    "ours": [Measurement([1.0, 2.0, 9.0], 10**9, {"precision": "32-true"}), Measurement([1.0], 10**9, {"precision": "32-true"})],
    "peer": [Measurement([6.0], 2 * 10**9, {"precision": "32-true"}), Measurement([4.0], 10**9, {"precision": "32-true"})],
    "limit: products, fp32": [Measurement([1.0], None, {"precision": "float32", "flops_per_second": 2e9})] * 2,
}


def test_rows_hold_medians_and_ratios_of_the_rounds() -> None:
    ours, peer, limit = report.rows("name", CASE, ROUNDS)
    assert (ours.seconds, ours.spread) == (1.5, (1.0, 2.0))
    assert ours.tokens_per_second == pytest.approx(100 / 1.5)
    assert ours.share_of_limit == pytest.approx(1e9 / 1.5 / 2e9)
    assert peer.ratio == peer.same_precision == pytest.approx((6 / 2 + 4 / 1) / 2)
    assert peer.peak_bytes == 2 * 10**9
    assert (limit.ratio, limit.tokens_per_second, limit.share_of_limit) == (None, None, None)


def test_a_failed_round_counts_on_neither_side() -> None:
    rounds = ROUNDS | {"peer": [None, ROUNDS["peer"][1]]}
    peer = report.rows("name", CASE, rounds)[1]
    assert (peer.seconds, peer.ratio, peer.rounds) == (4.0, 4.0, 1)


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["nonsense"]])
def test_a_wrong_argument_is_refused(fork_server: ForkServer, arguments: list[str]) -> None:
    done = fork_server.run(["-m", "benchmarks", *arguments], cwd=ROOT)
    assert done.returncode == 2
    assert "at least 1" in done.stderr or "there is no case nonsense; choose among train-" in done.stderr


def test_a_subject_without_measurements_has_no_row() -> None:
    rows = report.rows("name", CASE, {"ours": ROUNDS["ours"]})
    assert [row.subject for row in rows] == ["ours"]


def test_the_page_gets_the_table_and_keeps_other_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    other = dataclasses.replace(CASE, title="Other")
    rows = report.rows("name", CASE, ROUNDS)
    report.update_page({"name": CASE}, {"name": rows})
    report.update_page({"other": other}, {"other": rows})
    report.update_page({"name": CASE}, {"name": rows[:1]})
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("### Title") == text.count("### Other") == 1
    assert text.count("| peer |") == 1
    assert torch.__version__.split("+")[0] in text


def test_the_cases_are_listed(fork_server: ForkServer) -> None:
    done = fork_server.run(["-m", "benchmarks", "--help"], cwd=ROOT)
    assert all(name in done.stdout for name in CASES)


@pytest.mark.slow
def test_a_run_prints_a_table_and_writes_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    arguments = ["start", "--rounds", "1", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=200
    )
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["subject"] for row in rows] == list(CASES["start"].subjects)
    assert all(row["subject"] in done.stdout and row["seconds"] > 0 for row in rows)


def test_loading_is_measured_from_shards_and_from_a_memmap() -> None:
    shape = {"n_tokens": 100_000, "context_length": 16, "batch_size": 4, "batches": 50}
    for measured in (
        loading.memmap(**shape),
        loading.shards(**shape),
        loading.shards(**shape, documents=True),
        loading.shards(**shape, remote=True),
    ):
        assert len(measured.seconds) == 40
