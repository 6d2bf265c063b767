"""Read what a run left behind. Any of its files may be missing, incomplete or damaged."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.runs.samples import Sample, read_samples

CONFIG, METRICS, SAMPLES = "config.yaml", "metrics.csv", "samples.txt"


@dataclass(frozen=True)
class MetricSeries:
    """The finite values of one metric of a run.

    Args:
        steps: Optimizer steps, counted from 0.
        tokens: Tokens seen after each step.
        values: One value per step.
    """

    steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.values)


@dataclass(frozen=True)
class RunContents:
    """The contents of a run's folder.

    Args:
        folder: The folder.
        metadata: The content of run.json; empty if there is none.
        config_text: The text of config.yaml; empty if there is none.
        config: The settings in it as text, by dotted key; empty if it cannot be read.
        metrics: The columns of metrics.csv.
        samples: The samples in samples.txt.
    """

    folder: Path
    metadata: dict[str, Any]
    config_text: str
    config: dict[str, str]
    metrics: dict[str, MetricSeries]
    samples: list[Sample]

    def section(self, name: str) -> dict[str, Any]:
        """Return a section of the metadata, such as "result" or "data"; empty if there is none."""
        return metadata_section(self.metadata, name)

    def series(self, *columns: str) -> MetricSeries:
        """Return the first of these metrics that the run has; an empty series if it has none of them."""
        return next((self.metrics[column] for column in columns if self.metrics.get(column)), MetricSeries())


def read_run(folder: Path) -> RunContents:
    """Read the files in a run's folder."""
    text = _read_text(folder / CONFIG)
    return RunContents(
        folder,
        metadata=read_metadata(folder),
        config_text=text,
        config=_flatten(_parse_config(text)),
        metrics=read_metrics(folder / METRICS),
        samples=read_samples(folder / SAMPLES),
    )


def run_results(run: RunContents) -> dict[str, Any]:
    """Return the results in the metadata, completed from the metrics, which are all that a killed run has."""
    known: dict[str, Any] = {}
    validation, training = run.series("val/loss"), run.series("eval/train_loss", "train/loss")
    if validation:
        best = validation.values.index(min(validation.values))
        known |= {"best_val_loss": validation.values[best], "best_step": validation.steps[best]}
        known["val_loss"] = validation.values[-1]
    if training:
        known["train_loss"] = training.values[-1]
    if run.metrics:
        known["steps"] = 1 + max(series.steps[-1] for series in run.metrics.values())
        known["tokens_seen"] = max(series.tokens[-1] for series in run.metrics.values())
    return known | {name: value for name, value in run.section("result").items() if value is not None}


def metadata_section(metadata: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of run metadata; empty if it is missing or not a mapping."""
    value = metadata.get(name)
    return value if isinstance(value, dict) else {}


def read_metrics(file: Path) -> dict[str, MetricSeries]:
    """Return the columns of a metrics.csv, without rows and values that cannot be read or are not finite."""
    columns: dict[str, MetricSeries] = {}
    try:
        with open(file, encoding="utf-8", errors="replace", newline="") as stream:
            for row in csv.DictReader(line.replace("\0", "") for line in stream):
                _add_row(columns, row)
    except (OSError, csv.Error):
        pass  # The rows before the error are valid.
    return columns


def format_setting(value: Any) -> str:
    """Return a setting as it is typed on the command line; lists and mappings as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _add_row(columns: dict[str, MetricSeries], row: dict[str, str]) -> None:
    step, tokens = _finite_number(row.pop("step", None)), _finite_number(row.pop("tokens_seen", None))
    if step is None:
        return
    for name, text in row.items():
        if text and (value := _finite_number(text)) is not None:
            series = columns.setdefault(name, MetricSeries())
            series.steps.append(int(step))
            series.tokens.append(int(tokens or 0))
            series.values.append(value)


def _parse_config(text: str) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except Exception:  # A damaged file can raise any error of PyYAML and OmegaConf.
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _flatten(node: dict[Any, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as text, by dotted key."""
    flat: dict[str, str] = {}
    for key, value in node.items():
        nested = isinstance(value, dict) and value
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": format_setting(value)}
    return flat


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _finite_number(text: object) -> float | None:
    try:
        value = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
