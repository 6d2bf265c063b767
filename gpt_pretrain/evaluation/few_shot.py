"""Choose the examples that stand before the questions of a task, as the LM Evaluation Harness and nanochat do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.task_items import MAX_ITEM_CHARACTERS, Task, TaskItem

SEED = 1234  # That of both programs.
MAX_SHOTS = 100


def add_examples(task: Task, n_shots: int, *, pool: Sequence[TaskItem], draws_spare: bool = True) -> Task:
    """Return a task with examples before each question, the same ones as in the LM Evaluation Harness.

    Args:
        pool: The items that examples are drawn from. A question is never its own example.
        draws_spare: Whether one more is drawn than needed, in case that the question itself is among them. The harness does not
            do so where a task has a test set.

    Raises:
        UserError: If there are too few items.
    """
    chosen = Random(SEED)
    n_drawn = n_shots + 1 if draws_spare else n_shots
    _check_enough(task, len(pool), n_drawn)
    examples = []
    for item in task.items:
        drawn = [pool[index] for index in chosen.sample(range(len(pool)), n_drawn)]
        kept = [one for one in drawn if one != item][:n_shots]
        if len(kept) < n_shots:  # because the pool has copies of the question
            others = [one for one in pool if one != item]
            _check_enough(task, len(others), n_shots)
            kept = [others[index] for index in chosen.sample(range(len(others)), n_shots)]
        examples.append(tuple(kept))
    return _with_examples(task, examples)


def add_core_examples(task: Task, n_shots: int) -> Task:
    """Return a task of the CORE set with the examples that nanochat takes, from the other items.

    Raises:
        UserError: If there are too few items.
    """
    _check_enough(task, len(task.items), n_shots + 1)
    examples = []
    for index in range(len(task.items)):
        drawn = Random(SEED + index).sample(range(len(task.items) - 1), n_shots)  # from a list without the question
        examples.append(tuple(task.items[other + (other >= index)] for other in drawn))
    return _with_examples(task, examples)


def _with_examples(task: Task, examples: list[tuple[TaskItem, ...]]) -> Task:
    for item, chosen in zip(task.items, examples, strict=True):
        if (size := sum(len(one.answered) for one in chosen)) > MAX_ITEM_CHARACTERS:
            raise UserError(
                f"{task.name}, line {item.line}: its {len(chosen)} examples have {size:,} characters, but may have at most "
                f"{MAX_ITEM_CHARACTERS:,}. Choose a smaller tasks.n_shots."
            )
    return replace(task, examples=tuple(examples))


def _check_enough(task: Task, count: int, needed: int) -> None:
    if count < needed:
        raise UserError(
            f"{task.name}: examples are drawn from its other items. That needs {needed:,} items, but there are {count:,}. "
            "Choose a smaller tasks.n_shots or a larger tasks.limit."
        )
