"""What a run's folder tells, read with care: any of its files may be missing, begun or damaged."""

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
    """One metric of a run; rows without it are left out.

    Args:
        steps: optimizer steps, the first being 0.
        tokens: tokens seen by then.
        values: one for each step, all of them finite.
    """

    steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.values)


@dataclass(frozen=True)
class RunContents:
    """A run as its files have it.

    Args:
        folder: where they are.
        record: of run.json; empty where there is none.
        config_text: config.yaml as it stands there; empty where there is none.
        config: its settings by dotted key, as text; empty where it cannot be read.
        metrics: of metrics.csv, by column.
        samples: of samples.txt.
    """

    folder: Path
    record: dict[str, Any]
    config_text: str
    config: dict[str, str]
    metrics: dict[str, MetricSeries]
    samples: list[Sample]

    def part(self, name: str) -> dict[str, Any]:
        """A part of the record: "result", "data" ...; empty where it is not there."""
        return section(self.record, name)

    def series(self, *columns: str) -> MetricSeries:
        """The first of some metrics that the run has; an empty one where it has none of them."""
        return next((self.metrics[column] for column in columns if self.metrics.get(column)), MetricSeries())


def read_run(folder: Path) -> RunContents:
    """Read what there is of a run."""
    text = _text(folder / CONFIG)
    return RunContents(
        folder,
        record=read_metadata(folder),
        config_text=text,
        config=_flat(_config(text)),
        metrics=read_metrics(folder / METRICS),
        samples=read_samples(folder / SAMPLES),
    )


def run_results(run: RunContents) -> dict[str, Any]:
    """What came out of a run: the record's result, and where that does not tell, as for a run that was killed, the metrics."""
    known: dict[str, Any] = {}
    whole, training = run.series("val/loss"), run.series("eval/train_loss", "train/loss")
    if whole:
        best = whole.values.index(min(whole.values))
        known |= {"best_val_loss": whole.values[best], "best_step": whole.steps[best], "val_loss": whole.values[-1]}
    if training:
        known["train_loss"] = training.values[-1]
    if run.metrics:
        known["steps"] = 1 + max(series.steps[-1] for series in run.metrics.values())
        known["tokens_seen"] = max(series.tokens[-1] for series in run.metrics.values())
    return known | {name: value for name, value in run.part("result").items() if value is not None}


def section(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a record that is a mapping itself; empty where it is none."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def read_metrics(file: Path) -> dict[str, MetricSeries]:
    """The columns of a metrics.csv; rows and values that cannot be read are left out, as are those that are not finite."""
    columns: dict[str, MetricSeries] = {}
    try:
        with open(file, encoding="utf-8", errors="replace", newline="") as stream:
            for row in csv.DictReader(line.replace("\0", "") for line in stream):
                step = _number(row.pop("step", None))
                tokens = _number(row.pop("tokens_seen", None))
                if step is None:
                    continue
                for name, text in row.items():
                    if text and (value := _number(text)) is not None:
                        series = columns.setdefault(name, MetricSeries())
                        series.steps.append(int(step))
                        series.tokens.append(int(tokens or 0))
                        series.values.append(value)
    except (OSError, csv.Error):
        pass  # what was read before that is the run's too
    return columns


def setting_text(value: Any) -> str:
    """A setting as it is typed: null, true, numbers and words as they are, lists and mappings as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _config(text: str) -> dict[str, Any]:
    """The settings in the text of a config.yaml; none where it cannot be read."""
    try:
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except Exception:  # whatever YAML's reader and OmegaConf have to say to a damaged file
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _flat(node: dict[Any, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by dotted key."""
    flat: dict[str, str] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": setting_text(value)}
    return flat


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: object) -> float | None:
    try:
        value = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
