"""Results on tasks are compared between models, and what was not read as it is, is counted and said."""

import math
from pathlib import Path

import numpy as np
import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.tasks.few_shot import add_examples
from gpt_pretrain.evaluation.tasks.task_files import read_task
from gpt_pretrain.evaluation.tasks.task_results import TaskResult, compare_perplexities
from gpt_pretrain.evaluation.tasks.task_scoring import check_characters, score_task
from gpt_pretrain.evaluation.tasks.task_tables import task_comparisons, task_rows
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.characters import CharacterTokenizer
from tests.conftest import tiny_model
from tests.evaluation.test_tasks import write_lines
from tests.helpers.vocabularies import word_pieces


def result(model: str, losses: np.ndarray) -> TaskResult:
    return TaskResult(model, "lambada", np.zeros(len(losses)), losses=losses)


def test_perplexities_are_compared_item_by_item() -> None:
    hard = np.random.default_rng(1).normal(5, 4, 200)  # Items differ far more than models.
    small = np.random.default_rng(2).normal(0.2, 0.1, 200)
    factor, limit, is_noise = compare_perplexities(hard, hard + small)
    assert factor == pytest.approx(math.exp(small.mean()))
    assert limit == pytest.approx(math.exp(1.96 * small.std(ddof=1) / math.sqrt(200)), rel=0.01)
    assert not is_noise
    assert compare_perplexities(hard, hard)[2]
    assert compare_perplexities(hard, hard + 1)[2]  # No error at all comes from copies.
    assert compare_perplexities(hard[:5], hard[:5] + small[:5])[2]
    assert compare_perplexities(hard[:1], hard[:1] + 1)[2]
    sentences = task_comparisons([result("x", hard + small), result("y", hard)])
    assert sentences[0] == "lambada: x and y do not differ beyond noise (0.0000 ± 0.0000 of accuracy)."
    assert sentences[1].startswith("lambada: x has a higher perplexity than y, by a factor of 1.")
    assert "95% confidence: 1." in sentences[1]
    sentences = task_comparisons([result("x", hard), result("y", hard[::-1])])
    assert sentences[1] == "lambada: the perplexities of x and y do not differ beyond noise (a factor of 1.000)."


def test_columns_that_no_task_has_are_left_out() -> None:
    choices = TaskResult("x", "piqa", np.ones(4), np.ones(4))
    assert task_rows([choices])[0] == ["Task", "Model", "Items", "Accuracy", "±", "By length", "±"]
    text = result("x", np.ones(4))
    assert task_rows([text])[0] == ["Task", "Model", "Items", "Accuracy", "±", "Perplexity", "±"]
    core = TaskResult("x", "a", np.ones(4), n_shots=10, baseline=0.25)
    assert task_rows([core, choices])[0][-4:] == ["By length", "±", "Centered", "±"]
    assert task_rows([core, choices])[1] == ["a", "10", "x", "4", "1.0000", "0.0000", "-", "-", "1.0000", "0.0000"]


def test_text_that_a_vocabulary_lacks_is_counted(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(str(word_pieces(tmp_path / "pieces")))
    assert tokenizer.unknown_id is not None
    items = [
        {"context": "der", "choices": ["sinn", "ωμ"], "label": 0},
        {"context": "der", "choices": ["sinn", "der sinn"], "label": 0},
    ]
    task = read_task(write_lines(tmp_path / "own.jsonl", items))
    found = score_task(Scorer(tiny_model(vocab_size=tokenizer.vocab_size)), task, tokenizer)
    assert found.unknown == 1
    assert found.as_json()["unknown"] == 1
    (warning,) = found.warnings(16)
    assert warning.startswith("own: 1 of 2 items have text that the vocabulary of The model lacks, such as '")


def test_items_longer_than_the_context_are_said(tmp_path: Path) -> None:
    task = read_task(write_lines(tmp_path / "own.jsonl", [{"context": "0123456789" * 3, "continuation": "end"}]))
    found = score_task(Scorer(tiny_model(vocab_size=257)), task, build_tokenizer("byte"))
    assert found.warnings(16) == [
        "own: 1 of 1 items are longer than the 16 tokens of context of The model. They are cut at their beginning."
    ]


def test_a_character_that_an_alphabet_lacks_is_found_before_scoring(tmp_path: Path) -> None:
    task = read_task(write_lines(tmp_path / "own.jsonl", [{"context": "ab", "continuation": letter} for letter in "abc"]))
    check_characters(task, CharacterTokenizer(" abc"))
    with pytest.raises(UserError, match=r"^own: The character 'c' is not among the 3 characters of the model"):
        check_characters(task, CharacterTokenizer(" ab"))
    with pytest.raises(UserError, match=r"^own: The character '\\n' is not among"):
        check_characters(add_examples(task, 1, pool=task.items), CharacterTokenizer(" abc"))


def test_perplexities_are_shown_with_two_digits_and_large_ones_with_an_exponent() -> None:
    result = TaskResult("m", "own", np.array([0.0, 1.0]), losses=np.array([1.0, 3.0]))
    large = TaskResult("m", "own", np.array([0.0, 1.0]), losses=np.array([30.0, 31.0]))
    heading, row, other = task_rows([result, large])
    column = heading.index("Perplexity")
    assert row[column] == "7.39" and other[column] == "1.76e+13"
