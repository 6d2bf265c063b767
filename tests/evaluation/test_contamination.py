"""Parts of an evaluated text that the model was trained on are found and named."""

import random
from pathlib import Path

from gpt_pretrain.evaluation.contamination import LONG_SPAN, MAX_PARTS, PART, task_overlap, text_overlap
from gpt_pretrain.evaluation.task_files import Task, TaskItem
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.evaluation.test_text_scores import ListedTokens, text_of

BYTE = build_tokenizer("byte")


def letters(count: int, *, seed: int) -> str:
    return "".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz ", k=count))


def longest_common(a: str, b: str) -> int:
    return next(size for size in range(len(a), -1, -1) if any(a[at : at + size] in b for at in range(len(a) - size + 1)))


def test_the_longest_spans_of_a_text_are_found() -> None:
    training = letters(3000, seed=0)
    copied = letters(PART, seed=1) + training[500:700] + letters(PART - 200, seed=2)
    found = text_overlap("a model", text_of(list(copied.encode())), ListedTokens(list(training.encode())))
    parts = [copied[:PART], copied[PART:]]
    assert found.spans == tuple(longest_common(part, training) for part in parts)
    assert found.longest == 200
    warning = found.warning()
    assert warning is not None
    assert "1 of 2 parts share long spans with the training text of a model, of up to 200 tokens" in warning
    assert found.as_json()["longest_span_tokens"] == 200


def test_a_new_text_is_not_warned_about() -> None:
    found = text_overlap(
        "a model", text_of(list(letters(900, seed=3).encode())), ListedTokens(list(letters(900, seed=4).encode()))
    )
    assert found.longest < LONG_SPAN
    assert found.warning() is None
    dashes = text_overlap("a model", text_of(list(("-" * 42).encode())), ListedTokens(list(("x" + "-" * 50).encode())))
    assert dashes.longest == 42
    assert dashes.warning() is None


def test_items_are_looked_up_with_their_right_answer() -> None:
    training = letters(500, seed=5)
    seen = TaskItem((training[:40], training[:40]), ("xxxxxxxx", training[40:60]), 1, (8, 20), 1)
    new = TaskItem((letters(40, seed=6),) * 2, ("a", "b"), 0, (1, 1), 2)
    found = task_overlap("a model", Task("task", (seen, new)), BYTE, ListedTokens(list(training.encode())))
    assert found.spans[0] == 60
    assert found.spans[1] < LONG_SPAN


def test_few_parts_are_looked_up_in_a_large_training_text(tmp_path: Path) -> None:
    class Large(ListedTokens):
        def __init__(self) -> None:
            super().__init__([0] * 100)
            self.count = 10**9

        def read(self, start: int = 0, count: int | None = None):  # type: ignore[no-untyped-def]
            return self.token_ids

    text = text_of(list(letters(PART * 300 + 1, seed=7).encode()))
    assert len(text_overlap("a model", text, Large()).spans) == 4
    assert len(text_overlap("a model", text, ListedTokens(list(letters(100, seed=8).encode()))).spans) == MAX_PARTS
