"""Tasks of strangers that are made to cost much time or memory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation import shared_spans
from gpt_pretrain.evaluation.packing import MAX_PACKED, ScoreRequest, pack_requests
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.shared_spans import _WindowIndex, longest_shared_spans
from gpt_pretrain.evaluation.tasks import task_files
from gpt_pretrain.evaluation.tasks.core_tasks import read_core_tasks
from gpt_pretrain.evaluation.tasks.few_shot import SEED, add_core_examples, add_examples
from gpt_pretrain.evaluation.tasks.task_files import find_tasks, read_task
from gpt_pretrain.evaluation.tasks.task_items import CoreRule, Task, TaskItem
from gpt_pretrain.evaluation.tasks.task_scoring import check_characters
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.evaluation.test_core_tasks import ENTRIES, make_core_folder
from tests.evaluation.test_tasks import write_lines
from tests.evaluation.test_text_scores import ListedTokens
from tests.helpers.resource_limits import allocating_at_most, within


def test_equal_continuations_are_one_text(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "own.jsonl", [{"contexts": ["a", "b"] * 50, "continuation": "x" * 1000, "label": 0}])
    (item,) = read_task(file).items
    assert len(set(map(id, item.continuations))) == 1


def make_copies(count: int) -> Task:
    return Task("own", tuple(TaskItem(("a",), (f" {number * (number % 2)}",), 0, (1,), number) for number in range(count)))


def test_examples_of_copied_questions_are_found_soon(tmp_path: Path) -> None:
    task = make_copies(8000)
    begin = time.process_time()
    add_examples(task, 5, pool=task.items)
    assert time.process_time() - begin < 3.0


@pytest.mark.parametrize("draws_spare", [True, False])
def test_examples_of_copied_questions_are_those_of_the_harness(draws_spare: bool) -> None:
    task, n_drawn = make_copies(60), 5 + draws_spare
    chosen, found = Random(SEED), add_examples(task, 5, pool=task.items, draws_spare=draws_spare)
    for item, examples in zip(task.items, found.examples, strict=True):
        kept = [one for one in (task.items[index] for index in chosen.sample(range(60), n_drawn)) if one != item][:5]
        if len(kept) < 5:
            others = [one for one in task.items if one != item]
            kept = [others[index] for index in chosen.sample(range(len(others)), 5)]
        assert [one.line for one in examples] == [one.line for one in kept]


def test_examples_count_once_for_each_choice() -> None:
    items = [TaskItem((f"{number}" * 100_000,) * 8, tuple("abcdefgh"), 0, (1,) * 8, number) for number in range(4)]
    with pytest.raises(UserError, match="its 3 examples have 2,400,024 characters, counted once for each of 8 choices"):
        add_examples(Task("own", tuple(items)), 3, pool=items)


def test_no_file_is_read_for_many_tasks(tmp_path: Path) -> None:
    folder = make_core_folder(tmp_path)
    assert len(read_core_tasks(folder)) == len(ENTRIES)
    (folder / "eval_data" / "more").mkdir()
    os.link(folder / "eval_data" / "text.jsonl", folder / "eval_data" / "more" / "x.jsonl")
    files = ["text.jsonl", "./text.jsonl", "more/x.jsonl"] * 4
    entries = [ENTRIES[3] | {"label": f"task {number}", "dataset_uri": file} for number, file in enumerate(files)]
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": entries}))
    with pytest.raises(UserError, match="12 tasks share one file, more than the limit of 10"):
        read_core_tasks(folder)


def test_no_file_of_a_folder_is_read_under_many_names(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"context": "a", "continuation": "b"}])
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    assert len(find_tasks(str(tmp_path))) == 2
    os.link(tmp_path / "a.jsonl", tmp_path / "c.jsonl")
    with pytest.raises(UserError, match="3 tasks share one file, more than the limit of 2"):
        find_tasks(str(tmp_path))


def test_tasks_of_the_core_set_share_the_items_of_a_file(tmp_path: Path) -> None:
    folder = make_core_folder(tmp_path)

    def name_delimiters(*delimiters: str) -> None:
        entries = [
            ENTRIES[3] | {"label": f"task {number}", "dataset_uri": "text.jsonl", "continuation_delimiter": text}
            for number, text in enumerate(delimiters)
        ]
        (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": entries}))
        rows = "".join(f"task {number},0\n" for number in range(len(delimiters)))
        (folder / "eval_meta_data.csv").write_text(f"Eval Task,Random baseline\n{rows}")

    name_delimiters(" ", " ", "a")
    first, second, third = read_core_tasks(folder)
    assert first.items is second.items and first.items != third.items
    name_delimiters(" ", "a", "b")
    with pytest.raises(UserError, match="3 tasks share one file, more than the limit of 2"):
        read_core_tasks(folder)


def test_many_examples_take_no_memory(tmp_path: Path) -> None:
    items = tuple(TaskItem(("",), (" a",), 0, (1,), number) for number in range(2000))
    task = Task("core", items, core=CoreRule("language_modeling", 0.0))
    with allocating_at_most(megabytes=1):
        found = add_core_examples(task, 100)
        check_characters(found, ByteTokenizer())
    assert found.n_shots == 100 and len(found.examples) == 2000
    drawn = Random(SEED + 7).sample([one for one in items if one.line != 7], 100)
    assert [one.line for one in found.examples[7]] == [one.line for one in drawn]
    assert len(next(iter(found.prompts())).contexts[0]) == 100 * len(" a\n\n")


def test_columns_of_baselines_cost_their_length(tmp_path: Path) -> None:
    folder = make_core_folder(tmp_path)
    rows = "".join(f"{entry['label']},1\n" for entry in ENTRIES) + "a,1\n" * 20_000
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline" + ",x" * 20_000 + f"\n{rows}")
    begin = time.process_time()
    assert {task.core.baseline for task in read_core_tasks(folder) if task.core} == {0.01}
    assert time.process_time() - begin < 2.0


def test_a_folder_of_very_many_tasks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_files, "MAX_TASK_FILES", 2)
    for name in "abc":
        write_lines(tmp_path / f"{name}.jsonl", [{"context": "a", "continuation": "b"}])
    with pytest.raises(UserError, match="3 files of tasks, more than the limit of 2"):
        find_tasks(str(tmp_path))


def test_equal_windows_of_found_texts_are_not_looked_through_for_ever() -> None:
    texts = [np.zeros(250, dtype=np.int64)] * 800
    long_text = np.concatenate([np.zeros(20_000, dtype=np.int64), np.arange(1, 300)])
    begin = time.process_time()
    spans = longest_shared_spans([*texts, np.arange(1, 200)], ListedTokens(long_text.tolist()), shortest=50)
    assert time.process_time() - begin < 2.0
    assert spans[-1] == 199 and spans[0] == 250


def test_a_passage_that_a_text_repeats_dozens_of_times_is_looked_for_in_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    passage = np.random.default_rng(0).integers(0, 250, 1500)
    texts = np.split(np.concatenate([passage] * 50), 300)
    for text in texts:
        text[100] = 255  # so that no text is found as a whole
    long_text = ListedTokens(np.concatenate([np.tile(passage, 20), np.full(300, 254)]).tolist())
    assert longest_shared_spans(texts, long_text, shortest=50).min() >= 100
    visited, occurrences = list[int](), _WindowIndex._occurrences
    monkeypatch.setattr(shared_spans, "MAX_VISITED", 20_000)
    monkeypatch.setattr(_WindowIndex, "_occurrences", lambda *args: (found := occurrences(*args), visited.append(len(found)))[0])
    longest_shared_spans(texts, long_text, shortest=50)
    assert 20_000 < sum(visited) < 20_100


def test_choices_after_a_very_long_question_are_read_without_a_mask() -> None:
    question = np.arange(MAX_PACKED)
    requests = [ScoreRequest(np.concatenate([question, np.full(9, number)]), 9) for number in range(3)]
    short = [ScoreRequest(np.concatenate([question[:20], np.full(9, number)]), 9) for number in range(3)]
    model = new_model(GPTConfig(vocab_size=MAX_PACKED, context_length=2 * MAX_PACKED, emb_dim=8, n_heads=1, n_layers=1)).eval()
    with within(20, 300):
        scores = list(Scorer(model).score_groups([requests, short]))
    assert [len(one) for one in scores] == [3, 3]
    packed = [row for group in (requests, short) for row in pack_requests(group, most=MAX_PACKED)]
    assert [len(row.requests) for row in packed] == [1, 1, 1, 3]
