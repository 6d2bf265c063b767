"""Parts of an evaluated text that the model was trained on are found and named."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.evaluation import shared_spans
from gpt_pretrain.evaluation.contamination import LONG_SPAN, PART, task_overlap, text_overlap
from gpt_pretrain.evaluation.generated_text import find_training_tokens
from gpt_pretrain.evaluation.shared_spans import longest_shared_spans
from gpt_pretrain.evaluation.tasks.task_files import Task, TaskItem
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
    assert found.spans == tuple(size if size >= 50 else 0 for size in (longest_common(part, training) for part in parts))
    assert found.longest == 200
    warning = found.warning()
    assert warning is not None
    assert "1 of 2 parts shares long spans with the training text of a model, of up to 200 tokens" in warning
    assert found.as_json()["longest_span_tokens"] == 200


def test_a_new_text_is_not_warned_about() -> None:
    found = text_overlap(
        "a model", text_of(list(letters(900, seed=3).encode())), ListedTokens(list(letters(900, seed=4).encode()))
    )
    assert found.longest < LONG_SPAN
    assert found.warning() is None
    dashes = text_overlap("a model", text_of(list(("-" * 42).encode())), ListedTokens(list(("x" + "-" * 50).encode())))
    assert dashes.longest == 0
    assert dashes.warning() is None


def test_items_are_looked_up_with_their_right_answer() -> None:
    training = letters(500, seed=5)
    seen = TaskItem((training[:40], training[:40]), ("xxxxxxxx", training[40:60]), 1, (8, 20), 1)
    new = TaskItem((letters(40, seed=6),) * 2, ("a", "b"), 0, (1, 1), 2)
    found = task_overlap("a model", Task("task", (seen, new)), BYTE, ListedTokens(list(training.encode())))
    assert found.spans[0] == 60
    assert found.spans[1] < LONG_SPAN


def test_documents_are_looked_up_one_by_one() -> None:
    training = letters(3000, seed=9)
    documents = [letters(60, seed=100 + index) for index in range(30)]
    documents[7] = training[40:200]
    token_ids = [token_id for document in documents for token_id in (*document.encode(), 256)]
    found = text_overlap("a model", text_of(token_ids), ListedTokens(list(training.encode())))
    assert (found.unit, len(found.spans)) == ("document", 30)
    assert found.as_json()["found"] == [{"document": 7, "span_tokens": 160}]


@pytest.mark.parametrize("seed", range(4))
def test_spans_are_those_of_a_comparison_token_by_token(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.evaluation.memorization.BLOCK", 64)
    monkeypatch.setattr(shared_spans, "BLOCK", 64)
    monkeypatch.setattr(shared_spans, "OVERLAP", 32)
    chance = random.Random(seed)
    long_text = chance.choices("ab", k=900)
    texts = [chance.choices("ab", k=size) for size in (3, 8, 20, 30, 30)] + [long_text[400:428], ["a"] * 30]
    found = longest_shared_spans([to_ids(text) for text in texts], ListedTokens(to_ids(long_text).tolist()), shortest=8)
    sizes = [longest_common("".join(text), "".join(long_text)) for text in texts]
    assert found.tolist() == [size if size >= 8 else 0 for size in sizes]


def test_a_rule_of_dashes_takes_no_time() -> None:
    dashes = ListedTokens([45] * 30_000)
    assert longest_shared_spans([np.full(size, 45) for size in (60, 70)], dashes, shortest=50).tolist() == [60, 70]


def test_a_sentence_that_is_repeated_is_found_in_all_texts() -> None:
    sentence = letters(65, seed=11) * 60
    texts = [to_ids(sentence[start : start + 256]) for start in range(0, len(sentence), 256)]
    found = longest_shared_spans(texts, ListedTokens(to_ids(sentence[:3000]).tolist()), shortest=50)
    assert found.tolist() == [len(text) for text in texts]


def to_ids(letters: Sequence[str]) -> np.ndarray:
    return np.array([ord(letter) for letter in letters])


def test_the_training_text_of_a_mixture_is_found(train: Callable[..., float], tmp_path: Path, story: str) -> None:
    for name, text in (("one.txt", story[:6000]), ("two.txt", story[6000:12000])):
        (tmp_path / name).write_text(text)
    sources = f"data.sources=[{{path: {tmp_path}/one.txt, weight: 1}}, {{path: {tmp_path}/two.txt, weight: 1}}]"
    train("data=mixture", sources, "trainer.max_steps=1", "callbacks=minimal", "logger=none")
    training = find_training_tokens(read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt"), BYTE)
    assert training is not None
    assert text_overlap("a model", text_of(list(story[7000:7500].encode())), training).longest == PART
    (tmp_path / "two.txt").write_text(story[:7000])
    assert find_training_tokens(read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt"), BYTE) is None
