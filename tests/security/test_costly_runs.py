"""Runs, sweeps and results files that are made to cost much time or memory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from gpt_pretrain.commands import compare
from gpt_pretrain.commands.command_line.stored_overrides import admit_overrides
from gpt_pretrain.commands.leaderboard import MAX_TABLES, format_leaderboard
from gpt_pretrain.commands.report import write_report
from gpt_pretrain.config.free_text import ONE_QUOTED, plain_value
from gpt_pretrain.config.secrets import metadata_without_secrets
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs import metrics_rows, reader
from gpt_pretrain.runs.charts import curves, drawing
from gpt_pretrain.runs.charts.drawing import to_svg
from gpt_pretrain.runs.leaderboard import Entry, find_entries
from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.runs.metrics_file import MetricsFile
from gpt_pretrain.runs.metrics_rows import History
from gpt_pretrain.runs.reader import MetricSeries, RunContents, read_metrics
from gpt_pretrain.sweeps import report_page
from gpt_pretrain.sweeps.chart import _scale_axis, sweep_figure
from gpt_pretrain.sweeps.results import Job, ranking_rows, read_sweep, swept_keys
from tests.helpers.hostile_files import hostile_sweep
from tests.helpers.resource_limits import allocating_at_most
from tests.helpers.shown_runs import made


@contextmanager
def soon(seconds: float = 2.0) -> Iterator[None]:
    """Check that a block takes little time of the processor."""
    begin = time.process_time()
    yield
    assert time.process_time() - begin < seconds


def test_quotation_marks_cost_the_length_of_a_text() -> None:
    with soon():
        assert plain_value("'" + "\\" * 40_000 + "x'") == "\\" * 40_000 + "x"
        assert plain_value("'a" + "\\" * 40_000 + "'") == "a" + "\\" * 20_000
    with allocating_at_most(megabytes=5):
        assert ONE_QUOTED.fullmatch("'" + "x" * 300_000 + "'")


def test_metadata_of_very_many_values_is_damage(tmp_path: Path) -> None:
    run = made(tmp_path / "run", run_json='{"a": ' + "[" * 90 + ",".join(["0"] * 150_000) + "]" * 90 + "}")
    assert read_metadata(run) == {}
    (run / "run.json").write_text(json.dumps({"overrides": ["a=b"] * 20_000}))
    assert len(read_metadata(run)["overrides"]) == 20_000


def test_secrets_are_looked_for_in_the_ends_of_a_long_text() -> None:
    texts = "https://user:word@host/x " * 100_000
    cut = metadata_without_secrets(
        {"command": texts, "error": texts, "overrides": [f"data.url={texts}"], "swept": [f"data.url={texts}"]}
    )
    shown = [cut["command"], cut["error"], *cut["overrides"], *cut["swept"]]
    assert all(len(text) < 20_000 and "https://***@host/x" in text for text in shown)
    assert all("word@" not in text[: 10_000 // 2] for text in shown)


def test_many_metrics_of_earlier_steps_have_few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_rows, "MAX_ALL_POINTS", 1000)
    history = History()
    for tokens in range(100):
        history.add({"tokens_seen": tokens} | {f"evaluation/{number}/loss": float(tokens) for number in range(200)})
    assert sum(map(len, history.points.values())) < 1000
    points = history.points["evaluation/0/loss"]
    distances = {later[0] - earlier[0] for earlier, later in pairwise(points)}
    assert points[0] == (0, 0.0) and len(points) > 1 and len(distances) == 1


def test_a_metric_of_earlier_steps_has_a_short_name(tmp_path: Path) -> None:
    """TensorBoard writes the name before each of a metric's points."""
    file = tmp_path / "metrics.csv"
    file.write_text(f"step,tokens_seen,evaluation/{'A' * 50_000}/loss,evaluation/text/loss\n0,1,2.0,3.0\n")
    assert list(MetricsFile(file, first_step=5).history.points) == ["evaluation/text/loss"]
    assert file.stat().st_size < 1000


def test_rows_without_values_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "FREE_VALUES", 10)
    file = tmp_path / "metrics.csv"
    file.write_text("step,train/loss\n1,1.5\n2,2.5\n" + "3\n" * 40 + "4,4.5\n")
    assert read_metrics(file)["train/loss"].values == [1.5, 2.5]


def test_a_comparison_keeps_only_the_metrics_that_it_shows(tmp_path: Path) -> None:
    rows = "step,tokens_seen,val/loss,evaluation/text/loss,mine\n1,2,3.5,4.5,5.5\n"
    runs = [made(tmp_path / name, metrics_csv=rows) for name in "ab"]
    assert set(reader.read_run(runs[0]).metrics) == {"val/loss", "evaluation/text/loss", "mine"}
    kept = compare._read_runs([str(run) for run in runs], tmp_path / "x.svg")
    assert [one.metrics for one in kept] == [{"val/loss": MetricSeries([1], [2], [3.5])}] * 2


def test_only_some_texts_of_a_results_file_are_shown() -> None:
    entries = [
        Entry("theirs", 1.0, text_sha256=f"{number:04}", started="2030-01-01T00:00:00", source="x.json", machine=f"M{number}")
        for number in range(100)
    ]
    shown = format_leaderboard([*entries, Entry("mine", 2.0, text_sha256="own", machine="Mine")], own_machine="Mine")
    assert shown.count("bits per byte") == MAX_TABLES and "51 more texts not shown." in shown
    assert shown.startswith("a text (SHA-256 own)") and shown.count("\nmachine ") == MAX_TABLES


def make_jobs(count: int) -> list[Job]:
    return [
        Job(Path(f"job{n}"), {"a": f"v{n}", "b": "same"}, "finished", {"result": {"best_val_loss": n // 2}}) for n in range(count)
    ]


def test_ranks_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [*make_jobs(4), Job(Path("failed"), {"c": "1"}, "failed", {})]
    assert [row[0] for row in ranking_rows(jobs)] == ["rank", "1", "1", "3", "3", "-"]
    assert swept_keys(jobs) == ["a", "b", "c"] and swept_keys(jobs[:4]) == ["a"]
    asked = list[Job]()
    score = Job.val_loss.fget
    monkeypatch.setattr(Job, "val_loss", property(lambda job: asked.append(job) or score(job)))
    ranking_rows(make_jobs(200))
    assert len(asked) < 1000


def test_categories_of_an_axis_are_found_at_once() -> None:
    values = [f"value {number:06}" for number in range(60_000)]
    with soon():
        assert _scale_axis(Figure().subplots(), values) == list(map(float, range(60_000)))


def test_the_page_of_a_sweep_reads_the_settings_of_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = hostile_sweep(tmp_path / "sweep", task=["seed=1,2,3"])
    for number in range(3):
        made(
            sweep / f"seed={number}",
            config_yaml="start_context: words\n",
            run_json=json.dumps({"result": {"best_val_loss": 1.0}}),
        )
    parsed, parse = list[Any](), reader.parse_yaml
    monkeypatch.setattr(reader, "parse_yaml", lambda text: parsed.append(text) or parse(text))
    page = write_report(sweep).read_text()
    assert "Validation loss" in page and len(parsed) == 1


def test_a_sweep_without_a_job_of_its_own_has_no_page(tmp_path: Path) -> None:
    sweep, mine = hostile_sweep(tmp_path / "sweep", task=["seed=1,2"]), made(tmp_path / "mine")
    (sweep / "seed=1").symlink_to(mine)
    with pytest.raises(UserError, match="all jobs of this sweep are links"):
        write_report(sweep)


def test_names_of_one_run_count_once(tmp_path: Path) -> None:
    sweep, metadata = hostile_sweep(tmp_path / "sweep", task=["seed=1,2"]), {"result": {"best_bits_per_byte": 1.5}}
    for name in ("first", "second"):
        made(sweep / name, run_json=json.dumps(metadata))
    for number in range(3):
        (sweep / f"hard{number}").mkdir()
        os.link(sweep / "first" / "run.json", sweep / f"hard{number}" / "run.json")
        (sweep / f"soft{number}").symlink_to("first")
    assert [job.folder.name for job in read_sweep(sweep)] == ["first", "second"]
    assert [entry.run for entry in find_entries(sweep)[0]] == ["first", "second"]


def test_the_leaderboard_reads_a_file_of_many_runs_once(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"run{n}", run_json=json.dumps({"result": {"best_bits_per_byte": n + 1}})) for n in range(4)]
    for name, run in (("config.yaml", runs[1]), ("metrics.csv", runs[2])):
        for folder in (runs[0], run):
            (folder / name).unlink(missing_ok=True)
        (runs[0] / name).touch()
        os.link(runs[0] / name, run / name)
    assert [entry.run for entry in find_entries(tmp_path)[0]] == ["run0", "run3"]


def test_any_losses_are_drawn() -> None:
    values = [1e308, -1e308, float("inf"), float("nan"), 2.0]
    figure = curves.epoch_loss_figure(tokens_seen=[*range(5)], train_losses=values, val_losses=values, tokens_per_epoch=1)
    assert "<svg" in to_svg(figure)


def test_numbers_that_no_chart_can_show_are_categories() -> None:
    jobs = [Job(Path(text), {"a": text}, "finished", {"result": {"best_val_loss": 1.0}}) for text in ("1e308", "-1e308")]
    assert "1e308" in to_svg(sweep_figure(jobs))


def test_files_behind_a_linked_folder_are_not_listed(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret-model.ckpt").touch()
    os.rename(run / "checkpoints", tmp_path / "own")
    (run / "checkpoints").symlink_to(tmp_path / "private")
    assert "secret-model" not in write_report(run).read_text()


def test_overrides_of_a_stranger_are_short_together(tmp_path: Path) -> None:
    overrides = [f"callbacks.grid.prompts=[{','.join(['ab'] * 3000)}]"] * 8
    with pytest.raises(UserError, match="holds overrides of 72,192 characters, more than the limit of 50,000"), soon():
        admit_overrides(hostile_sweep(tmp_path / "sweep", task=overrides), script="train", typed=set())


def test_more_jobs_than_can_be_written_out_are_too_many(tmp_path: Path) -> None:
    overrides = [f"optimizer.{name}=range(0,1e300)" for name in ("lr", "weight_decay", "eps", "momentum")] * 5
    with pytest.raises(UserError, match="asks for 1,000,000,000,000,000 jobs"):
        admit_overrides(hostile_sweep(tmp_path / "sweep", task=overrides), script="train", typed=set())


def test_a_table_of_many_jobs_has_few_settings() -> None:
    jobs = [Job(Path(f"job{n}"), {f"k{key}": str(n) for key in range(300)}, "finished", {}) for n in range(100)]
    assert len(swept_keys(jobs)) == 200 and len(swept_keys(jobs[:10])) == 300 and len(swept_keys(jobs * 100)) == 20
    fixed = [Job(Path("job"), {f"fixed{key}": "1" for key in range(300)} | {"a": str(n)}, "finished", {}) for n in range(2000)]
    assert swept_keys(fixed) == ["a"], "what does not differ takes no place"


def test_the_curves_of_a_sweep_s_page_have_few_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "step,tokens_seen,val/loss\n" + "".join(f"{step},{step},{step % 7}\n" for step in range(5000))
    sweep = hostile_sweep(tmp_path / "sweep", task=["seed=1,2,3"])
    for name in "ab":
        made(sweep / name, run_json=json.dumps({"result": {"best_val_loss": 1.0}}), metrics_csv=rows)
    made(sweep / "c", run_json=json.dumps({"result": {"best_val_loss": 1.0}}))
    (sweep / "c" / "metrics.csv").unlink()
    os.link(sweep / "a" / "metrics.csv", sweep / "c" / "metrics.csv")
    drawn = list[Any]()
    figure = report_page.overlay_figure
    monkeypatch.setattr(
        report_page, "overlay_figure", lambda panels, *rest, **named: drawn.append(panels) or figure(panels, *rest, **named)
    )
    write_report(sweep)
    first, second, third = drawn[0]["validation"]
    assert 500 < len(first.values) == len(first.tokens) <= 1000 and first == second and not third


def test_a_comparison_looks_up_only_the_settings_that_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class CountedSettings(dict[str, str]):
        asked = 0

        def get(self, name: str, default: Any = None) -> Any:
            CountedSettings.asked += 1
            return super().get(name, default)

    labels = list[str]()
    monkeypatch.setattr(curves, "overlay_figure", lambda panels, names, **unit: labels.extend(names))
    monkeypatch.setattr(drawing, "save_figure", lambda *arguments, **options: None)
    own = [CountedSettings({f"k{run}.{key}": "1" for key in range(100)}) for run in range(30)]
    runs = [RunContents(tmp_path / f"run{number}", {}, "", one, {}, []) for number, one in enumerate(own)]
    assert "and 2,500 more" in compare.format_comparison(runs)
    compare._draw(runs, tmp_path / "x.svg", bits_per_byte=False)
    assert labels[:2] == ["1  run0", "2  run1"]
    assert CountedSettings.asked < 500 * 30 + 1000
