"""Examples stand before the questions of a task: other items, chosen by a fixed seed."""

from pathlib import Path
from random import Random

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.tasks.few_shot import add_examples
from gpt_pretrain.evaluation.tasks.task_files import find_tasks, read_task
from gpt_pretrain.evaluation.tasks.task_items import Task
from tests.evaluation.test_tasks import write_lines


def make_task(folder: Path, count: int = 6) -> Task:
    items = [{"context": f"Question {n}", "choices": ["yes", "no"], "label": n % 2} for n in range(count)]
    return read_task(write_lines(folder / "own.jsonl", items))


def test_prompts_hold_answered_questions(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    (task,) = find_tasks(str(tmp_path), n_shots=2, limit=3)
    assert task.n_shots == 2
    assert len(task.items) == 3
    chosen = Random(1234)
    for number, prompt in enumerate(task.prompts()):
        examples = [index for index in chosen.sample(range(6), 3) if index != number][:2]
        begin = "".join(f"Question {index} {('yes', 'no')[index % 2]}\n\n" for index in examples)
        assert prompt.contexts == (f"{begin}Question {number}",) * 2
        assert prompt.continuations == (" yes", " no")
        assert prompt.label == number % 2


def test_a_question_is_no_example_of_its_own_also_if_it_occurs_twice(tmp_path: Path) -> None:
    items = [{"context": f"Question {n % 4}", "continuation": "yes"} for n in range(8)]
    write_lines(tmp_path / "own.jsonl", items)
    (task,) = find_tasks(str(tmp_path), n_shots=3)
    for item, examples in zip(task.items, task.examples, strict=True):
        assert len(examples) == 3
        assert item not in examples


def test_too_few_items_are_explained(tmp_path: Path) -> None:
    make_task(tmp_path)
    with pytest.raises(UserError, match=r"own: examples are drawn from its other items. That needs 7 items, but there are 6"):
        find_tasks(str(tmp_path), n_shots=6)
    same = [{"context": "a", "continuation": "b"}] * 9
    write_lines(tmp_path / "own.jsonl", same)
    with pytest.raises(UserError, match="needs 2 items, but there are 0"):
        find_tasks(str(tmp_path), n_shots=2)


def test_examples_that_are_too_long_are_refused(tmp_path: Path) -> None:
    items = [{"context": f"{n}" * 500_000, "continuation": "b"} for n in range(8)]
    task = read_task(write_lines(tmp_path / "own.jsonl", items))
    with pytest.raises(UserError, match=r"its 5 examples have 2,500,010 characters, but may have at most 2,097,152"):
        add_examples(task, 5, pool=task.items)
