"""Read the files that a run has left behind. Any of them may be missing, incomplete, damaged or hostile.

Only regular files in the run's folder are read. Settings stay text, and nothing in them is interpolated.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpt_pretrain.config.interpolation import unescape_interpolation
from gpt_pretrain.config.secrets import metadata_without_secrets, settings_without_secrets
from gpt_pretrain.runs.folder import METRICS
from gpt_pretrain.runs.metadata import metadata_section, read_metadata
from gpt_pretrain.runs.metrics_rows import read_rows
from gpt_pretrain.runs.samples import Sample, read_samples
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.reading_cost import explained_by_own_size
from gpt_pretrain.system.yaml_files import parse_yaml

CONFIG, SAMPLES = "config.yaml", "samples.txt"
MAX_STEP = 10**15  # steps or tokens seen; charts cannot show numbers near the limits of float64
MAX_VALUE = 1e100
MAX_CONFIG_BYTES = 200_000  # A run's config.yaml has about 3,000 bytes.
# A value of a run takes about 18 bytes in metrics.csv, and 60 in memory. In a stranger's file, it may take only two bytes. A row
# without any value takes as much time as VALUES_PER_ROW values.
FREE_VALUES, BYTES_PER_VALUE, VALUES_PER_ROW = 1_000_000, 8, 3


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
        metadata: The content of run.json, or an empty dict.
        config_text: The text of config.yaml, or an empty text.
        config: The settings in config.yaml as text, by dotted key; empty if the file cannot be read.
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
        """Return a section of the metadata, such as "result" or "data", or an empty dict."""
        return metadata_section(self.metadata, name)

    def series(self, *columns: str) -> MetricSeries:
        """Return the first of these metrics that the run has, or an empty series."""
        return first_series(self.metrics, *columns)


def first_series(metrics: Mapping[str, MetricSeries], *columns: str) -> MetricSeries:
    """Return the first of these metrics that a run has, or an empty series."""
    return next((metrics[column] for column in columns if metrics.get(column)), MetricSeries())


@explained_by_own_size
def read_run(folder: Path, *, columns: Collection[str] | None = None) -> RunContents:
    """Read the files in a run's folder.

    Args:
        columns: The columns of metrics.csv to keep; None keeps all.
    """
    text, config = read_settings(folder)
    return RunContents(
        folder,
        metadata=metadata_without_secrets(read_metadata(folder)),
        config_text=text,
        config=config,
        metrics=read_metrics(folder / METRICS, columns=columns),
        samples=read_samples(folder / SAMPLES),
    )


@explained_by_own_size
def read_settings(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the text of a run's config.yaml without secrets, and its settings by dotted key."""
    text = _read_config(folder)
    settings = _parse_config(text)
    if (cut := settings_without_secrets(settings)) != settings:  # An earlier version recorded passwords and signatures.
        settings, text = cut, yaml.safe_dump(cut, sort_keys=False, allow_unicode=True)
    return text, flatten_settings(settings)


def differing_names(settings: Sequence[Mapping[str, str]], *, also: Set[str] = frozenset()) -> Iterator[str]:
    """Yield the names of settings whose values differ between runs, or that some runs lack.

    Args:
        settings: The settings of each run.
        also: Further names to yield if a run has them.
    """
    first, counts, varied = dict[str, str](), Counter[str](), set(also)
    for one in settings:
        counts.update(one.keys())
        varied.update(name for name, value in one.items() if first.setdefault(name, value) != value)
    return (name for name in first if name in varied or counts[name] < len(settings))


def lowest_bits_per_byte(metrics: Mapping[str, MetricSeries]) -> float | None:
    """Return the lowest bits per byte of a run's validations, or None."""
    series = metrics.get("val/bits_per_byte")
    return min(series.values) if series else None


def run_results(run: RunContents) -> dict[str, Any]:
    """Return the results in the metadata. Missing ones are taken from the metrics, since a killed run has nothing else."""
    known: dict[str, Any] = {}
    validation, training = run.series("val/loss"), run.series("eval/train_loss", "train/loss")
    if validation:
        best = validation.values.index(min(validation.values))
        known |= {"best_val_loss": validation.values[best], "best_step": validation.steps[best]}
        known |= {"val_loss": validation.values[-1], "best_bits_per_byte": lowest_bits_per_byte(run.metrics)}
    if training:
        known["train_loss"] = training.values[-1]
    if run.metrics:
        known["steps"] = 1 + max(series.steps[-1] for series in run.metrics.values())
        known["tokens_seen"] = max(series.tokens[-1] for series in run.metrics.values())
    return known | {name: value for name, value in run.section("result").items() if value is not None}


@explained_by_own_size
def read_metrics(file: Path, *, columns: Collection[str] | None = None) -> dict[str, MetricSeries]:
    """Return the columns of a metrics.csv in a run's folder, without rows and values that cannot be read or are not finite.

    Reading stops after more values than a run would write into a file of this size.

    Args:
        columns: The columns to keep; None keeps all. A command that reads many runs keeps only what it shows.
    """
    found: dict[str, MetricSeries] = {}
    left = FREE_VALUES + _size(file) // BYTES_PER_VALUE
    for row in read_rows(file):
        kept = row if columns is None else {name: row[name] for name in ("step", "tokens_seen", *columns) if name in row}
        left -= VALUES_PER_ROW + _add_row(found, kept)
        if left < 0:
            break
    return found


def format_setting(value: Any) -> str:
    """Return a setting as it is typed on the command line. Lists and mappings become JSON, and `${...}` stays text."""
    text = value if isinstance(value, str) else json.dumps(_with_texts_as_names(value), ensure_ascii=False, default=str)
    return unescape_interpolation(text)


def _with_texts_as_names(value: Any) -> Any:
    """Return nested values with texts as names, as JSON requires. In YAML, names may be dates or bytes."""
    if isinstance(value, dict):
        return {str(name): _with_texts_as_names(part) for name, part in value.items()}
    return [_with_texts_as_names(part) for part in value] if isinstance(value, list) else value


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _add_row(columns: dict[str, MetricSeries], row: dict[str, str]) -> int:
    """Add the values of a row, and return their number."""
    step, tokens = _finite_number(row.pop("step", None)), _finite_number(row.pop("tokens_seen", None))
    if step is None or not -MAX_STEP < step < MAX_STEP or not -MAX_STEP < (tokens or 0) < MAX_STEP:
        return 0
    at_step, seen = int(step), int(tokens or 0)  # All columns share these objects. This saves half of the memory.
    values = {name: value for name, text in row.items() if text and (value := _finite_number(text)) is not None}
    shown = {name: value for name, value in values.items() if abs(value) < MAX_VALUE}
    for name, value in shown.items():
        series = columns.setdefault(name, MetricSeries())
        series.steps.append(at_step)
        series.tokens.append(seen)
        series.values.append(value)
    return len(shown)


def _read_config(folder: Path) -> str:
    """Return the text of config.yaml, or "" if it is missing, far too large or not a regular file in the folder."""
    try:
        return read_bytes(folder / CONFIG, max_bytes=MAX_CONFIG_BYTES, within=folder).decode(errors="replace")
    except (OSError, DamagedFileError):
        return ""


def _parse_config(text: str) -> dict[str, Any]:
    try:
        return parse_yaml(text)
    except DamagedFileError:
        return {}


def flatten_settings(node: dict[Any, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as text, by dotted key."""
    flat: dict[str, str] = {}
    for key, value in node.items():
        nested = isinstance(value, dict) and value
        flat |= flatten_settings(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": format_setting(value)}
    return flat


def _finite_number(text: object) -> float | None:
    try:
        value = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
