"""Items of tasks are read, put together, cut and judged as the LM Evaluation Harness does it."""

import json
import math
import random
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.tasks.published_tasks import read_item
from gpt_pretrain.evaluation.tasks.task_files import find_tasks, read_task
from gpt_pretrain.evaluation.tasks.task_results import TaskResult, compare_accuracies, sign_test
from gpt_pretrain.evaluation.tasks.task_scoring import encode_pair, score_task
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


def task_definitions(items: Path) -> Path:
    """Copy the harness's definitions of the tasks, for items in files of a folder."""
    lm_eval = pytest.importorskip("lm_eval")
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
    return items / "definitions"


def harness_results(folder: Path, items: Path, *, n_shots: int) -> dict[str, dict[str, Any]]:
    """Evaluate an exported model with the LM Evaluation Harness on items in files."""
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(task_definitions(items)), include_defaults=False)
    model = HFLM(pretrained=str(folder), device="cpu", batch_size=4, dtype="float32")
    names = [f"{name}_here" for name in DEFINITIONS]
    found = simple_evaluate(model, tasks=names, task_manager=tasks, bootstrap_iters=0, num_fewshot=n_shots)
    return {name: found["results"][f"{name}_here"] for name in DEFINITIONS}


@pytest.mark.slow
@pytest.mark.parametrize("n_shots", [0, 3])
def test_results_are_those_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_shots: int) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = tiny_model(vocab_size=50257, context_length=256 if n_shots else 64, emb_dim=16, n_layers=1, drop_rate=0.0)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    weights = open_weights(tmp_path / "model.pth", n_heads=4)
    export(weights, tmp_path / "exported", tokenizer="gpt2")
    for name in DEFINITIONS:
        write_lines(tmp_path / f"{name}.jsonl", make_items(name))
    theirs = harness_results(tmp_path / "exported", tmp_path, n_shots=n_shots)
    scorer, tokenizer = Scorer(weights.build()), build_tokenizer("gpt2")
    tasks = find_tasks(str(tmp_path), n_shots=n_shots)
    ours = {task.name: score_task(scorer, task, tokenizer).as_json() for task in tasks}
    assert set(ours) == set(DEFINITIONS)
    assert 0 < sum(result["truncated"] for result in ours.values()) < 12 * len(ours)
    if n_shots:
        del ours["lambada"]  # The harness puts two blanks before the last word of an example, and one before the item's own.
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
        return TaskResult("model", "task", correct)

    first = np.array([1.0] * 70 + [0.0] * 30)
    difference, is_noise = compare_accuracies(result(first), result(np.roll(first, 1)))
    assert difference.value == 0
    assert is_noise
    difference, is_noise = compare_accuracies(result(first), result(np.concatenate([first[:50], np.zeros(50)])))
    assert difference.value == pytest.approx(0.2)
    assert not is_noise
    assert math.isnan(result(np.array([1.0])).accuracy.error)
    for count, expected in ((1, True), (2, True), (5, True), (6, False)):
        difference, is_noise = compare_accuracies(result(np.ones(count)), result(np.zeros(count)))
        assert difference.value == 1
        assert is_noise is expected  # 2 / 2**count is 0.0625 for five items
    with pytest.raises(ValueError, match="3 and 1 items"):
        compare_accuracies(result(np.ones(3)), result(np.ones(1)))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (1, 9), (20, 20), (30, 70), (2000, 2100)])
def test_the_sign_test_is_that_of_exact_fractions(wins: int, losses: int) -> None:
    tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1))
    assert sign_test(wins, losses) == pytest.approx(min(1.0, float(Fraction(2 * tail, 2 ** (wins + losses)))), rel=1e-9)


def test_each_file_of_a_folder_has_a_name_of_its_own(tmp_path: Path) -> None:
    for name in ("x.a.jsonl", "x.b.jsonl", "y.json", "y.JSONL"):
        write_lines(tmp_path / name, [{"context": "a", "continuation": "b"}])
    assert sorted(task.name for task in find_tasks(str(tmp_path))) == ["x.a", "x.b", "y.JSONL", "y.json"]


def test_brackets_are_removed_as_the_harness_does_it() -> None:
    chosen = random.Random(1)
    endings = ["".join(chosen.choice("[]a\n") for _ in range(12)) + "z" for _ in range(100)]
    item = read_item({"activity_label": "b", "ctx_a": "c", "ctx_b": "d", "endings": endings, "label": "99"}, line=1)
    assert item.continuations == tuple(" " + re.sub(r"\[.*?\]", "", ending.strip()) for ending in endings)


def test_many_opening_brackets_take_little_time() -> None:
    fields = {"activity_label": "b", "ctx_a": "[" * 500_000, "ctx_b": "", "endings": ["a", "b"], "label": 0}
    assert read_item(fields, line=1).contexts[0].endswith("[[[")  # some minutes where each bracket is searched for its end


def test_a_context_is_encoded_once_for_all_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"context": "ab", "choices": ["c", "dd", "eeee"], "label": 1}]
    encoded: list[str] = []
    encode = BYTE.encode
    monkeypatch.setattr(type(BYTE), "encode", lambda _, text: encoded.append(text) or encode(text))
    score_task(Scorer(tiny_model(vocab_size=257)), read_task(write_lines(tmp_path / "own.jsonl", items)), BYTE)
    assert encoded == ["ab", "ab c", "ab dd", "ab eeee"]
