"""Read well-known tasks from the Hugging Face hub, through the package datasets.

Source: the datasets and splits of lm-eval 0.4.13.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError, first_line
from gpt_pretrain.evaluation.tasks.few_shot import add_examples
from gpt_pretrain.evaluation.tasks.published_tasks import read_item
from gpt_pretrain.evaluation.tasks.task_items import Task, TaskItem
from gpt_pretrain.system.resources import bounded_memory
from gpt_pretrain.texts.datasets.guard import check_reader, own_files_only
from gpt_pretrain.texts.datasets.small_tables import read_small_tables
from gpt_pretrain.texts.extras import missing_extra

MAX_HUB_MEMORY = 1 << 31  # Bytes for the next rows. The limits of `read_small_tables` are lower.
MAX_HUB_ITEMS, MAX_HUB_CHARACTERS = 1_000_000, 1 << 28  # Of a split; the largest of these tasks has 40,000 items.


@dataclass(frozen=True)
class HubTask:
    """A dataset on the hub with the items of a task.

    Args:
        repository: The dataset.
        config: Its configuration; None if it has only one.
        split: The split to score.
        examples: The split to draw examples from.
        draws_spare: See `add_examples`.
    """

    repository: str
    config: str | None
    split: str
    examples: str
    draws_spare: bool = True


HUB_TASKS = {
    "lambada": HubTask("EleutherAI/lambada_openai", "default", "test", "test"),
    "hellaswag": HubTask("Rowan/hellaswag", None, "validation", "train"),
    "piqa": HubTask("baber/piqa", None, "validation", "train"),
    "arc_easy": HubTask("allenai/ai2_arc", "ARC-Easy", "test", "train", draws_spare=False),
    "arc_challenge": HubTask("allenai/ai2_arc", "ARC-Challenge", "test", "train", draws_spare=False),
    "winogrande": HubTask("allenai/winogrande", "winogrande_xl", "validation", "train"),
    "copa": HubTask("aps/super_glue", "copa", "validation", "train"),
}


def read_hub_task(name: str, *, limit: int | None = None, n_shots: int = 0) -> Task:
    """Read a task from the hub.

    Args:
        name: One of HUB_TASKS.
        limit: Items to keep, from its start; None keeps all.
        n_shots: Number of examples before each question.

    Raises:
        UserError: If the hub cannot be reached, or the dataset has an unexpected form.
    """
    source = HUB_TASKS[name]
    is_own_pool = n_shots > 0 and source.examples == source.split
    items = _read_split(name, source, source.split, limit=None if is_own_pool else limit)
    task = Task(name, tuple(items[:limit]))
    if not n_shots:
        return task
    pool = items if is_own_pool else _read_split(name, source, source.examples, limit=None)
    return add_examples(task, n_shots, pool=pool, draws_spare=source.draws_spare)


def _read_split(name: str, source: HubTask, split: str, *, limit: int | None) -> list[TaskItem]:
    items: list[TaskItem] = []
    left = MAX_HUB_CHARACTERS
    where = f"tasks.names={name}: {source.repository}, {split}"
    with closing(_rows(name, source, split)) as rows:
        for row in rows:
            try:
                item = read_item(row, line=len(items) + 1)
            except (ValueError, KeyError) as error:
                raise UserError(f"{where}, item {len(items) + 1}: {str(error).rstrip('.')}.") from error
            left -= sum(map(len, (*item.contexts, *item.continuations)))
            items.append(item)
            if left < 0 or len(items) > MAX_HUB_ITEMS:
                raise UserError(f"{where}: it is far larger than this task. Nothing was scored.")
            if len(items) == limit:
                break
    if not items:
        raise UserError(f"{where}: it has no items.")
    return items


def _rows(name: str, source: HubTask, split: str) -> Generator[dict[str, Any], None, None]:
    """Yield the rows of a split, streamed by datasets. No code of the dataset is run, and no other file is opened."""
    os.environ.setdefault("USE_TORCH", "0")  # Otherwise datasets imports torch.
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets") from error
    if Path(source.repository).exists():  # Otherwise datasets would read this path instead.
        raise UserError(
            f"tasks.names={name}: the current folder contains a folder {source.repository}, where the package datasets looks "
            "before the hub. Start elsewhere, or rename it."
        )
    datasets.disable_progress_bars()
    try:
        with own_files_only(source.repository, read_tables=read_small_tables):
            with bounded_memory(MAX_HUB_MEMORY):
                builder = datasets.load_dataset_builder(source.repository, source.config)
                check_reader(builder, source.repository, readers=("json", "parquet"))
                records = builder.as_streaming_dataset(split=split)
            if records.features is not None:  # datasets decodes only rows with features
                records = records.decode(False)  # Rows with images and the like may name any file or address.
            rows = iter(records)
            while True:
                with bounded_memory(MAX_HUB_MEMORY):
                    row = next(rows, None)
                if row is None:
                    return
                yield row
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # The package and the network below it may raise anything.
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"tasks.names={name}: {source.repository} cannot be read from the hub: {reason}. "
            "With a connection, save its items as JSON lines, and give the file as tasks.path."
        ) from error
