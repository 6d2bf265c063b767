"""Read the items of a task from a file of JSON lines: in this program's format, or as their publishers have them.

The texts are put together as the LM Evaluation Harness does it, so that the numbers are comparable.

Source: the task definitions of lm-eval 0.4 for LAMBADA (OpenAI's form), HellaSwag, PIQA, ARC, WinoGrande and COPA.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.reading import DamagedFileError, open_regular, parse_json, short_repr

MAX_LINE_BYTES = 1 << 20
MAX_CHOICES, MAX_DELIMITER = 100, 16
MAX_ITEM_CHARACTERS = 1 << 21  # Of an item's texts, where the context counts once for each choice, as the tokenizer reads it.
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
        UserError: If there are none, or the first file that is no task; it is named with its first line that is no item.
    """
    local = user_path(path)
    files = sorted(file for file in local.glob("*") if file.suffix.lower() in ENDINGS) if local.is_dir() else [local]
    if not files:
        raise UserError(f"tasks.path={path}: this folder has no files that end in {', '.join(ENDINGS)}.")
    stems = [file.stem for file in files]
    names = [file.stem if stems.count(file.stem) == 1 else file.name for file in files]
    return [read_task(file, name=name, limit=limit) for file, name in zip(files, names, strict=True)]


def read_task(file: Path, *, name: str | None = None, limit: int | None = None) -> Task:
    """Read a file of JSON lines as a task.

    Args:
        name: The name of the task; None takes the file's, without its ending.

    Raises:
        UserError: If it cannot be read, has no items, or a line is no item.
    """
    items: list[TaskItem] = []
    line_number = 0
    try:
        with open_regular(file) as stream:
            while (limit is None or len(items) < limit) and (line := stream.readline(MAX_LINE_BYTES + 1)):
                line_number += 1
                content = line.removeprefix(codecs.BOM_UTF8).strip()
                if not items and (content.startswith(b"[") or content == b"{"):
                    raise UserError(_several_lines(file, is_array=content.startswith(b"[")))
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"it has more than {MAX_LINE_BYTES:,} bytes")
                if content:
                    items.append(read_item(_parse_line(content), line=line_number))
    except OSError as error:
        raise UserError(f"tasks.path={file} cannot be read: {error.strerror or error}.") from error
    except UserError:
        raise
    except (DamagedFileError, ValueError) as error:
        problem = str(error).rstrip(".")
        raise UserError(f"tasks.path={file}, line {line_number or 1}: {problem}. {FORMAT}") from error
    if not items:
        raise UserError(f"tasks.path={file} has no items. {FORMAT}")
    if len({len(item.continuations) > 1 for item in items}) > 1:
        raise UserError(f"tasks.path={file}: some items have choices and others do not. Divide them into two files.")
    return Task(name or file.stem, tuple(items))


def _several_lines(file: Path, *, is_array: bool) -> str:
    held, query = ("a JSON array", "'.[]'") if is_array else ("JSON over several lines", ".")
    return (
        f"tasks.path={file} holds {held}, but a task has one item in each line. "
        f"Convert it: jq -c {query} {file.name} > {file.stem}_lines.jsonl"
    )


def _parse_line(line: bytes) -> dict[str, Any]:
    """Parse a JSON object, none of whose names may be given twice, since only the last value would count."""
    fields = parse_json(line)
    json.loads(line, object_pairs_hook=_check_names)
    return fields


def _check_names(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"{short_repr(name)} is given twice")
        seen.add(name)


def read_item(fields: Mapping[str, Any], *, line: int) -> TaskItem:
    """Return an item in any of the known formats.

    Raises:
        ValueError: If it is in none of them; the message says what is missing.
    """
    if not OWN_FIELDS & fields.keys():
        fields = _convert_published(fields)
    for one, other in (("context", "contexts"), ("choices", "continuation")):
        if {one, other} <= fields.keys():
            raise ValueError(f'it has "{one}" and "{other}", of which only one is allowed')
    delimiter = _text(fields, "delimiter", may_be_empty=True) if "delimiter" in fields else " "
    if len(delimiter) > MAX_DELIMITER:
        raise ValueError(f'"delimiter" has {len(delimiter):,} characters, but may have at most {MAX_DELIMITER}')
    if "contexts" in fields:
        contexts, continuation = _texts(fields, "contexts"), _text(fields, "continuation")
        endings = (continuation,) * len(contexts)
    elif "choices" in fields:
        endings, context = _texts(fields, "choices"), _text(fields, "context", may_be_empty=True)
        contexts = (context,) * len(endings)
    else:
        contexts, endings = (_text(fields, "context", may_be_empty=True),), (_text(fields, "continuation"),)
    if (size := sum(map(len, contexts + endings))) > MAX_ITEM_CHARACTERS:
        raise ValueError(
            f"its texts have {size:,} characters with one context for each choice, of at most {MAX_ITEM_CHARACTERS:,}"
        )
    label = _label(fields, "label", count=len(endings)) if len(endings) > 1 else 0
    return TaskItem(contexts, tuple(delimiter + ending for ending in endings), label, tuple(map(len, endings)), line)


def _convert_published(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a publisher's item with the fields of this program's format; other items are returned as they are."""
    for needed, convert in PUBLISHED.items():
        if set(needed) <= fields.keys():
            try:
                return convert(fields)
            except (TypeError, AttributeError) as error:
                raise ValueError(f"its fields {', '.join(needed)} do not have the types of the published task") from error
    return fields


def _text(fields: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f'"{name}" is missing' if value is None else f'"{name}" is {short_repr(value)}, but must be a text')
    if value == "" and not may_be_empty:
        raise ValueError(f'"{name}" is empty')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise ValueError(f'"{name}" has half a character ({half}, a surrogate without its other half)') from error
    return value


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = fields[name]
    if not isinstance(values, list) or len(values) < 2:
        raise ValueError(f'"{name}" must be a list of at least two texts')
    if len(values) > MAX_CHOICES:
        raise ValueError(f'"{name}" has {len(values):,} texts, but may have at most {MAX_CHOICES}')
    return tuple(_text({name: value}, name, may_be_empty=name == "contexts") for value in values)


def _label(fields: Mapping[str, Any], name: str, *, count: int, first: int = 0, is_text: bool = False) -> int:
    """Return the index of the right choice, counted from 0.

    Args:
        first: What the file calls the first choice.
        is_text: Whether the number may be written as a text, which in a task of the user's own could be meant as a choice.

    Raises:
        ValueError: If it is none of the choices.
    """
    value = fields.get(name)
    if value is None:
        raise ValueError(f'"{name}" is missing')
    # Tables that have a gap in a column write its whole numbers as 1.0.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    text = value if is_text and isinstance(value, str) else str(value) if is_number else ""
    for index in range(count):
        if text in (str(index + first), f"{index + first}.0"):
            return index
    last = first + count - 1
    allowed = f"{first} or {last}" if count == 2 else f"a whole number from {first} to {last}"
    raise ValueError(f'"{name}" is {short_repr(value)}, but must be {allowed}')


def _lambada(fields: Mapping[str, Any]) -> dict[str, Any]:
    if unexpected := fields.keys() & {"label", "answer", "choices"}:
        raise ValueError(f'it has "text" and "{min(unexpected)}": LAMBADA has only "text", and other tasks have a "context"')
    context, _, last = _text(fields, "text").rpartition(" ")
    return {"context": context, "continuation": last}


def _hellaswag(fields: Mapping[str, Any]) -> dict[str, Any]:
    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return "\n".join(map(_remove_brackets, text.split("\n"))).replace("  ", " ")

    rest = _text(fields, "ctx_b", may_be_empty=True).capitalize()
    endings = _texts(fields, "endings")
    return {
        "context": clean(f"{_text(fields, 'activity_label')}: {_text(fields, 'ctx_a')} {rest}"),
        "choices": [clean(ending) for ending in endings],
        "label": _label(fields, "label", count=len(endings), is_text=True),
    }


def _remove_brackets(line: str) -> str:
    r"""Return a line without the parts in brackets: `re.sub(r"\[.*?\]", "", line)` in linear time."""
    kept, start = [], 0
    while (opening := line.find("[", start)) >= 0 and (closing := line.find("]", opening)) >= 0:
        kept.append(line[start:opening])
        start = closing + 1
    return "".join([*kept, line[start:]])


def _piqa(fields: Mapping[str, Any]) -> dict[str, Any]:
    if fields.get("label") is None:
        raise ValueError(
            '"label" is missing. PIQA\'s labels are in a file of their own (valid-labels.lst); add them to the items'
        )
    context = f"Question: {_text(fields, 'goal')}\nAnswer:"
    label = _label(fields, "label", count=2, is_text=True)
    return {"context": context, "choices": [fields["sol1"], fields["sol2"]], "label": label}


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
    question, answer = _text({"question": question}, "question"), fields["answerKey"]
    if not isinstance(names, list) or names.count(answer) != 1:
        raise ValueError(f'"answerKey" is {short_repr(answer)}, which must name one of the choices')
    if not isinstance(texts, list) or len(texts) != len(names):
        raise ValueError('"choices" does not have one text for each label')
    return {"context": f"Question: {question}\nAnswer:", "choices": texts, "label": names.index(answer)}


def _winogrande(fields: Mapping[str, Any]) -> dict[str, Any]:
    before, gap, after = _text(fields, "sentence").partition("_")
    if not gap:
        raise ValueError('"sentence" has no _ where a choice stands')
    contexts = [before + _text(fields, name) for name in ("option1", "option2")]
    return {
        "contexts": contexts,
        "continuation": after.strip(),
        "label": _label(fields, "answer", count=2, first=1, is_text=True),
    }


def _copa(fields: Mapping[str, Any]) -> dict[str, Any]:
    connectors = {"cause": "because", "effect": "therefore"}
    if fields["question"] not in connectors:
        raise ValueError('"question" must be cause or effect')
    choices = [_text(fields, name) for name in ("choice1", "choice2")]
    return {
        "context": f"{_text(fields, 'premise').strip()[:-1]} {connectors[fields['question']]}",
        "choices": [f" {choice[0].lower()}{choice[1:]}" for choice in choices],  # and another blank before, as in lm-eval
        "label": _label(fields, "label", count=2, is_text=True),
    }


OWN_FIELDS = {"context", "contexts", "continuation"}
# How the publishers' items are recognized, by fields that only they have.
PUBLISHED: dict[tuple[str, ...], Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    ("ctx_a", "ctx_b", "endings", "activity_label"): _hellaswag,
    ("goal", "sol1", "sol2"): _piqa,
    ("question", "answerKey"): _arc,
    ("sentence", "option1", "option2", "answer"): _winogrande,
    ("premise", "choice1", "choice2", "question"): _copa,
    ("text",): _lambada,
}
