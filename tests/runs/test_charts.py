"""The charts of runs and sweeps."""

import math
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gpt_pretrain.runs.charts import curves, drawing
from gpt_pretrain.runs.reader import MetricSeries, read_run
from gpt_pretrain.sweeps.chart import sweep_figure
from gpt_pretrain.sweeps.results import Job
from tests.helpers.made_runs import make_metrics, make_run


def lines(figure: Figure, panel: int = 0) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in figure.axes[panel].get_lines()}


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def job(settings: dict[str, str], loss: float | None, state: str = "finished") -> Job:
    name = ",".join(f"{key}={value}" for key, value in settings.items())
    return Job(Path(name), settings, state, {"result": {"best_val_loss": loss}})


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 60))
def test_a_thinned_line_keeps_its_ends_and_extremes(values: list[float], limit: int) -> None:
    xs, ys = drawing.thin_points(range(len(values)), values, limit=limit)
    assert len(xs) <= max(limit, 4)
    assert list(ys) == [values[int(x)] for x in xs]
    assert sorted(set(xs)) == list(xs)
    assert (xs[0], xs[-1]) == (0, len(values) - 1)
    assert (ys.min(), ys.max()) == (min(values), max(values))


def test_the_loss_curve_shows_epochs_and_tokens_seen() -> None:
    figure = curves.epoch_loss_figure(
        tokens_seen=[50, 100, 200], train_losses=[3, 2, 1], val_losses=[3, 2.5, 2.6], tokens_per_epoch=100
    )
    drawn = lines(figure)
    assert list(drawn["training"].get_xdata()) == list(drawn["validation"].get_xdata()) == [0.5, 1.0, 2.0]
    assert list(drawn["training"].get_ydata()) == [3, 2, 1]
    assert list(drawn["validation"].get_ydata()) == [3, 2.5, 2.6]
    figure.draw_without_rendering()
    (above,) = figure.axes[0].child_axes
    left, right = figure.axes[0].get_xlim()
    assert above.get_xlim() == pytest.approx((100 * left, 100 * right))


def test_the_best_validation_loss_is_marked_and_tokens_seen_are_shown(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    figure = curves.run_loss_figure(run)
    drawn = lines(figure)
    assert list(drawn["validation set, all"].get_xdata()) == [3, 7, 11]
    best = drawn["best: 4.500 at step 7"]
    assert (best.get_marker(), best.get_xdata()[0], best.get_ydata()[0]) == ("*", 7, 4.5)
    assert list(drawn["training batches"].get_ydata()) == run.metrics["train/loss"].values
    assert figure.axes[0].get_yscale() == "linear"
    figure.draw_without_rendering()
    (above,) = figure.axes[0].child_axes
    left, right = figure.axes[0].get_xlim()
    assert above.get_xlim() == pytest.approx(((left + 1) * 100, (right + 1) * 100))  # After step 0, 100 tokens are seen.


def test_a_diverged_loss_does_not_flatten_the_other_curves(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", rows=make_metrics(level=1e6)))
    assert curves.run_loss_figure(run).axes[0].get_yscale() == "log"
    one, other = MetricSeries([0, 1], [10, 20], [5.0, 4.0]), MetricSeries([0, 1], [10, 20], [6.0, 1e8])
    figure = curves.overlay_figure({"validation": [one, other]}, ["1", "2"])
    low, high = figure.axes[0].get_ylim()
    assert 3.5 < low < 4 and 6 < high < 6.5
    assert "up to 50" in figure.axes[0].get_ylabel()
    assert "up to" not in curves.overlay_figure({"validation": [one]}, ["1"]).axes[0].get_ylabel()


def test_long_series_are_thinned_before_they_are_drawn(tmp_path: Path) -> None:
    spiky = [math.sin(i) for i in range(100_000)]
    spiky[51_234] = 9.0
    series = MetricSeries(list(range(100_000)), list(range(100_000)), spiky)
    (line,) = curves.metric_figure(series, label="x").axes[0].get_lines()
    assert len(line.get_xdata()) <= drawing.MAX_POINTS
    assert max(line.get_ydata()) == 9.0
    many = curves.overlay_figure({"a": [series] * 60, "b": [series] * 60}, [str(i) for i in range(60)])
    assert sum(len(line.get_xdata()) for axes in many.axes for line in axes.get_lines()) <= curves.MAX_POINTS_PER_FIGURE
    assert len(drawing.to_svg(many)) < 600_000


def test_runs_are_compared_in_one_chart_by_tokens_seen() -> None:
    runs = [MetricSeries([0, 1], [100 * n, 200 * n], [5.0, 4.0 + n]) for n in range(1, 13)]
    figure = curves.overlay_figure({"validation": runs, "training": runs[:1]}, [f"run {n}" for n in range(1, 13)])
    assert [axes.get_title() for axes in figure.axes] == ["validation", "training"]
    assert [list(line.get_xdata()) for line in figure.axes[0].get_lines()] == [run.tokens for run in runs]
    assert legend(figure) == [*(f"run {n}" for n in range(1, 11)), "2 others"]
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()[:10]}
    assert len(styles) == 10


@pytest.mark.parametrize("values", [["0.1443", "0.2089", "0.2158"], ["0.0003795", "0.0004217", "0.0002646"]])
def test_labels_on_the_axis_of_a_sweep_do_not_overlap(values: list[str]) -> None:
    figure = sweep_figure(
        [job({"optimizer.lr": value, "seed": str(n), "eval_freq": str(n)}, 4.0) for n, value in enumerate(values)]
    )
    FigureCanvasAgg(figure).draw()
    (left, right) = figure.axes[0].get_xlim()
    shown = [label for label in figure.axes[0].get_xticklabels() if left <= label.get_position()[0] <= right]
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.x0)
    assert len(boxes) > 1
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_a_sweep_has_one_plot_per_swept_setting() -> None:
    settings = [{"optimizer.lr": lr, "sampler.top_k": k, "seed": "1"} for lr in ("1e-4", "1e-3", "1e-2") for k in ("null", "25")]
    jobs = [job(one, 4 + number) for number, one in enumerate(settings)]
    figure = sweep_figure(jobs)
    assert [axes.get_xlabel() for axes in figure.axes] == ["optimizer.lr", "sampler.top_k"]
    rates, top_k = figure.axes
    assert (rates.get_xscale(), top_k.get_xscale()) == ("log", "linear")
    assert [label.get_text() for label in top_k.get_xticklabels()] == ["25", "null"]
    assert [label.get_text() for label in rates.get_xticklabels()] == ["1e-4", "1e-3", "1e-2"]
    dots = lines(figure)["finished"]
    assert list(dots.get_xdata()) == [1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2]
    assert list(dots.get_ydata()) == [4, 5, 6, 7, 8, 9]
    (best,) = [line for label, line in lines(figure).items() if label.startswith("best")]
    assert (best.get_marker(), best.get_xdata()[0], best.get_ydata()[0]) == ("*", 1e-4, 4)
    assert "best: 4, optimizer.lr=1e-4,sampler.top_k=null,seed=1" in legend(figure)


def test_failed_and_stopped_jobs_are_marked() -> None:
    jobs = [
        job({"seed": "1"}, 4.0),
        job({"seed": "2"}, 5.0, "pruned"),
        job({"seed": "3"}, 1e9),
        job({"seed": "4"}, None, "failed"),
    ]
    figure = sweep_figure(jobs)
    drawn = lines(figure)
    assert figure.axes[0].get_xscale() == "linear"
    assert list(drawn["stopped early"].get_xdata()) == [2]
    (failed,) = [line for line in drawn.values() if line.get_marker() == "x"]
    assert list(failed.get_xdata()) == [3, 4]
    assert str(failed.get_label()).splitlines()[1:] == ["seed=3", "seed=4"]
    assert figure.axes[0].get_ylim()[1] < 10


@pytest.mark.parametrize(
    "values",
    [
        ["1"],
        ["1", "1"],
        ["-1", "0", "1e3"],
        ["nan", "inf", "1"],
        ["true", "false"],
        ["$a_b$", "\x01", "é" * 90],
        [str(i) for i in range(300)],
    ],
)
def test_any_values_can_be_drawn(values: list[str]) -> None:
    for loss in (4.0, None):
        ET.fromstring(drawing.to_svg(sweep_figure([job({"key$": value}, loss) for value in values])))


def test_svg_is_small_valid_and_reproducible(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    first, second = (drawing.to_svg(curves.run_loss_figure(run)) for _ in range(2))
    assert first == second
    tree = ET.fromstring(first)
    texts = ["".join(element.itertext()) for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert "optimizer step" in texts
    references = {value for element in tree.iter() for name, value in element.attrib.items() if name.endswith("href")}
    assert references and all(value.startswith("#") for value in references)
    assert len(first) < 60_000


def test_the_file_name_determines_the_format(tmp_path: Path) -> None:
    figure: Any = curves.metric_figure(MetricSeries([0, 1], [1, 2], [20_000.0, 30_000.0]), label="tokens per second")
    drawing.save_figure(figure, tmp_path / "a.png", tmp_path / "a.pdf", tmp_path / "a.svg")
    beginnings = [(tmp_path / f"a.{kind}").read_bytes()[:5] for kind in ("png", "pdf", "svg")]
    assert beginnings == [b"\x89PNG\r", b"%PDF-", b"<?xml"]
    assert np.isclose(figure.axes[0].get_ylim()[0], 0)
