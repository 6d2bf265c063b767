import csv
import math
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from gpt_pretrain.runs import metrics_file, metrics_rows
from gpt_pretrain.runs.metrics_file import MetricsFile
from gpt_pretrain.runs.tensorboard import EventFiles
from tests.helpers.made_runs import make_metrics


def table(file: Path, *columns: str) -> list[tuple[str, ...]]:
    with open(file, encoding="utf-8", newline="") as stream:
        return [tuple(row[name] for name in columns) for row in csv.DictReader(stream)]


def write_rows(file: Path, n: int) -> None:
    rows = MetricsFile(file)
    for step in range(n):
        rows.log_metrics({"tokens_seen": 8 * (step + 1), "train/loss": float(step)}, step=step)
    rows.flush()


def test_a_resumed_run_keeps_no_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_rows, "MAX_POINTS", 100)
    file = tmp_path / "metrics.csv"
    file.write_text(make_metrics(10_000, val_every=100))
    tracemalloc.start()
    try:
        resumed = MetricsFile(file, first_step=9_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1e6, "10,000 rows take 7 MB as dictionaries"
    resumed.log_metrics({"train/loss": 0.5}, step=9_000)
    resumed.flush()
    assert [int(step) for (step,) in table(file, "step")] == [*range(9_001)]


def test_the_history_has_a_limited_number_of_points_of_each_metric_and_the_lowest_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_rows, "MAX_POINTS", 10)
    history = metrics_rows.History()
    for step in range(1000):
        rare = {"val/loss": abs(step - 437.0)} if step % 100 == 37 else {}
        history.add({"step": step, "tokens_seen": 8.0 * step, "lr": float(step)} | rare)
    assert history.lowest_val_loss == 0.0
    assert [tokens for tokens, _ in history.points["val/loss"]] == [8 * (37 + 100 * n) for n in range(10)]
    steps = [value for _, value in history.points["lr"]]
    assert 10 <= len(steps) < 20 and {b - a for a, b in pairwise(steps)} == {64.0}
    assert history.points["lr"] == [(8 * int(step), step) for step in steps]


def test_tensorboard_gets_few_points_of_a_long_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_rows, "MAX_POINTS", 50)
    file = tmp_path / "metrics.csv"
    write_rows(file, 500)
    rows = MetricsFile(file, first_step=400)
    events = EventFiles(tmp_path, first_step=400, history=rows.history)
    events.log_metrics({"tokens_seen": 8 * 401, "train/loss": 1.0}, step=400)
    events.finalize("success")
    seen = EventAccumulator(str(tmp_path)).Reload().Scalars("tokens_seen/train/loss")
    assert 40 <= len(seen) <= 101
    assert all(event.step >= 400 and event.value == event.step / 8 - 1 for event in seen[:-1])
    assert (seen[-1].step, seen[-1].value) == (8 * 401, 1.0)


def test_metrics_of_the_last_kept_row_are_not_lost_if_the_file_cannot_be_written_at_first(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    write_rows(file, 3)
    resumed = MetricsFile(file, first_step=3)
    resumed.log_metrics({"val/loss": 0.5}, step=2)
    with mock.patch.object(metrics_file, "replacing", side_effect=OSError(28, "No space left on device")):
        resumed.log_metrics({"train/loss": 9.0}, step=3)
    resumed.flush()
    assert table(file, "step", "train/loss", "val/loss") == [("0", "0", ""), ("1", "1", ""), ("2", "2", "0.5"), ("3", "9", "")]


def test_a_row_without_its_only_metrics_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    write_rows(file, 2)
    before = MetricsFile(file, first_step=2)
    before.log_metrics({"tokens_seen": 24, "val/loss": 0.5}, step=2)
    before.flush()
    resumed = MetricsFile(file, first_step=3)
    resumed.forget(["val/loss"])
    assert table(file, "step") == [("0",), ("1",)]
    resumed.log_metrics({"train/loss": 9.0}, step=2)
    resumed.flush()
    assert table(file, "step", "train/loss", "val/loss") == [("0", "0", ""), ("1", "1", ""), ("2", "9", "")]


@pytest.mark.parametrize("first_step", [0, 5])
def test_rows_follow_a_file_that_somebody_deletes(tmp_path: Path, first_step: int) -> None:
    file = tmp_path / "metrics.csv"
    write_rows(file, 5)
    resumed = MetricsFile(file, first_step=first_step)
    file.unlink()
    resumed.log_metrics({"val/loss": 0.5}, step=first_step - 1) if first_step else None
    resumed.log_metrics({"train/loss": 9.0}, step=first_step)
    resumed.flush()
    assert table(file, "step", "train/loss")[-1] == (str(first_step), "9")


SAVED_BY_OTHERS = {
    "mark of UTF-8": lambda text: "\ufeff" + text,
    "semicolons": lambda text: text.replace(",", ";").replace("\n", "\r\n"),
}


@pytest.mark.parametrize("way", SAVED_BY_OTHERS)
def test_rows_that_a_program_for_tables_has_saved_are_kept(tmp_path: Path, way: str) -> None:
    file = tmp_path / "metrics.csv"
    write_rows(file, 5)
    file.write_text(SAVED_BY_OTHERS[way](file.read_text()), newline="")
    MetricsFile(file, first_step=5)
    assert table(file, "step", "train/loss") == [(str(step), str(step)) for step in range(5)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_rows_that_cannot_be_read_are_kept_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(make_metrics(20, val_every=5).replace(".", ","))
    content = file.read_text()
    (tmp_path / "metrics-unreadable.csv").symlink_to("elsewhere")
    MetricsFile(file, first_step=20)
    assert table(file, "step") == []
    assert (tmp_path / "metrics-unreadable.csv").read_text() == content
    assert not (tmp_path / "elsewhere").exists()
    file.write_text(content + "20,9,5\n")
    MetricsFile(file, first_step=21)
    assert (tmp_path / "metrics-unreadable.csv").read_text() == content, "a second time, the first copy stays"
    assert (tmp_path / "metrics-unreadable-2.csv").read_text() == content + "20,9,5\n"
    assert (
        f"20 rows of {file} cannot be read; another program may have saved them in its own way. They are kept in" in caplog.text
    )


def test_columns_of_held_out_texts_are_kept_in_a_resumed_run(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    rows: Any = MetricsFile(file, evaluated=["evaluation/a/loss"])
    rows.log_metrics({"evaluation/a/loss": 2.5}, step=0)
    rows.flush()
    again = MetricsFile(file, first_step=1, evaluated=["evaluation/b/loss"])
    again.log_metrics({"evaluation/b/loss": math.pi}, step=1)
    again.flush()
    assert table(file, "evaluation/a/loss", "evaluation/b/loss") == [("2.5", ""), ("", "3.141592654")]
