"""Reading the folder of a run, whatever its state."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gpt_pretrain.config.interpolation import escape_interpolation
from gpt_pretrain.runs import metrics_file, reader
from gpt_pretrain.runs.metrics_file import MetricsFile
from gpt_pretrain.runs.reader import MetricSeries, format_setting, read_metrics, read_run, run_results
from tests.helpers.made_runs import make_metrics, make_run


def test_a_real_run_can_be_read(train: Callable[..., float], tmp_path: Path) -> None:
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


def test_damaged_rows_and_values_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_bytes(
        b"step,tokens_seen,lr,x\n0,10,0.5,nan\n1,20,what,\n\xff\xfe,3,4,5\n2,,0.25,inf\n3,40,0.1\n9,9,9,7,8,9\n4,5\0,0.2,7\n5,60,0."
    )
    assert read_metrics(file)["lr"] == MetricSeries([0, 2, 3, 4, 5], [10, 0, 40, 5, 60], [0.5, 0.25, 0.1, 0.2, 0.0])
    assert read_metrics(file)["x"] == MetricSeries([4], [5], [7.0])
    assert read_metrics(tmp_path / "none.csv") == read_metrics(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "a: [1", "- a\n- b", "\0", "a: !!python/object:os.system x", "? [1, 2]\n: 3"])
def test_a_damaged_config_keeps_its_text_only(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    run = read_run(tmp_path)
    assert (run.config, run.config_text) == ({}, text)


def test_settings_have_dotted_keys_and_typed_values(tmp_path: Path) -> None:
    content = {"a": {"b": None, "c": [0.9, 1], "d": {}}, "e": True, "f": "${not} an $interpolation"}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(escape_interpolation(content))))
    expected = {"a.b": "null", "a.c": "[0.9, 1]", "a.d": "{}", "e": "true", "f": "${not} an $interpolation"}
    assert read_run(tmp_path).config == expected
    assert format_setting("é") == "é"


def test_the_results_of_a_killed_run_come_from_its_metrics(tmp_path: Path) -> None:
    make_run(tmp_path / "run", state="running", result=None)
    found = run_results(read_run(tmp_path / "run"))
    assert (found["best_val_loss"], found["best_step"], found["steps"], found["tokens_seen"]) == (4.5, 7, 12, 1200)
    assert found["val_loss"] == pytest.approx(4.5 + 4 / 12)
    assert found["train_loss"] == pytest.approx(10 / 13)
    assert run_results(read_run(tmp_path)) == {}


def test_a_long_metrics_file_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(make_metrics(20_000, val_every=100))
    assert len(read_run(tmp_path).metrics["val/loss"].values) == 200


def test_a_file_with_far_more_values_than_a_run_writes_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "FREE_VALUES", 100)
    file = tmp_path / "metrics.csv"
    file.write_text("step,tokens_seen," + ",".join(f"c{n}" for n in range(98)) + "\n" + (",".join("1" * 100) + "\n") * 100)
    values = sum(len(series.values) for series in read_metrics(file).values())
    assert values < 100 + file.stat().st_size / 8 + 100


def test_short_rows_below_a_long_heading_are_not_written_out_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_file, "FREE_ROWS", 10)
    file = tmp_path / "metrics.csv"
    heading = ["step", *(f"evaluation/{n}" for n in range(500))]
    file.write_text("\n".join([",".join(heading), ",".join("0" * 501), *["1,2"] * 20_000]) + "\n")
    size = file.stat().st_size
    MetricsFile(file, first_step=3)
    assert file.stat().st_size < 3 * size
