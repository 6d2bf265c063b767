"""Readers for the fuzzer: of runs, their pages and results, and of sweeps."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from matplotlib.figure import Figure

from gpt_pretrain.commands.compare import format_comparison
from gpt_pretrain.commands.leaderboard import format_leaderboard
from gpt_pretrain.runs.charts.drawing import to_data_uri
from gpt_pretrain.runs.leaderboard import find_entries
from gpt_pretrain.runs.metrics_file import MetricsFile
from gpt_pretrain.runs.reader import RunContents, read_run
from gpt_pretrain.runs.report import page_parts
from gpt_pretrain.runs.report.run_page import render_run_page
from gpt_pretrain.runs.results_file import read_results, write_results
from gpt_pretrain.sweeps.results import ranking_rows, read_sweep
from gpt_pretrain.sweeps.search import NumberRange, Search, SearchSpace, ValueList
from gpt_pretrain.system.json_files import read_json
from gpt_pretrain.system.yaml_files import read_yaml
from tests.security.fuzzed_reader import BLIND, COMPAT, JSON, TEXT, YAML, FuzzedReader


def _make_run(folder: Path) -> None:
    for name in ("config.yaml", "run.json", "metrics.csv", "samples.txt"):
        shutil.copy(COMPAT / "run" / name, folder)


def _read_run(folder: Path) -> None:
    format_comparison([read_run(folder), _other_run()])


@functools.cache
def _other_run() -> RunContents:
    return read_run(COMPAT / "run")


def _make_results(folder: Path) -> None:
    entries, _ = find_entries(COMPAT)
    write_results(entries, folder / "results.json")


def _read_results(folder: Path) -> None:
    entries = read_results(folder / "results.json")
    format_leaderboard(entries, own_machine="a machine")
    write_results(entries, folder / "results.json")


def _read_entries(folder: Path) -> None:
    entries, _ = find_entries(folder)
    write_results(entries, folder / "results.json")
    read_results(folder / "results.json")


@functools.cache
def _drawn_charts() -> dict[Any, str]:
    return {}


def _numbers_of(function: Any) -> tuple[Any, ...]:
    """Return the numbers in a function's closure, such as those that convert steps to tokens on an upper axis."""
    cells = getattr(function, "__closure__", None) or ()
    return tuple(_numbers_of(cell.cell_contents) if callable(cell.cell_contents) else cell.cell_contents for cell in cells)


def _draw_once(figure: Figure) -> str:
    """Return a figure as `to_data_uri` does. Most changed files leave most of a page's charts as they are."""
    key: list[Any] = []
    for axes in figure.axes:
        key += [
            (np.asarray(line.get_xydata()).tobytes(), str(line.get_label()), str(line.get_color())) for line in axes.get_lines()
        ]
        key += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(), axes.get_xscale(), axes.get_yscale()]
        key += [_numbers_of(function) for child in axes.child_axes for function in getattr(child, "_functions", ())]
    if (found := tuple(key)) not in _drawn_charts():
        _drawn_charts()[found] = to_data_uri(figure)
    return _drawn_charts()[found]


def _read_page(folder: Path) -> None:
    with mock.patch.object(page_parts, "to_data_uri", _draw_once):
        render_run_page(folder)


def _read_metrics(folder: Path) -> None:
    MetricsFile(folder / "metrics.csv", first_step=3)


def _make_sweep(folder: Path) -> None:
    job = folder / "a=1"
    job.mkdir()
    _make_run(job)
    (folder / "multirun.yaml").write_text("hydra:\n  job:\n    name: train\n")


def _read_sweep(folder: Path) -> None:
    ranking_rows(read_sweep(folder))


def _open_search(folder: Path) -> Search:
    spaces: dict[str, SearchSpace] = {"optimizer.lr": NumberRange(1e-4, 1e-2, log=True), "seed": ValueList(["1", "2"])}
    return Search.open(folder, spaces, sampler="tpe", seed=1, pruning=True, pruning_after=1)


def _make_study(folder: Path) -> None:
    search = _open_search(folder)
    for trial in search.ask(3):
        search.assign_folder(trial, f"job{trial.number}")
        if trial.number:
            search.finish(trial, 1.5, pruned=False)
    journal = folder / "study.journal"  # It names the process and the time.
    text = re.sub(r'"worker_id":"[^"]*"', '"worker_id":"x"', journal.read_text())
    journal.write_text(re.sub(r"\d{4}-\d\d-\d\dT[\d:.]*", "2026-11-26T12:00:00", text))


def _read_study(folder: Path) -> None:
    _open_search(folder).ask(1)


def _read_small(folder: Path) -> None:
    for read, name in ((read_json, "run.json"), (read_yaml, "config.yaml")):
        value: dict[str, Any] = read(folder / name)
        json.dumps(value, default=str)


RUN_READERS = {
    "run": FuzzedReader(
        _make_run,
        {"run.json": (JSON, BLIND), "config.yaml": (YAML, BLIND), "metrics.csv": (TEXT, BLIND), "samples.txt": (TEXT, BLIND)},
        _read_run,
    ),
    "results": FuzzedReader(_make_results, {"results.json": (JSON, BLIND)}, _read_results),
    "entries": FuzzedReader(_make_run, {"run.json": (JSON,), "config.yaml": (YAML,)}, _read_entries),
    "page": FuzzedReader(_make_run, {"run.json": (JSON,), "metrics.csv": (TEXT,), "samples.txt": (TEXT,)}, _read_page),
    "metrics": FuzzedReader(_make_run, {"metrics.csv": (TEXT, BLIND)}, _read_metrics),
    "sweep": FuzzedReader(_make_sweep, {"a=1/run.json": (JSON, JSON, BLIND)}, _read_sweep),
    "study": FuzzedReader(_make_study, {"study.journal": (JSON, JSON, BLIND)}, _read_study),
    "small": FuzzedReader(_make_run, {"run.json": (JSON, BLIND), "config.yaml": (YAML, BLIND)}, _read_small),
}
