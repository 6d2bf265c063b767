"""JSON as programs really write it gives the same documents in training and in a corpus; text that looks like JSON is text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.recognition.file_recognition import recognize
from gpt_pretrain.texts.chunks import Cursor, ReadPosition
from gpt_pretrain.texts.records import json_values
from tests.helpers.text_inputs import check, in_corpus, in_training

LONG = "1" * 5000
READ: dict[str, tuple[str, list[str]]] = {
    "raw line feeds in an array.json": ('[{"text": "one\ntwo \\" \n three"},\n {"text": "four"}]', ['one\ntwo " \n three', "four"]),
    "raw line feeds in objects.json": ('{"text":\n"one\r\n\\\\"}\n{"text": "two\n"}', ["one\n\\", "two\n"]),
    "raw line feeds in lines.jsonl": ('{"text": "one\ntwo"}\n{"text": "three"}\n', ["one\ntwo", "three"]),
    "raw tabs.jsonl": ('{"text": "one\ttwo"}\n', ["one\ttwo"]),
    "glued.jsonl": ('{"text": "one"}{"text": "}{\\"text\\""}\n{"text": "three"} {"text": "four"}', ["one", '}{"text"', "three", "four"]),
    "glued later.jsonl": ('{"text": "}{\\"one"}\n{"text": "two"}{"text": "three"}\n', ['}{"one', "two", "three"]),
    "glued arrays.json": ('[{"text": "one"}][{"text": "two"}]', ["one", "two"]),
    "sequence.json": ('\x1e{"text": "one"}\n\x1e{"text": "two"}\n', ["one", "two"]),
    "sequence.json-seq": ('\x1e{"text":\n"one"}\n\x1e{"text": "two"}\n', ["one", "two"]),
    "huge numbers.jsonl": (f'{{"n": 1e400, "m": {LONG}, "text": "one"}}\n{{"k": -{LONG}, "text": "two"}}', ["one", "two"]),
    "huge numbers.json": (f'[{{"n": [{LONG}], "text": "one"}}]', ["one"]),
    "strings.json": ('["one", "two, {\\"text\\"}"]', ["one", 'two, {"text"}']),
    "strings.jsonl": ('"one"\n"two"\n', ["one", "two"]),
    "no suffix": (' {"text": "one"},\n{"text": "two"},\n', ["one", "two"]),
}  # fmt: skip

TEXTS = [
    "[[Category:Lakes]] is a link.\n",
    '["Hello," she said.]\n',
    '["quoted"] text follows\n',
    "[]\n\nempty brackets in Markdown\n",
    "[](https://example.org) a link\n",
    "{}\n{} are braces\n",
    '{"a"} is a set in Python.\n',
    '{"a": 1} is a dictionary.\n',
    '{"name": value_of(name)}\n',
    '{ "{% if x %}" }\n',
    '["' + "a long quotation " * 5000,
]


@pytest.mark.parametrize("name", READ)
def test_json_is_read_as_it_was_meant(tmp_path: Path, name: str) -> None:
    content, documents = READ[name]
    (tmp_path / name).write_bytes(content.encode())
    check(tmp_path / name, documents)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("name", [name for name in READ if name.startswith("raw line feeds in")])
def test_raw_line_feeds_are_kept_for_any_size_of_blocks(name: str, block: int) -> None:
    content, documents = READ[name]
    data = content.encode()
    blocks = [data[start : start + block] for start in range(0, len(data), block)]
    cursor = Cursor("name", ReadPosition(), bytes_read=lambda: 0)
    found = json_values.split_values(blocks, cursor, is_array="array" in name)
    lines = [line for chunk in found for line in chunk.content.split(b"\n") if line]  # type: ignore[union-attr]
    assert [json.loads(line, strict=False)["text"].replace("\r\n", "\n") for line in lines] == documents


@pytest.mark.parametrize("number", range(len(TEXTS)))
@pytest.mark.parametrize("name", ["a.rst", "a.log", "no suffix"])
def test_text_that_begins_like_json_is_text(tmp_path: Path, number: int, name: str) -> None:
    (tmp_path / name).write_text(TEXTS[number])
    check(tmp_path / name, [TEXTS[number]])


@pytest.mark.parametrize("suffix", ["", ".txt"])
@pytest.mark.parametrize(
    "content",
    ['{"text": "one"}\n', '[{"text": "one"}]', '{"text":\n"one"}', '{"text": "cut', '{"text" "damaged"}\n{"text": "one"}'],
)
def test_json_without_its_suffix_is_still_told(content: str, suffix: str) -> None:
    kind = recognize(f"a{suffix}", content.encode())
    assert ("begins like JSON" in kind.warning) if suffix else kind.form.startswith("JSON")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"text": "one"}\n{"text": "two', "cut off"),
        ('{"text": "one"}\n{"text": "two\\u00', "cut off"),
        ('{"text": "one"}\n{"text": tru', "cut off"),
        ('{"text": "one"}\n{"text": two"}', "broken JSON"),
        ('{"text": "one"}\n{"text": "two"]', "broken JSON"),
        ('{"text" "one"}', "broken JSON"),
        ('[{"text": "one"}, {"text" "two"}]', "broken JSON"),
    ],
)
def test_only_what_lacks_its_end_is_called_cut_off(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "a.json").write_text(content)
    remedy = "max_failed_files=1" if reason == "cut off" else ""
    for read in (in_training, lambda path: in_corpus(path, tmp_path / "out")):
        with pytest.raises(UserError, match=rf"record [12]: {reason} \(.*{remedy}"):
            read(tmp_path / "a.json")


@pytest.mark.parametrize("value", ["null", "3", "true", "[1]", "{}"])
def test_values_that_are_no_text_have_their_names_in_json(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": {value}}}\n')
    name = {"3": "a number", "[1]": "an array", "{}": "an object"}.get(value, value)
    with pytest.raises(UserError, match=rf"text is not a string \(it is {name}\)"):
        in_training(tmp_path / "a.jsonl")


WORDS = ["RIFFs are short melodies.", "The ftyp box.", "PAR1 is text.", "%PDF-1.4 is how they begin", "%!PS is a mark", "BM, MZ"]


@pytest.mark.parametrize(
    "text", [*WORDS, "GIF89a, GIF87a", "WARC/1.0 is a format", "{\\rtf is how it begins}", "BZh9, ID3, OggS"]
)
def test_text_that_begins_like_the_signature_of_a_format_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    check(tmp_path / "a.txt", [text])
