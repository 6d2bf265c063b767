"""The CORE set is read, put together and judged as nanochat does it; a naive version stands here."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import yaml

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.tasks.core_tasks import read_core_tasks
from gpt_pretrain.evaluation.tasks.task_items import CoreRule, TaskItem
from gpt_pretrain.evaluation.tasks.task_results import TaskResult, compare_core, core_results
from gpt_pretrain.evaluation.tasks.task_scoring import encode_core_item, score_task
from gpt_pretrain.evaluation.tasks.task_tables import task_comparisons
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import tiny_model
from tests.evaluation.test_tasks import WORDS, write_lines

BYTE = build_tokenizer("byte")
ENTRIES = [
    {
        "label": "choices",
        "icl_task_type": "multiple_choice",
        "dataset_uri": "a/choices.jsonl",
        "num_fewshot": [2],
        "continuation_delimiter": "\nAnswer: ",
    },
    {"label": "schema", "icl_task_type": "schema", "dataset_uri": "schema.jsonl", "num_fewshot": [1]},
    {"label": "text", "icl_task_type": "language_modeling", "dataset_uri": "text.jsonl", "num_fewshot": [3]},
    {"label": "plain", "icl_task_type": "language_modeling", "dataset_uri": "text.jsonl", "num_fewshot": [0]},
]
BASELINES = {"choices": 25, "schema": 50.0, "text": 0, "plain": 0}


def make_core_folder(folder: Path, *, count: int = 8) -> Path:
    chosen = random.Random(5)

    def words(most: int) -> str:
        return " ".join(chosen.choice(WORDS) for _ in range(chosen.randint(1, most)))

    (folder / "eval_data" / "a").mkdir(parents=True)
    items: dict[str, list[dict[str, Any]]] = {
        "a/choices": [
            {"query": f"{words(5)} ", "choices": [words(3) for _ in range(4)], "gold": chosen.randrange(4)} for _ in range(count)
        ],
        "schema": [
            {"context_options": [words(4), words(4)], "continuation": words(3), "gold": chosen.randrange(2)} for _ in range(count)
        ],
        "text": [{"context": f" {words(6)}  ", "continuation": chosen.choice("ab"), "category": "x"} for _ in range(count)],
    }
    for name, lines in items.items():
        write_lines(folder / "eval_data" / f"{name}.jsonl", lines)
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": ENTRIES}))
    rows = "".join(f"{name},{value},about it\n" for name, value in BASELINES.items())
    (folder / "eval_meta_data.csv").write_text(f"Eval Task,Random baseline,Description\n{rows}")
    return folder


def parts_of(entry: dict[str, Any], item: dict[str, Any]) -> tuple[list[str], list[str], int]:
    """Return what stands before and after the delimiter for each choice, and which choice is right."""
    match entry["icl_task_type"]:
        case "multiple_choice":
            return [item["query"]] * len(item["choices"]), item["choices"], item["gold"]
        case "schema":
            return item["context_options"], [item["continuation"]] * 2, item["gold"]
    return [item["context"].strip()], [item["continuation"]], 0


def same_values(rows: list[list[int]]) -> int:
    count = 0
    while all(count < len(row) for row in rows) and len({row[count] for row in rows}) == 1:
        count += 1
    return count


def is_right(model: GPTModel, entry: dict[str, Any], data: list[dict[str, Any]], index: int) -> bool:
    delimiter = entry.get("continuation_delimiter", " ")
    others = [number for number in range(len(data)) if number != index]
    begin = ""
    for other in random.Random(1234 + index).sample(others, entry["num_fewshot"][0]):
        before, after, gold = parts_of(entry, data[other])
        begin += before[gold] + delimiter + after[gold] + "\n\n"
    before, after, gold = parts_of(entry, data[index])
    rows = [[256, *(begin + one + delimiter + end).encode()] for one, end in zip(before, after, strict=True)]
    match entry["icl_task_type"]:
        case "multiple_choice":
            starts = [same_values(rows)] * len(rows)
        case "schema":
            starts = [len(row) - same_values([other[::-1] for other in rows]) for row in rows]
        case _:
            starts = [1 + len((begin + before[0] + delimiter).strip().encode())]
    losses = []
    for row, start in zip(rows, starts, strict=True):
        cut = max(0, len(row) - model.config.context_length)
        ids = torch.tensor(row[cut:])
        with torch.no_grad():
            logits = model(ids[None])[0].log_softmax(-1)
        places = range(start - cut, len(ids))
        if entry["icl_task_type"] == "language_modeling":
            return all(int(logits[place - 1].argmax()) == int(ids[place]) for place in places)
        losses.append(sum(-logits[place - 1, ids[place]].item() for place in places) / len(places))
    return losses.index(min(losses)) == gold


@pytest.mark.parametrize("limit", [None, 5])
def test_results_are_those_of_a_naive_version(tmp_path: Path, limit: int | None) -> None:
    folder = make_core_folder(tmp_path)
    model = tiny_model(vocab_size=257, context_length=64, drop_rate=0.0).eval()
    with torch.no_grad():
        model.pos_emb.weight.mul_(20)
        model.tok_emb.weight[ord("a")] *= 8  # so that it is often the most likely one
    tasks = read_core_tasks(folder, limit=limit)
    assert [task.name for task in tasks] == list(BASELINES)
    results = [score_task(Scorer(model), task, BYTE) for task in tasks]
    for entry, result in zip(ENTRIES, results, strict=True):
        lines = (folder / "eval_data" / str(entry["dataset_uri"])).read_text().splitlines()
        data = [json.loads(line) for line in lines]
        random.Random(1337).shuffle(data)
        data = data[:limit]
        assert result.correct.tolist() == [is_right(model, entry, data, index) for index in range(len(data))], entry["label"]
    assert 0 < sum(result.correct.sum() for result in results) < sum(len(result.correct) for result in results)
    centered = [(one.correct.mean() - BASELINES[one.task] / 100) / (1 - BASELINES[one.task] / 100) for one in results]
    (core,) = core_results(results)
    assert core.metric.value == pytest.approx(sum(centered) / 4)
    assert core.n_tasks == 4
    assert core.metric.error > 0


def test_choices_that_begin_with_each_other_have_at_least_one_scored_token() -> None:
    item = TaskItem(("q", "q"), (" ab", " ab c"), 0, (3, 5), 1)
    sequences = encode_core_item(item, CoreRule("multiple_choice", 0.5), BYTE)
    assert [(bytes(ids[-n:]), n) for ids, n in sequences] == [(b"b", 1), (b"b c", 3)]
    same = TaskItem(("q", "q"), (" a", " a"), 0, (2, 2), 1)
    assert [n for _, n in encode_core_item(same, CoreRule("multiple_choice", 0.5), BYTE)] == [1, 1]
    assert [n for _, n in encode_core_item(same, CoreRule("schema", 0.5), BYTE)] == [3, 3]


def test_models_are_compared_by_their_core() -> None:
    def results(model: str, correct: list[float], baseline: float | None) -> list[TaskResult]:
        return [TaskResult(model, name, torch.tensor(correct).double().numpy(), baseline=baseline) for name in ("a", "b")]

    mixed, none = [1.0] * 12 + [0.0] * 4, [0.0] * 16
    difference, is_noise = compare_core(results("x", mixed, 0.25), results("y", none, 0.25))
    assert difference.value == pytest.approx(1)
    assert not is_noise
    assert compare_core(results("x", mixed, 0.25), results("y", mixed, 0.25))[1]
    sentences = task_comparisons([*results("x", mixed, 0.25), *results("y", none, 0.25)])
    assert "CORE of x: 0.6667 ± 0.1054, over 2 tasks." in sentences
    assert "CORE: x is better than y by 1.0000 ± 0.1054 (95% confidence)." in sentences
    assert not core_results(results("x", mixed, None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 5}, '"label" 5, which must be a short text'),
        ({"icl_task_type": "generation"}, "'generation', which must be one of multiple_choice, schema, language_modeling"),
        ({"dataset_uri": "../core.yaml"}, "'../core.yaml', which must be a path in eval_data"),
        ({"dataset_uri": "/etc/passwd"}, "'/etc/passwd', which must be a path in eval_data"),
        ({"num_fewshot": [1000]}, '"num_fewshot" [1000], which must be a number from 0 to 100'),
        ({"num_fewshot": [True]}, '"num_fewshot" [True], which must be a number from 0 to 100'),
        ({"continuation_delimiter": 5}, '"continuation_delimiter" 5, which must be a short text'),
        ({"label": "schema"}, "two tasks have the label 'schema'"),
        ({"label": "new"}, "eval_meta_data.csv has no random baseline for 'new'"),
        ({"dataset_uri": "missing.jsonl"}, "missing.jsonl cannot be read: No such file"),
        ({"num_fewshot": [8]}, "choices: examples are drawn from its other items. That needs 9 items, but there are 8"),
    ],
)
def test_a_damaged_set_is_explained(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make_core_folder(tmp_path)
    (tmp_path / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": [ENTRIES[0] | changes, *ENTRIES[1:]]}))
    with pytest.raises(UserError) as caught:
        read_core_tasks(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("core.yaml", "icl_tasks: 5", '"icl_tasks" must be a list of 1 to 200 tasks'),
        ("core.yaml", "icl_tasks: [7]", "7 is not a task"),
        ("core.yaml", "icl_tasks: [", "cannot be read as YAML"),
        ("eval_meta_data.csv", "a,b\n1,2\n", "has no column 'Eval Task'"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\nchoices,100\n", "must be at least 0 and below 100 percent"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\nchoices,much\n", "could not convert string to float"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\nchoices\n", "a row has fewer cells than the heading"),
        ("eval_data/schema.jsonl", '{"query": "a"}\n', 'Each line is {"context_options": ["...", "..."], "continuation"'),
        ("eval_data/a/choices.jsonl", '{"query": "a", "choices": ["b", "c"], "gold": 2}\n', '"gold" is 2, but must be 0 or 1'),
    ],
)
def test_a_damaged_file_is_explained(tmp_path: Path, name: str, content: str, message: str) -> None:
    make_core_folder(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read_core_tasks(tmp_path)
    assert message in str(caught.value)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = make_core_folder(tmp_path / "bundle")
    write_lines(tmp_path / "secret.jsonl", [{"context": "a", "continuation": "b"}])
    (folder / "eval_data" / "text.jsonl").unlink()
    (folder / "eval_data" / "text.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UserError, match="cannot be read: it is a link that leads out of its folder"):
        read_core_tasks(folder)


def test_the_command_prints_the_metric(script: Callable[..., "CompletedProcess[str]"], tmp_path: Path) -> None:
    make_core_folder(tmp_path / "eval_bundle")
    torch.save(tiny_model(vocab_size=257, context_length=64).state_dict(), tmp_path / "model.pth")
    done = script("evaluate.py", "pretrained=model.pth", "n_heads=4", "tokenizer=byte", "device=cpu", "tasks.path=eval_bundle")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CORE of model.pth: " in done.stdout
    assert "Centered" in done.stdout
    assert "Shots" in done.stdout
