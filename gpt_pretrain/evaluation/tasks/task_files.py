"""Find and read the files of tasks: JSON lines in this program's or their publishers' formats."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.tasks.few_shot import add_examples
from gpt_pretrain.evaluation.tasks.hub_tasks import HUB_TASKS
from gpt_pretrain.evaluation.tasks.published_tasks import read_item
from gpt_pretrain.evaluation.tasks.task_items import FORMAT, Task, TaskItem
from gpt_pretrain.generation.prompt_files import check_prompt_text
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.json_files import check_names, parse_json
from gpt_pretrain.system.reading import DamagedFileError, open_regular
from gpt_pretrain.system.reading_cost import explained_by_own_size
from gpt_pretrain.system.recognition.conversion import quote_path
from gpt_pretrain.system.recognition.file_kinds import HEAD

MAX_LINE_BYTES = 1 << 20
MAX_TASK_FILES = 1000  # of a folder
MAX_READINGS = 2  # of one file, by several names or in several ways; its items take ten times its size in memory
ENDINGS = (".jsonl", ".json", ".ndjson")


@explained_by_own_size
def find_tasks(path: str, *, limit: int | None = None, n_shots: int = 0) -> list[Task]:
    """Read a file of JSON lines as a task, or all such files of a folder.

    Args:
        limit: Items of each task to keep, from its start; None keeps all.
        n_shots: Number of examples before each question. They are drawn from all other items of its file.

    Raises:
        UserError: If there are no files, or if a file is not a task. The message names the first line that is not an item.
    """
    local = user_path(path)
    if path in HUB_TASKS and not local.exists():
        raise UserError(
            f"tasks.path={path}: there is no such file or folder. Give the task as JSON lines; evaluate.py also reads it from "
            f"the hub: 'tasks.names=[{path}]'"
        )
    files = sorted(file for file in local.glob("*") if file.suffix.lower() in ENDINGS) if local.is_dir() else [local]
    if not files:
        raise UserError(f"tasks.path={path}: this folder has no files that end in {', '.join(ENDINGS)}.")
    if len(files) > MAX_TASK_FILES:
        raise UserError(
            f"tasks.path={path}: this folder has {len(files):,} files of tasks, more than the limit of {MAX_TASK_FILES:,}. "
            "Divide them into several folders."
        )
    try:
        check_names_of_files(files)
    except DamagedFileError as error:
        raise UserError(f"tasks.path={path} cannot be used: {error}.") from error
    stems = [file.stem for file in files]
    names = [file.stem if stems.count(file.stem) == 1 else file.name for file in files]
    tasks = []
    for file, name in zip(files, names, strict=True):
        whole = read_task(file, name=name, limit=None if n_shots else limit)
        task = replace(whole, items=whole.items[:limit])
        tasks.append(add_examples(task, n_shots, pool=whole.items) if n_shots else task)
    return tasks


def check_names_of_files(paths: Iterable[Path], *, most: int = MAX_READINGS) -> None:
    """Check that no file has many of these names, by links or otherwise. It would be read once for each name.

    Raises:
        DamagedFileError: If a file has too many.
    """
    found = Counter((status.st_dev, status.st_ino) for status in (path.stat() for path in paths if path.exists()))
    if (count := max(found.values(), default=0)) > most:
        raise DamagedFileError(f"{count:,} tasks share one file, more than the limit of {most}")


def read_task(file: Path, *, name: str | None = None, limit: int | None = None) -> Task:
    """Read a file of JSON lines as a task.

    Args:
        name: The name of the task; None takes the file's name without its ending.

    Raises:
        UserError: If the file cannot be read, has no items, or has a line that is not an item.
    """
    items = read_items(file, read_item, limit=limit, form=FORMAT)
    if len({len(item.continuations) > 1 for item in items}) > 1:
        raise UserError(f"tasks.path={file}: some items have choices and others do not. Divide them into two files.")
    return Task(name or file.stem, tuple(items))


def read_items(
    file: Path, read: Callable[..., TaskItem], *, form: str, limit: int | None = None, within: Path | None = None
) -> list[TaskItem]:
    """Read the items in a file of JSON lines.

    Args:
        read: Converts a JSON object and its line number to an item, or raises ValueError.
        form: A sentence about the form of the lines.
        within: A folder that the file must lie in, even if it is a link.

    Raises:
        UserError: If the file cannot be read, has no items, or has a line that is not an item.
    """
    items: list[TaskItem] = []
    line_number = 0
    try:
        with open_regular(file, within=within) as stream:
            check_prompt_text(file, stream.read(HEAD), name=f"tasks.path={file}", as_text=True)
            stream.seek(0)
            while (limit is None or len(items) < limit) and (line := stream.readline(MAX_LINE_BYTES + 1)):
                line_number += 1
                content = line.removeprefix(codecs.BOM_UTF8).strip()
                if not items and (content.startswith(b"[") or content == b"{"):
                    raise UserError(_several_lines(file, is_array=content.startswith(b"[")))
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"it has more than {MAX_LINE_BYTES:,} bytes")
                if content:
                    items.append(read(_parse_line(content), line=line_number))
    except OSError as error:
        raise UserError(f"tasks.path={file} cannot be read: {error.strerror or error}.") from error
    except UserError:
        raise
    except (DamagedFileError, ValueError) as error:
        problem = str(error).rstrip(".")
        raise UserError(f"tasks.path={file}, line {line_number or 1}: {problem}. {form}") from error
    if not items:
        raise UserError(f"tasks.path={file} has no items. {form}")
    return items


def _several_lines(file: Path, *, is_array: bool) -> str:
    held, query = ("a JSON array", "'.[]'") if is_array else ("JSON over several lines", ".")
    return (
        f"tasks.path={file} holds {held}, but a task has one item in each line. "
        f"Convert it: jq -c {query} {quote_path(str(file))} > {quote_path(f'{file.stem}_lines.jsonl')}"
    )


def _parse_line(line: bytes) -> dict[str, Any]:
    """Parse a JSON object. No name may occur twice in it, since only the last value would count."""
    fields = parse_json(line)
    check_names(line)
    return fields
