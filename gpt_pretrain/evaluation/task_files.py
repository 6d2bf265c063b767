"""Read the items of a task from a file of JSON lines: in this program's format, or as their publishers have them.

The texts are put together as the LM Evaluation Harness does it, so that the numbers are comparable.

Source: the task definitions of lm-eval 0.4 for LAMBADA (OpenAI's form), HellaSwag, PIQA, ARC, WinoGrande and COPA.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.reading import DamagedFileError, open_regular, parse_json, short_repr

MAX_LINE_BYTES = 1 << 20
ENDINGS = (".jsonl", ".json", ".ndjson")
FORMAT = (
    'Each line is {"context": "...", "choices": ["...", "..."], "label": 0}, {"contexts": ["...", "..."], "continuation": "...", '
    '"label": 0} or {"context": "...", "continuation": "..."}.'
)


@dataclass(frozen=True)
class TaskItem:
    """One question of a task.

    Args:
        contexts: The text before each continuation.
        continuations: The texts whose probability decides; several of them are choices.
        label: Index of the right one.
        sizes: Number of characters of each choice.
        line: Line of the file, from 1.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    label: int
    sizes: tuple[int, ...]
    line: int


@dataclass(frozen=True)
class Task:
    """A list of questions.

    Args:
        name: Its name for tables.
        items: The questions. All of them have choices, or none has.
    """

    name: str
    items: tuple[TaskItem, ...]

    @property
    def has_choices(self) -> bool:
        """True if a question has several answers to choose from; otherwise a text is continued."""
        return len(self.items[0].continuations) > 1


def find_tasks(path: str, *, limit: int | None = None) -> list[Task]:
    """Read a file of JSON lines as a task, or all such files of a folder.

    Args:
        limit: Items of each task to keep, from its start; None keeps all.

    Raises:
        UserError: If there are none, or a line is no item; all problems of a file are named, up to a few.
    """
    local = user_path(path)
    files = sorted(file for file in local.glob("*") if file.suffix in ENDINGS) if local.is_dir() else [local]
    if not files:
        raise UserError(f"tasks.path={path}: this folder has no files that end in {', '.join(ENDINGS)}.")
    return [read_task(file, limit=limit) for file in files]


def read_task(file: Path, *, limit: int | None = None) -> Task:
    """Read a file of JSON lines as a task.

    Raises:
        UserError: If it cannot be read, has no items, or a line is no item.
    """
    items: list[TaskItem] = []
    line_number = 0
    try:
        with open_regular(file) as stream:
            while (limit is None or len(items) < limit) and (line := stream.readline(MAX_LINE_BYTES + 1)):
                line_number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"it has more than {MAX_LINE_BYTES:,} bytes")
                if line.strip():
                    items.append(read_item(parse_json(line), line=line_number))
    except OSError as error:
        raise UserError(f"tasks.path={file} cannot be read: {error.strerror or error}.") from error
    except (DamagedFileError, ValueError) as error:
        problem = str(error).rstrip(".")
        raise UserError(f"tasks.path={file}, line {line_number or 1}: {problem}. {FORMAT}") from error
    if not items:
        raise UserError(f"tasks.path={file} has no items. {FORMAT}")
    if len({len(item.continuations) > 1 for item in items}) > 1:
        raise UserError(f"tasks.path={file}: some items have choices and others do not. Divide them into two files.")
    return Task(file.name.partition(".")[0], tuple(items))


def read_item(fields: Mapping[str, Any], *, line: int) -> TaskItem:
    """Return an item in any of the known formats.

    Raises:
        ValueError: If it is in none of them; the message says what is missing.
    """
    for needed, convert in PUBLISHED.items():
        if set(needed) <= fields.keys():
            try:
                fields = convert(fields)
            except (TypeError, AttributeError) as error:
                raise ValueError(f"its fields {', '.join(needed)} do not have the types of the published task") from error
            break
    delimiter = _text(fields, "delimiter") if "delimiter" in fields else " "
    if "choices" in fields:
        choices, context = _texts(fields, "choices"), _text(fields, "context")
        contexts, sizes = (context,) * len(choices), tuple(map(len, choices))
        continuations = tuple(delimiter + choice for choice in choices)
    elif "contexts" in fields:
        contexts, continuation = _texts(fields, "contexts"), _text(fields, "continuation")
        continuations, sizes = (delimiter + continuation,) * len(contexts), (len(continuation),) * len(contexts)
    else:
        contexts, continuation = (_text(fields, "context"),), _text(fields, "continuation")
        return TaskItem(contexts, (delimiter + continuation,), 0, (len(continuation),), line)
    label = fields.get("label")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(contexts):
        raise ValueError(f'"label" is {short_repr(label)}, but must be a number from 0 to {len(contexts) - 1}')
    return TaskItem(contexts, continuations, label, sizes, line)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f'"{name}" is missing' if value is None else f'"{name}" is {short_repr(value)}, but must be a text')
    if value == "" and name != "context":
        raise ValueError(f'"{name}" is empty')
    return value


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = fields[name]
    if not isinstance(values, list) or len(values) < 2:
        raise ValueError(f'"{name}" must be a list of at least two texts')
    return tuple(_text({name: value}, name) for value in values)


def _lambada(fields: Mapping[str, Any]) -> dict[str, Any]:
    context, _, last = _text(fields, "text").rpartition(" ")
    return {"context": context, "continuation": last}


def _hellaswag(fields: Mapping[str, Any]) -> dict[str, Any]:
    def clean(text: str) -> str:
        text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
        return text.replace("  ", " ")

    context = f"{_text(fields, 'activity_label')}: {_text(fields, 'ctx_a')} {str(fields['ctx_b']).capitalize()}"
    return {
        "context": clean(context),
        "choices": [clean(ending) for ending in _texts(fields, "endings")],
        "label": _number(fields.get("label")),
    }


def _piqa(fields: Mapping[str, Any]) -> dict[str, Any]:
    context = f"Question: {_text(fields, 'goal')}\nAnswer:"
    return {"context": context, "choices": [fields["sol1"], fields["sol2"]], "label": _number(fields.get("label"))}


def _arc(fields: Mapping[str, Any]) -> dict[str, Any]:
    question: Any = fields["question"]
    choices: Any = fields.get("choices")
    if isinstance(question, dict):  # the form of the original files
        question, choices = question.get("stem"), question.get("choices")
    if isinstance(choices, dict):  # columns, as on the hub
        names, texts = choices.get("label"), choices.get("text")
    else:
        pairs: list[dict[str, Any]] = [one if isinstance(one, dict) else {} for one in choices or []]
        names, texts = [one.get("label") for one in pairs], [one.get("text") for one in pairs]
    if not isinstance(names, Sequence) or fields["answerKey"] not in names:
        raise ValueError('"answerKey" names none of the choices')
    return {"context": f"Question: {question}\nAnswer:", "choices": texts, "label": list(names).index(fields["answerKey"])}


def _winogrande(fields: Mapping[str, Any]) -> dict[str, Any]:
    before, gap, after = _text(fields, "sentence").partition("_")
    if not gap:
        raise ValueError('"sentence" has no _ where a choice stands')
    contexts = [before + _text(fields, name) for name in ("option1", "option2")]
    return {"contexts": contexts, "continuation": after.strip(), "label": _number(fields["answer"], first=1)}


def _copa(fields: Mapping[str, Any]) -> dict[str, Any]:
    connectors = {"cause": "because", "effect": "therefore"}
    if fields["question"] not in connectors:
        raise ValueError('"question" must be cause or effect')
    choices = [_text(fields, name) for name in ("choice1", "choice2")]
    return {
        "context": f"{_text(fields, 'premise').strip()[:-1]} {connectors[fields['question']]}",
        "choices": [f" {choice[0].lower()}{choice[1:]}" for choice in choices],  # and another blank before, as in lm-eval
        "label": _number(fields.get("label")),
    }


def _number(label: Any, *, first: int = 0) -> Any:
    """Return a label that may be written as a text, counted from 0."""
    return int(label) - first if isinstance(label, int | str) and re.fullmatch(r"\d{1,3}", str(label)) else label


# How the publishers' items are recognized, by fields that only they have.
PUBLISHED: dict[tuple[str, ...], Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    ("ctx_a", "ctx_b", "endings", "activity_label"): _hellaswag,
    ("goal", "sol1", "sol2"): _piqa,
    ("question", "answerKey"): _arc,
    ("sentence", "option1", "option2", "answer"): _winogrande,
    ("premise", "choice1", "choice2", "question"): _copa,
    ("text",): _lambada,
}
