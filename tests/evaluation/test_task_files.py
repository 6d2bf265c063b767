"""Files of tasks are read in every usual form, and what is no item is explained."""

import json
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.tasks.published_tasks import read_item
from gpt_pretrain.evaluation.tasks.task_files import find_tasks, read_task
from gpt_pretrain.evaluation.tasks.task_items import TaskItem


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": "a", "choices": ["b", "c"], "label": 2}', '"label" is 2, but must be 0 or 1'),
        ('{"context": "a", "choices": ["b", "c"]}', '"label" is missing'),
        ('{"context": "a", "choices": ["b", "c"], "label": true}', '"label" is True'),
        ('{"context": "a", "choices": ["b"], "label": 0}', "at least two texts"),
        ('{"context": "a", "choices": ["b", ""], "label": 0}', '"choices[1]" is empty'),
        ('{"context": "a", "choices": ["b", "c", "b"], "label": 2}', '"choices" has the right answer more than once'),
        ('{"context": "a", "choices": ["b", 5], "label": 0}', '"choices[1]" is 5, but must be a text'),
        ('{"context": "a", "continuation": 5}', '"continuation" is 5, but must be a text'),
        ('{"story": "a"}', '"context" is missing'),
        ('{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}', "has no _"),
        (
            '{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}',
            "which must name one of the choices",
        ),
        ('{"premise": "p.", "choice1": "a", "choice2": "b", "question": "why", "label": 0}', "must be cause or effect"),
        ('{"question": "q", "choices": 5, "answerKey": "C"}', "do not have the types of the published task"),
        (
            '{"question": "q", "choices": {"text": ["a"], "label": ["A", "B"]}, "answerKey": "B"}',
            "does not have one text for each label",
        ),
        ('{"question": 5, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}', '"question" is 5'),
        (
            '{"sentence": "a _ b", "option1": "a", "option2": "b", "answer": "0"}',
            """"answer" is '0', but must be 1 or 2""",
        ),
        ('{"goal": "a", "sol1": "b", "sol2": "c"}', '"label" is missing. PIQA\'s labels are in a file of their own'),
        ('{"context": "a", "choices": ["b", "c", "d"], "label": 3}', '"label" is 3, but must be a whole number from 0 to 2'),
        ('{"context": "a", "choices": ["1", "0"], "label": "1"}', """"label" is '1', but must be 0 or 1"""),
        ('{"context": "a", "choices": ["b", "c"], "label": 1, "label": 0}', "'label' is given twice"),
        ('{"context": "a", "contexts": ["b", "c"], "continuation": "d"}', '"context" and "contexts", of which only one'),
        ('{"context": "a", "choices": ["b", "c"], "label": 1, "continuation": "d"}', '"choices" and "continuation", of which'),
        ('{"context": "a\\ud800", "continuation": "b"}', "\"context\" has half a character ('\\ud800'"),
        ('{"context": "a", "continuation": "b", "delimiter": "' + "x" * 17 + '"}', '"delimiter" has 17 characters'),
        (json.dumps({"context": "a", "choices": ["b"] * 101, "label": 0}), '"choices" has 101 texts, but may have at most 100'),
        (json.dumps({"context": "a" * 30_000, "choices": ["b"] * 100, "label": 0}), "its texts have 3,000,100 characters"),
        ('{"text": "a b", "label": 1}', 'it has "text" and "label": LAMBADA has only "text"'),
        ('{"context": "a", "text": "b c"}', '"continuation" is missing'),
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


def test_an_own_item_is_read_as_written() -> None:
    item = read_item({"context": "a", "choices": ["b", "c"], "label": 1.0, "delimiter": "", "text": "some note"}, line=1)
    assert item == TaskItem(("a", "a"), ("b", "c"), 1, (1, 1), 1)
    assert read_item({"context": "", "continuation": "b"}, line=1).contexts == ("",)


def test_bytes_that_mark_the_encoding_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_bytes(b'\xef\xbb\xbf\n{"context": "a", "continuation": "b"}\n')
    assert len(read_task(tmp_path / "task.jsonl").items) == 1


@pytest.mark.parametrize(
    ("content", "held"),
    [("[\n{}]", "a JSON array"), ("[" + "{}," * 400_000 + "{}]", "a JSON array"), ("{\n}", "JSON over several")],
    ids=["array", "long array", "object"],
)
def test_other_json_is_refused_with_the_remedy(tmp_path: Path, content: str, held: str) -> None:
    (tmp_path / "dev.json").write_text(content)
    with pytest.raises(UserError, match=rf"^tasks.path=\S+ holds {held}.* jq -c .* \S+/dev.json > dev_lines.jsonl"):
        find_tasks(str(tmp_path))


def test_original_arc_questions_are_read() -> None:
    choices = [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]
    item = read_item({"question": {"stem": "Why?", "choices": choices}, "answerKey": "2"}, line=1)
    assert item.contexts == ("Question: Why?\nAnswer:",) * 2
    assert item.continuations == (" a", " b")
    assert item.label == 1


def test_a_task_of_the_hub_as_a_path_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"tasks\.path=piqa: there is no such file .* hub: 'tasks\.names=\[piqa\]'"):
        find_tasks("piqa")
