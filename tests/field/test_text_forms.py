"""Texts that are something else in letters: tables without the name of one, encoded files, and records with damaged letters."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pretrain.system.recognition.file_recognition import recognize
from tests.helpers.text_inputs import PLAIN, check, in_corpus, in_training

BYTES = random.Random(0).randbytes(3000)
FORMS: dict[str, tuple[str, str]] = {
    "table.txt": ('text,id\n"one, two",1\nthree,2\nfour,3\nfive,4\n', "begins like a table with the columns text, id"),
    "report.xls": ("id\ttext\n" + "1\tThe old lighthouse.\n" * 9, "begins like a table with the columns id, text"),
    "spaced.dat": ("id; text\n" + '1; "two\nlines"\n' * 30, "begins like a table with the columns id, text"),
    "mail attachment.txt": (base64.encodebytes(BYTES).decode(), "is a file in Base64"),
    "key": ("\n".join(base64.b64encode(BYTES).decode()[at : at + 64] for at in range(0, 2048, 64)), "is a file in Base64"),
    "a.uu": ("begin 644 a.gz\n" + ("M" + "A#" * 30 + "\n") * 5 + "`\nend\n", "contains an encoded file"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_text_that_is_another_form_is_read_with_a_warning(name: str) -> None:
    content, warning = FORMS[name]
    kind = recognize(name, content.encode())
    assert kind.form == "text"
    assert warning in kind.warning
    assert not recognize(name, content.encode(), as_text=True).warning


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "Hello, world\nand so\nit goes\non and on\n",
        "Yes, no\nmaybe, well, then\nnever\nagain, again\n",
        "one,two\nthree,four\n",
        ">gene\n" + ("ACGT" * 19 + "\n") * 30,
        "TTGACA" * 10 + "\n" + ("TTGACA" * 10 + "\n") * 30,
        "begin 644 words and go on with them\nfor a while\n",
        "import,from\n" + "x = 1\n" * 9,
    ],
)
def test_running_text_has_no_such_warning(text: str) -> None:
    assert not recognize("a.txt", text.encode()).warning


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("L\u2019\u00e9t\u00e9 dernier, nous \u00e9tions \u00e0 la plage, d\u00e9j\u00e0. \u00c7a va, No\u00ebl\u2009!", ""),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d \U0001f600", ""),
        ("L\u00c3\u00a9t\u00c3\u00a9, nous \u00c3\u00a9tions l\u00c3\u00a0, d\u00c3\u00a9j\u00c3\u00a0, No\u00c3\u00abl.", "has \u00c3\u00a9 where \u00e9 seems to be meant"),
        ("caf\ufffd d\ufffdj\ufffd vu", "has U+FFFD in place of"),
        ("a &amp; b said &quot;no&quot;", "has escapes such as &amp; in place of letters"),
        ("caf\\u00e9 d\\u00e9j\\u00e0 vu", "has escapes such as \\u00e9 in place of letters"),
    ],
)  # fmt: skip
def test_damaged_letters_are_found_in_records_too(text: str, warning: str, ascii_only: bool) -> None:
    content = "".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for _ in range(30))
    kind = recognize("a.jsonl", content.encode())
    assert kind.form == "JSON lines"
    assert warning in kind.warning
    assert bool(kind.warning) == bool(warning)
    assert "to undo that" not in kind.warning or not ascii_only


def test_lines_without_content_before_a_table_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n\r\n\ntext,id\none,1\ntwo,2\n")
    check(tmp_path / "a.csv", ["one", "two"])


def test_an_array_of_texts_in_a_folder_is_read_and_one_of_names_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = {"a.json": ["One text is here.", "Another text is there."], "b.json": ["今天天气很好我们去公园", "他说你好"]}
    names = {"languages.json": ["en", "de"], "packages.json": ["natural language", "a"], "mixed.json": ["One text is here.", 5]}
    for name, strings in (texts | names).items():
        (folder / name).write_text(json.dumps(strings))
    expected = [*texts["a.json"], *texts["b.json"]]
    assert in_training(folder) == expected
    assert in_corpus(folder, tmp_path / "out") == expected


def test_the_summaries_of_a_parquet_folder_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table, parts = pa.table({"text": ["one", "two"]}), list[pq.FileMetaData]()
    pq.write_to_dataset(table, tmp_path / "texts", metadata_collector=parts)
    pq.write_metadata(table.schema, tmp_path / "texts" / "_metadata", metadata_collector=parts)
    pq.write_metadata(table.schema, tmp_path / "texts" / "_common_metadata")
    check(tmp_path / "texts", ["one", "two"])
    assert "2 files left out: 2 lists of the parts of a Parquet table (_common_metadata, ...)" in caplog.text
