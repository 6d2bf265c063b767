"""Read the tasks of the CORE set from nanochat's folder eval_bundle.

Source: nanochat, `scripts/base_eval.py` and `nanochat/core_eval.py`; Li et al. 2024 (arXiv:2406.11794), "DataComp-LM", for the
choice of the tasks and the centered accuracy.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from gpt_pretrain.errors import UserError, describe_damage
from gpt_pretrain.evaluation.tasks.few_shot import MAX_SHOTS, add_core_examples
from gpt_pretrain.evaluation.tasks.task_files import check_names_of_files, read_items
from gpt_pretrain.evaluation.tasks.task_items import (
    CoreRule,
    Task,
    TaskItem,
    check_item_size,
    read_label,
    read_text_field,
    read_texts_field,
)
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.reading_cost import explained_by_own_size
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.system.yaml_files import read_yaml

CONFIG, BASELINES, DATA = "core.yaml", "eval_meta_data.csv", "eval_data"
ORDER_SEED = 1337  # nanochat shuffles the items of each task, since the files are often sorted.
MAX_TASKS, MAX_TASK_NAME, MAX_CORE_DELIMITER = 200, 100, 100
MAX_TASKS_OF_FILE = 10  # They differ in the number of examples. The CORE set has HellaSwag twice.
MAX_BASELINE_BYTES = 1_000_000  # The file of the set has 4,000.
TASK_COLUMN, BASELINE_COLUMN = "Eval Task", "Random baseline"
FORMS = {
    "multiple_choice": 'Each line is {"query": "...", "choices": ["...", "..."], "gold": 0}.',
    "schema": 'Each line is {"context_options": ["...", "..."], "continuation": "...", "gold": 0}.',
    "language_modeling": 'Each line is {"context": "...", "continuation": "..."}.',
}


@dataclass(frozen=True)
class _Entry:
    """A task of core.yaml."""

    name: str
    kind: str
    file: str
    n_shots: int
    delimiter: str

    @property
    def reading(self) -> tuple[str, str, str]:
        """Everything that determines its items. Several tasks may share them."""
        return self.file, self.kind, self.delimiter


def is_core_folder(folder: Path) -> bool:
    """Return whether a folder contains the CORE set."""
    return (folder / CONFIG).is_file()


@explained_by_own_size
def read_core_tasks(folder: Path, *, limit: int | None = None, n_shots: int | None = None) -> list[Task]:
    """Read the tasks of the CORE set, with the items in nanochat's order and with its examples.

    Args:
        limit: Items of each task to keep; None keeps all. Examples are drawn from the kept items.
        n_shots: Number of examples before each question; None takes the number in core.yaml.

    Raises:
        UserError: If a file is missing or damaged, or has an unknown name in it.
    """
    try:
        entries = read_yaml(folder / CONFIG, within=folder).get("icl_tasks")
        if not isinstance(entries, list) or not 0 < len(entries) <= MAX_TASKS:
            raise DamagedFileError(f'"icl_tasks" must be a list of 1 to {MAX_TASKS} tasks')
        parsed = [_parse_entry(entry) for entry in entries]
        names = [entry.name for entry in parsed]
        if twice := [name for name in names if names.count(name) > 1]:
            raise DamagedFileError(f"two tasks have the label {short_repr(twice[0])}")
        check_names_of_files((folder / DATA / entry.file for entry in parsed), most=MAX_TASKS_OF_FILE)
        readings = list(dict.fromkeys(entry.reading for entry in parsed))
        check_names_of_files(folder / DATA / file for file, _, _ in readings)
    except (OSError, ValueError) as error:
        raise UserError(f"tasks.path={folder / CONFIG} cannot be used: {_reason(error)}.") from error
    baselines = _read_baselines(folder)
    if missing := [name for name in names if name not in baselines]:
        raise UserError(f"tasks.path={folder / BASELINES} has no random baseline for {short_repr(missing[0])}.")
    items = {reading: _read_items(folder, *reading, limit=limit) for reading in readings}
    tasks = []
    for entry in parsed:
        task = Task(entry.name, items[entry.reading], core=CoreRule(entry.kind, baselines[entry.name]))
        shots = entry.n_shots if n_shots is None else n_shots
        tasks.append(add_core_examples(task, shots) if shots else task)
    return tasks


def _read_items(folder: Path, file: str, kind: str, delimiter: str, *, limit: int | None) -> tuple[TaskItem, ...]:
    read = partial(read_core_item, kind=kind, delimiter=delimiter)
    items = read_items(folder / DATA / file, read, form=FORMS[kind], within=folder / DATA)
    Random(ORDER_SEED).shuffle(items)
    return tuple(items[:limit])


def read_core_item(fields: Mapping[str, Any], *, line: int, kind: str, delimiter: str) -> TaskItem:
    """Return an item of a task of the CORE set.

    Raises:
        ValueError: If it is not of this kind.
    """
    contexts: tuple[str, ...]
    endings: tuple[str, ...]
    if kind == "language_modeling":
        contexts = (read_text_field(fields, "context", may_be_empty=True).strip() + delimiter,)
        endings = (read_text_field(fields, "continuation"),)
    elif kind == "schema":
        contexts = read_texts_field(fields, "context_options")
        endings = (delimiter + read_text_field(fields, "continuation"),) * len(contexts)
    else:
        choices = read_texts_field(fields, "choices")
        contexts = (read_text_field(fields, "query", may_be_empty=True),) * len(choices)
        endings = tuple(delimiter + choice for choice in choices)
    check_item_size(contexts, endings)
    label = 0 if kind == "language_modeling" else read_label(fields, "gold", count=len(endings))
    return TaskItem(contexts, endings, label, tuple(map(len, endings)), line)


def _parse_entry(entry: Any) -> _Entry:
    """Return a task of core.yaml.

    Raises:
        DamagedFileError: If it is not one.
    """
    if not isinstance(entry, dict):
        raise DamagedFileError(f"{short_repr(entry)} is not a task")
    name, kind, file = (entry.get(key) for key in ("label", "icl_task_type", "dataset_uri"))
    if not isinstance(name, str) or not 0 < len(name) <= MAX_TASK_NAME:
        raise DamagedFileError(f'a task has the "label" {short_repr(name)}, which must be a short text')
    where = f"the task {short_repr(name)} has the"
    if kind not in FORMS:
        raise DamagedFileError(f'{where} "icl_task_type" {short_repr(kind)}, which must be one of {", ".join(FORMS)}')
    if not isinstance(file, str) or not file or Path(file).is_absolute() or ".." in Path(file).parts:
        raise DamagedFileError(f'{where} "dataset_uri" {short_repr(file)}, which must be a path in {DATA}')
    shots = entry.get("num_fewshot", [0])
    first = shots[0] if isinstance(shots, list) and shots else shots
    if type(first) is not int or not 0 <= first <= MAX_SHOTS:
        raise DamagedFileError(f'{where} "num_fewshot" {short_repr(shots)}, which must be a number from 0 to {MAX_SHOTS}')
    delimiter = entry.get("continuation_delimiter", " ")
    if not isinstance(delimiter, str) or len(delimiter) > MAX_CORE_DELIMITER:
        raise DamagedFileError(f'{where} "continuation_delimiter" {short_repr(delimiter)}, which must be a short text')
    return _Entry(name, str(kind), file, first, delimiter)


def _read_baselines(folder: Path) -> dict[str, float]:
    """Return the accuracy of guessing by task, from 0 to 1."""
    try:
        text = read_bytes(folder / BASELINES, max_bytes=MAX_BASELINE_BYTES, within=folder).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
        name, baseline = (_column(rows[:1], title) for title in (TASK_COLUMN, BASELINE_COLUMN))
        if any(len(row) <= max(name, baseline) for row in rows):
            raise ValueError("a row has fewer cells than the heading")
        found = {row[name]: float(row[baseline]) / 100 for row in rows[1:]}
        if wrong := [name for name, value in found.items() if not (math.isfinite(value) and 0 <= value < 1)]:
            raise ValueError(f"the random baseline of {short_repr(wrong[0])} must be at least 0 and below 100 percent")
    except KeyError as error:
        raise UserError(f"tasks.path={folder / BASELINES} has no column {error}.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"tasks.path={folder / BASELINES} cannot be used: {_reason(error)}.") from error
    return found


def _column(headings: Sequence[Sequence[str]], title: str) -> int:
    """Return the index of a column.

    Raises:
        KeyError: If there is no such column, or no heading.
    """
    for heading in headings:
        if title in heading:
            return heading.index(title)
    raise KeyError(title)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or describe_damage(error)).rstrip(".")
