"""Items of tasks are read, put together, cut and judged as the LM Evaluation Harness does it."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt_pretrain.checkpoints.huggingface import export
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.task_files import find_tasks, read_item, read_task
from gpt_pretrain.evaluation.tasks import TaskResult, compare_accuracies, encode_pair, score_task
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import tiny_model

BYTE = build_tokenizer("byte")
WORDS = [
    "the",
    "a",
    "cat",
    "walked",
    "into",
    "the",
    "river",
    "because",
    "they",
    "wanted",
    "12",
    "3.5",
    "music,",
    "played;",
    "it's",
    "not",
    "(really)",
    "Zürich",
    "naïve",
    "[x]",
]
# Where the harness defines each task, and the file that names the splits on the hub.
DEFINITIONS = {
    "lambada": "lambada/lambada_openai.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc": "arc/arc_easy.yaml",
    "winogrande": "winogrande/default.yaml",
    "copa": "super_glue/copa/default.yaml",
}
OF_THE_HUB = ("dataset_path", "dataset_name", "task:", "training_split", "validation_split", "test_split", "fewshot_split", "tag")


def make_items(name: str, *, count: int = 12) -> list[dict[str, Any]]:
    """Return items in the form of their publishers, with words at random."""
    chosen = random.Random(name)

    def words(most: int) -> str:
        return " ".join(chosen.choice(WORDS) for _ in range(chosen.randint(2, most)))

    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "lambada": lambda: {"text": words(40)},
        "hellaswag": lambda: {
            "activity_label": words(4),
            "ctx_a": words(20),
            "ctx_b": words(6),
            "endings": [f"{words(12)} [step] y [title] z" for _ in range(4)],
            "label": str(chosen.randrange(4)),
        },
        "piqa": lambda: {"goal": words(90), "sol1": words(12), "sol2": words(12), "label": chosen.randrange(2)},
        "arc": lambda: {
            "question": f"{words(20)}?",
            "choices": {"text": [words(6) for _ in range(4)], "label": list("ABCD")},
            "answerKey": chosen.choice("ABCD"),
        },
        "winogrande": lambda: {
            "sentence": f"{words(10)} _ {words(12)}.",
            "option1": words(2),
            "option2": words(2),
            "answer": chosen.choice("12"),
        },
        "copa": lambda: {
            "premise": f"{words(10)}.",
            "choice1": f"{words(8).capitalize()}.",
            "choice2": f"{words(8).capitalize()}.",
            "question": chosen.choice(["cause", "effect"]),
            "label": chosen.randrange(2),
        },
    }
    return [makers[name]() for _ in range(count)]


def write_lines(file: Path, items: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return file


def harness_results(folder: Path, items: Path) -> dict[str, dict[str, Any]]:
    """Evaluate an exported model with the LM Evaluation Harness on items in files."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    definitions = Path(lm_eval.__file__).parent / "tasks"
    for name, place in DEFINITIONS.items():
        own = items / "definitions" / name
        own.mkdir(parents=True)
        for file in (definitions / place).parent.glob("*.py"):
            shutil.copy(file, own)
        lines, in_tag = [], False
        for line in (definitions / place).read_text().splitlines():
            in_tag = line.startswith("tag") or (in_tag and line.startswith("  - "))
            if not in_tag and not line.startswith(OF_THE_HUB):
                lines.append(line)
        kept = "\n".join(lines).partition("dataset_kwargs")[0]
        data = f"{{data_files: {{validation: '{items / name}.jsonl'}}, cache_dir: '{items / 'cache'}'}}"
        text = f"{kept}\ntask: {name}_here\ndataset_path: json\nvalidation_split: validation\ndataset_kwargs: {data}\n"
        (own / "task.yaml").write_text(text)
    tasks = TaskManager(include_path=str(items / "definitions"), include_defaults=False)
    model = HFLM(pretrained=str(folder), device="cpu", batch_size=4, dtype="float32")
    names = [f"{name}_here" for name in DEFINITIONS]
    found = lm_eval.simple_evaluate(model, tasks=names, task_manager=tasks, bootstrap_iters=0)
    return {name: found["results"][f"{name}_here"] for name in DEFINITIONS}


@pytest.mark.slow
def test_results_are_those_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = tiny_model(vocab_size=50257, context_length=64, emb_dim=16, n_layers=1, drop_rate=0.0)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    weights = open_weights(tmp_path / "model.pth", n_heads=4)
    export(weights, tmp_path / "exported", tokenizer="gpt2")
    for name in DEFINITIONS:
        write_lines(tmp_path / f"{name}.jsonl", make_items(name))
    theirs = harness_results(tmp_path / "exported", tmp_path)
    scorer, tokenizer = Scorer(weights.build()), build_tokenizer("gpt2")
    ours = {task.name: score_task(scorer, task, tokenizer).as_json() for task in find_tasks(str(tmp_path))}
    assert set(ours) == set(DEFINITIONS)
    assert sum(result["truncated"] for result in ours.values()) > 0
    for name, result in ours.items():
        for metric in ("acc", "acc_norm", "perplexity"):
            if f"{metric},none" in theirs[name]:
                assert result[metric] == pytest.approx(theirs[name][f"{metric},none"], rel=1e-3), (name, metric)


def test_the_choice_with_the_highest_log_probability_is_taken(tmp_path: Path) -> None:
    model = tiny_model(vocab_size=257)
    items = [{"context": "ab", "choices": ["c", "dd", "eeee"], "label": 1}, {"context": "", "choices": ["x", "yz"], "label": 0}]
    task = read_task(write_lines(tmp_path / "own.jsonl", items))
    result = score_task(Scorer(model), task, BYTE)

    def log_probability(context: list[int], continuation: str) -> float:
        ids = torch.tensor([*context, *continuation.encode()])
        with torch.no_grad():
            rows = model(ids[None, :-1])[0].log_softmax(-1)
        return sum(rows[position - 1, ids[position]].item() for position in range(len(context), len(ids)))

    assert result.correct_by_length is not None
    for item, correct, by_length in zip(items, result.correct, result.correct_by_length, strict=True):
        context = list(str(item["context"]).encode()) or [256]
        logs = [log_probability(context, f" {choice}") for choice in item["choices"]]
        assert correct == float(np.argmax(logs) == item["label"])
        lengths = [len(choice) for choice in item["choices"]]
        assert by_length == float(np.argmax(np.array(logs) / lengths) == item["label"])


def test_blanks_at_the_end_of_a_context_go_to_the_continuation() -> None:
    assert encode_pair("ab  ", "c", BYTE) == (list(b"ab"), list(b"  c"))
    assert encode_pair("", " c", BYTE) == ([256], list(b" c"))
    gpt2 = build_tokenizer("gpt2")
    assert encode_pair("Every effort", " moves", gpt2) == (gpt2.encode("Every effort"), gpt2.encode(" moves"))


def test_an_item_longer_than_the_context_is_cut_at_its_beginning(tmp_path: Path) -> None:
    model = tiny_model(vocab_size=257)  # context_length is 16
    items = [{"context": "0123456789" * 3, "continuation": "end"}, {"context": "6789012345678"[-13:], "continuation": "end"}]
    task = read_task(write_lines(tmp_path / "own.jsonl", items))
    result = score_task(Scorer(model), task, BYTE)
    assert result.truncated == 1
    assert result.perplexity is not None
    with pytest.raises(UserError, match="the continuation has 31 tokens, but the context holds 16"):
        score_task(
            Scorer(model), read_task(write_lines(tmp_path / "b.jsonl", [{"context": "a", "continuation": "b" * 30}])), BYTE
        )


def test_accuracies_are_compared_item_by_item() -> None:
    def result(correct: np.ndarray) -> TaskResult:
        return TaskResult("model", "task", correct, None, None, 0)

    first = np.array([1.0] * 70 + [0.0] * 30)
    difference, is_noise = compare_accuracies(result(first), result(np.roll(first, 1)))
    assert difference.value == 0
    assert is_noise
    difference, is_noise = compare_accuracies(result(first), result(np.concatenate([first[:50], np.zeros(50)])))
    assert difference.value == pytest.approx(0.2)
    assert not is_noise
    assert math.isnan(result(np.array([1.0])).accuracy.error)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": "a", "choices": ["b", "c"], "label": 2}', '"label" is 2, but must be a number from 0 to 1'),
        ('{"context": "a", "choices": ["b", "c"]}', '"label" is None'),
        ('{"context": "a", "choices": ["b", "c"], "label": true}', '"label" is True'),
        ('{"context": "a", "choices": ["b"], "label": 0}', "at least two texts"),
        ('{"context": "a", "choices": ["b", ""], "label": 0}', '"choices" is empty'),
        ('{"context": "a", "continuation": 5}', '"continuation" is 5, but must be a text'),
        ('{"story": "a"}', '"context" is missing'),
        ('{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}', "has no _"),
        (
            '{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}',
            "names none of the choices",
        ),
        ('{"premise": "p.", "choice1": "a", "choice2": "b", "question": "why", "label": 0}', "must be cause or effect"),
        ('{"question": "q", "choices": 5, "answerKey": "C"}', "do not have the types of the published task"),
        ('{"premise": "p.", "choice1": "a", "choice2": "b", "question": [], "label": 0}', "do not have the types"),
        ("[1, 2]", "not an object"),
        ("{", "cannot be read as JSON"),
        ('{"context": "' + "x" * (1 << 20) + '"}', "more than 1,048,576 bytes"),
    ],
)
def test_a_line_that_is_no_item_is_explained(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text('{"context": "a", "choices": ["b", "c"], "label": 1}\n' + line + "\n")
    with pytest.raises(UserError) as caught:
        read_task(file)
    assert message in str(caught.value)
    assert f"{file}, line 2: " in str(caught.value)


def test_a_file_without_items_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="has no items"):
        read_task(tmp_path / "empty.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no files that end in"):
        find_tasks(str(tmp_path / "folder"))
    with pytest.raises(UserError, match="cannot be read"):
        find_tasks(str(tmp_path / "missing.jsonl"))


def test_original_arc_questions_are_read() -> None:
    choices = [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]
    item = read_item({"question": {"stem": "Why?", "choices": choices}, "answerKey": "2"}, line=1)
    assert item.contexts == ("Question: Why?\nAnswer:",) * 2
    assert item.continuations == (" a", " b")
    assert item.label == 1
