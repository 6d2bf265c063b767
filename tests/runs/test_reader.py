"""What a run's folder tells, whatever state it is in."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gpt_pretrain.config.conversion import escape_interpolation
from gpt_pretrain.runs.reader import MetricSeries, read_metrics, read_run, run_results, setting_text
from tests.helpers.made_runs import make_run, metrics


def test_a_real_run_is_read_whole(train: Callable[..., float], tmp_path: Path) -> None:
    best = train("data.train_ratio=0.8", run_dir=tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.config["data.train_ratio"] == "0.8"
    assert run.config["data.path"] == "null"
    assert len(run.samples) == 2
    with open(tmp_path / "run" / "metrics.csv", encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["val/loss"]]
    assert run.metrics["val/loss"].values == [float(row["val/loss"]) for row in rows]
    assert run.metrics["val/loss"].tokens == [int(float(row["tokens_seen"])) for row in rows]
    assert run_results(run)["best_val_loss"] == pytest.approx(best)


def test_rows_and_values_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_bytes(
        b"step,tokens_seen,lr,x\n0,10,0.5,nan\n1,20,what,\n\xff\xfe,3,4,5\n2,,0.25,inf\n3,40,0.1\n4,5\0,0.2,7,8,9\n5,60,0."
    )
    assert read_metrics(file)["lr"] == MetricSeries([0, 2, 3, 4, 5], [10, 0, 40, 5, 60], [0.5, 0.25, 0.1, 0.2, 0.0])
    assert read_metrics(file)["x"] == MetricSeries([4], [5], [7.0])
    assert read_metrics(tmp_path / "none.csv") == read_metrics(tmp_path) == {}


@pytest.mark.parametrize(
    "text", ["", "a: [1", "- a\n- b", "\0", "a: ${nowhere}", "a: !!python/object:os.system x", "? [1, 2]\n: 3"]
)
def test_a_damaged_config_has_no_settings_and_keeps_its_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    run = read_run(tmp_path)
    assert (run.config, run.config_text) == ({}, text)


def test_settings_are_dotted_and_as_typed(tmp_path: Path) -> None:
    content = {"a": {"b": None, "c": [0.9, 1], "d": {}}, "e": True, "f": "${not} an $interpolation"}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(escape_interpolation(content))))
    expected = {"a.b": "null", "a.c": "[0.9, 1]", "a.d": "{}", "e": "true", "f": "${not} an $interpolation"}
    assert read_run(tmp_path).config == expected
    assert setting_text("é") == "é"


def test_a_killed_run_s_outcome_is_that_of_its_metrics(tmp_path: Path) -> None:
    make_run(tmp_path / "run", state="running", result=None)
    found = run_results(read_run(tmp_path / "run"))
    assert (found["best_val_loss"], found["best_step"], found["steps"], found["tokens_seen"]) == (4.5, 7, 12, 1200)
    assert found["val_loss"] == pytest.approx(4.5 + 4 / 12)
    assert found["train_loss"] == pytest.approx(10 / 13)
    assert run_results(read_run(tmp_path)) == {}


def test_many_rows_are_read_in_a_moment(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(metrics(20_000, val_every=100))
    assert len(read_run(tmp_path).metrics["val/loss"].values) == 200
