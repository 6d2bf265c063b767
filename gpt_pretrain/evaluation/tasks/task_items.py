"""The items of a task, and this program's own format for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpt_pretrain.system.shown_values import short_repr

MAX_CHOICES, MAX_DELIMITER = 100, 16
MAX_ITEM_CHARACTERS = 1 << 21  # All texts of an item. The context counts once for each choice, since each is tokenized with it.
FORMAT = (
    'Each line is {"context": "...", "choices": ["...", "..."], "label": 0}, {"contexts": ["...", "..."], "continuation": "...", '
    '"label": 0} or {"context": "...", "continuation": "..."}.'
)
SEPARATOR = "\n\n"  # after each example, as in the LM Evaluation Harness and in nanochat
OWN_FIELDS = {"context", "contexts", "continuation"}


@dataclass(frozen=True)
class TaskItem:
    """One question of a task.

    Args:
        contexts: The text before each continuation.
        continuations: The texts to score. If there are several, they are choices.
        label: Index of the right choice.
        sizes: Number of characters of each choice.
        line: Line of the file, from 1.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    label: int
    sizes: tuple[int, ...]
    line: int = field(compare=False)

    @property
    def answered(self) -> str:
        """The question with its right answer."""
        return self.contexts[self.label] + self.continuations[self.label]


@dataclass(frozen=True)
class CoreRule:
    """The kind of a task of the CORE set, which decides its judgment, and its baseline.

    Args:
        kind: multiple_choice, schema or language_modeling.
        baseline: The accuracy of guessing, from 0 to 1.
    """

    kind: str
    baseline: float


@dataclass(frozen=True)
class Task:
    """A list of questions.

    Args:
        name: Its name in tables.
        items: The questions. Either all of them have choices, or none has.
        examples: For each question, the answered questions that precede it.
        core: The rule of a task of the CORE set; None for other tasks.
    """

    name: str
    items: tuple[TaskItem, ...]
    examples: Sequence[tuple[TaskItem, ...]] = ()
    core: CoreRule | None = None

    @property
    def has_choices(self) -> bool:
        """True if a question has several answers to choose from. Otherwise it is a text to continue."""
        return len(self.items[0].continuations) > 1

    @property
    def n_shots(self) -> int:
        """The number of examples before each question."""
        return len(self.examples[0]) if self.examples else 0

    def prompts(self) -> Iterator[TaskItem]:
        """Yield the questions with the examples before them."""
        if not self.examples:
            yield from self.items
            return
        for item, examples in zip(self.items, self.examples, strict=True):
            begin = "".join(example.answered + SEPARATOR for example in examples)
            yield replace(item, contexts=put_before(begin, item.contexts))


def read_own_item(fields: Mapping[str, Any], *, line: int) -> TaskItem:
    """Return an item in this program's format.

    Raises:
        ValueError: If it is in another format. The message names the missing fields.
    """
    for one, other in (("context", "contexts"), ("choices", "continuation")):
        if {one, other} <= fields.keys():
            raise ValueError(f'it has "{one}" and "{other}", of which only one is allowed')
    delimiter = read_text_field(fields, "delimiter", may_be_empty=True) if "delimiter" in fields else " "
    if len(delimiter) > MAX_DELIMITER:
        raise ValueError(f'"delimiter" has {len(delimiter):,} characters, but may have at most {MAX_DELIMITER}')
    if "contexts" in fields:
        contexts, continuation = read_texts_field(fields, "contexts"), read_text_field(fields, "continuation")
        endings = (continuation,) * len(contexts)
    elif "choices" in fields:
        endings, context = read_texts_field(fields, "choices"), read_text_field(fields, "context", may_be_empty=True)
        contexts = (context,) * len(endings)
    else:
        contexts, endings = (read_text_field(fields, "context", may_be_empty=True),), (read_text_field(fields, "continuation"),)
    check_item_size(contexts, endings)
    label = read_label(fields, "label", count=len(endings)) if len(endings) > 1 else 0
    if "choices" in fields and endings.count(endings[label]) > 1:
        raise ValueError('"choices" has the right answer more than once')
    return TaskItem(contexts, put_before(delimiter, endings), label, tuple(map(len, endings)), line)


def put_before(begin: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Return texts with another one put before each of them. Equal texts share one string, since an item may have many."""
    whole = {text: begin + text for text in texts}
    return tuple(whole[text] for text in texts)


def check_item_size(contexts: tuple[str, ...], endings: tuple[str, ...]) -> None:
    """Check that an item's texts are not too long.

    Raises:
        ValueError: If they are too long.
    """
    if (size := sum(map(len, contexts + endings))) > MAX_ITEM_CHARACTERS:
        raise ValueError(
            f"its texts have {size:,} characters with one context for each choice, but may have at most {MAX_ITEM_CHARACTERS:,}"
        )


def read_text_field(fields: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    """Return a field that must be a text.

    Raises:
        ValueError: If it is not one.
    """
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


def read_texts_field(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a field that must be a list of texts.

    Raises:
        ValueError: If it is not one.
    """
    values = fields.get(name)
    if values is None:
        raise ValueError(f'"{name}" is missing')
    if not isinstance(values, list) or len(values) < 2:
        raise ValueError(f'"{name}" must be a list of at least two texts')
    if len(values) > MAX_CHOICES:
        raise ValueError(f'"{name}" has {len(values):,} texts, but may have at most {MAX_CHOICES}')
    named = ((f"{name}[{index}]", value) for index, value in enumerate(values))
    return tuple(read_text_field({one: value}, one, may_be_empty=name == "contexts") for one, value in named)


def read_label(fields: Mapping[str, Any], name: str, *, count: int, first: int = 0, is_text: bool = False) -> int:
    """Return the index of the right choice, counted from 0.

    Args:
        first: The file's number for the first choice.
        is_text: Whether the number may be written as a text. In the user's own task, such a text could mean a choice.

    Raises:
        ValueError: If it is not one of the choices.
    """
    value = fields.get(name)
    if value is None:
        raise ValueError(f'"{name}" is missing')
    # If a column of a table has a gap, its whole numbers are written as 1.0.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    text = value if is_text and isinstance(value, str) else str(value) if is_number else ""
    for index in range(count):
        if text in (str(index + first), f"{index + first}.0"):
            return index
    last = first + count - 1
    allowed = f"{first} or {last}" if count == 2 else f"a whole number from {first} to {last}"
    raise ValueError(f'"{name}" is {short_repr(value)}, but must be {allowed}')
