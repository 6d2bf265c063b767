"""Choose the examples before the questions of a task. They are the same as in the LM Evaluation Harness and in nanochat."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.tasks.task_items import MAX_ITEM_CHARACTERS, Task, TaskItem

SEED = 1234  # The seed of both programs.
MAX_SHOTS = 100


def add_examples(task: Task, n_shots: int, *, pool: Sequence[TaskItem], draws_spare: bool = True) -> Task:
    """Return a task with examples before each question, the same ones as in the LM Evaluation Harness.

    Args:
        pool: The items to draw examples from. A question is never its own example.
        draws_spare: Whether to draw one more example than needed, in case the question itself is among them. The harness does
            this only for tasks without a test set.

    Raises:
        UserError: If there are too few items.
    """
    chosen = Random(SEED)
    n_drawn = n_shots + 1 if draws_spare else n_shots
    _check_enough(task, len(pool), n_drawn)
    copies: dict[TaskItem, list[int]] = {}  # the positions of each item in the pool
    for position, item in enumerate(pool):
        copies.setdefault(item, []).append(position)
    examples = []
    for item in task.items:
        drawn = [pool[index] for index in chosen.sample(range(len(pool)), n_drawn)]
        kept = [one for one in drawn if one != item][:n_shots]
        if len(kept) < n_shots:  # because the pool has copies of the question
            own = copies[item]
            _check_enough(task, len(pool) - len(own), n_shots)
            kept = [pool[_skip(own, index)] for index in chosen.sample(range(len(pool) - len(own)), n_shots)]
        examples.append(tuple(kept))
    return _with_examples(task, tuple(examples))


def _skip(left_out: Sequence[int], index: int) -> int:
    """Convert an index among the kept items of a list to a position in the whole list.

    Args:
        left_out: The positions that are left out, ascending.
    """
    # The number of kept items before a left-out position is the position minus the number of left-out positions before it.
    return index + bisect_right(range(len(left_out)), index, key=lambda number: left_out[number] - number)


def add_core_examples(task: Task, n_shots: int) -> Task:
    """Return a task of the CORE set with nanochat's examples, drawn from the other items.

    Raises:
        UserError: If there are too few items.
    """
    _check_enough(task, len(task.items), n_shots + 1)
    return _with_examples(task, CoreExamples(task.items, n_shots))


@dataclass(frozen=True)
class CoreExamples(Sequence[tuple[TaskItem, ...]]):
    """The examples of each item of a task of the CORE set. They are drawn anew at each access.

    A file of short items may ask for a hundred examples of each. To store them would take thirty times the file's size in memory.
    """

    items: tuple[TaskItem, ...]
    n_shots: int

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[TaskItem, ...]:  # type: ignore[override]
        if index >= len(self.items):
            raise IndexError(index)
        drawn = Random(SEED + index).sample(range(len(self.items) - 1), self.n_shots)  # from a list without the question
        return tuple(self.items[other + (other >= index)] for other in drawn)


def _with_examples(task: Task, examples: Sequence[tuple[TaskItem, ...]]) -> Task:
    for item, chosen in zip(task.items, examples, strict=True):
        count = len(item.contexts)
        if (size := count * sum(len(one.answered) for one in chosen)) > MAX_ITEM_CHARACTERS:
            repeated = f", counted once for each of {count} choices" if count > 1 else ""
            raise UserError(
                f"{task.name}, line {item.line}: its {len(chosen)} examples have {size:,} characters{repeated}, but may have at "
                f"most {MAX_ITEM_CHARACTERS:,}. Choose a smaller tasks.n_shots."
            )
    return replace(task, examples=examples)


def _check_enough(task: Task, count: int, needed: int) -> None:
    if count < needed:
        raise UserError(
            f"{task.name}: examples are drawn from its other items. That needs {needed:,} items, but there are {count:,}. "
            "Choose a smaller tasks.n_shots or a larger tasks.limit."
        )
