"""Records that cannot be used: the message names the cause in the file and the remedy."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from tests.field.test_file_kinds import check, in_corpus, in_training, zipped

FRENCH = "L\u00e9t\u00e9 \u00e0 No\u00ebl, gar\u00e7on: o\u00f9 \u00eates-vous? Ca va tr\u00e8s bien."
CHINESE = "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u3002"


def refusals(path: Path) -> tuple[str, str]:
    """Return the messages of training and of a corpus."""
    with pytest.raises(UserError) as training:
        in_training(path)
    with pytest.raises(UserError) as corpus:
        in_corpus(path, path.parent / "out")
    return str(training.value), str(corpus.value)


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [("a.jsonl", FRENCH, "CP1252"), ("a.csv", FRENCH, "CP1252"), ("a.jsonl", CHINESE, "GB18030"), ("a.tsv", CHINESE, "GB18030")],
)
def test_records_in_an_old_encoding_are_converted_by_the_command(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    delimiter = "\t" if name == "a.tsv" else ";"
    rows = [f"id{delimiter}text", *[f"{number}{delimiter}{text}" for number in range(20)]]
    lines = [json.dumps({"text": text}, ensure_ascii=False)] * 20 if name == "a.jsonl" else rows
    (tmp_path / name).write_bytes("\n".join([*lines, ""]).encode(encoding))
    said = refusals(tmp_path / name)
    command = f"iconv -f {encoding} -t UTF-8 {tmp_path / name} > new.txt"
    assert all(f"It looks like {encoding}, in which" in message and f"{command}. " in message for message in said), said
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    (tmp_path / "new.txt").replace(tmp_path / f"new {name}")
    check(tmp_path / f"new {name}", [text] * 20)


def test_a_half_of_a_pair_is_no_question_of_the_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d end"}\n')
    assert all(
        "not UTF-8 (half a surrogate pair at character 5)" in said and "iconv" not in said
        for said in refusals(tmp_path / "a.jsonl")
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"text": {"0": "one", "1": "two"}},
            "it is an object, as in a table that was saved by columns: pandas saves records with",
        ),
        ({"data": [{"text": "one"}]}, "to make the objects in data records of their own: jq -c '.data[]' FILE > new.jsonl"),
        ({"a b": [{"text": "one"}]}, "no field text in an object with a b)"),
        ({"text": {"body": "one"}}, "text is not a string (it is an object; a dot leads into it, as in text.body)"),
    ],
)
def test_a_table_in_another_shape_is_explained(tmp_path: Path, content: object, said: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert all(said in message for message in refusals(tmp_path / "a.json"))


def test_quotes_that_backslashes_escape_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"He said \\"stop\\", and left"\n2,"fine"\n')
    said = "a quotation mark is doubled in CSV, not escaped by a backslash"
    assert all(said in message for message in refusals(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text('id,text\n1,"He said "stop" and left"\n2,"fine"\n')
    assert not any(said in message for message in refusals(tmp_path / "b.csv"))


def test_a_table_without_a_line_of_names_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "".join(f'"The {number} men went over the hill and down to the sea."\n' for number in range(9))
    )
    said = "Its first line looks like text, not like names of columns. If it is text, add a line of names: echo text | cat - FILE > new.csv"
    assert all(said in message for message in refusals(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text(
        "".join(f'{number},"The men went over the hill and down to the sea."\n' for number in range(9))
    )
    assert all("echo column1,text | cat - FILE > new.csv" in message for message in refusals(tmp_path / "b.csv"))
    (tmp_path / "b.tsv").write_text(
        "".join(f"{number}\tThe men went over the hill and down to the sea.\n" for number in range(9))
    )
    command = r"printf 'column1\ttext\n' | cat - FILE > new.csv"
    assert all(command in message for message in refusals(tmp_path / "b.tsv"))
    subprocess.run(command.replace("FILE", "b.tsv"), shell=True, check=True, cwd=tmp_path)
    check(tmp_path / "new.csv", ["The men went over the hill and down to the sea."] * 9)
    (tmp_path / "c.csv").write_text("id,What do you think of it?\n1,Nothing\n")
    assert not any("echo" in message for message in refusals(tmp_path / "c.csv"))


def test_what_is_wrong_with_an_archive_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"Some words.\n" * 100) + b"something else")
    assert all("something else follows its compressed data (" in said for said in refusals(tmp_path / "a.txt.gz"))
    twice = gzip.compress(b"Some words.\n" * 100) * 2
    (tmp_path / "b.txt.gz").write_bytes(twice[:-8] + bytes(4) + twice[-4:])
    assert all("incorrect data check" in said and "something else" not in said for said in refusals(tmp_path / "b.txt.gz"))
    (tmp_path / "a.zip").write_bytes(zipped({"a.txt": b"Some words.\n" * 100})[:-30])
    assert all("its end, which lists its files, is missing" in said for said in refusals(tmp_path / "a.zip"))


def test_a_later_volume_of_a_tar_archive_is_named(tmp_path: Path) -> None:
    part = tarfile.TarInfo("book.txt")
    part.type, part.size = b"M", 700
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(part, io.BytesIO(b"words. " * 100))
    assert all("it continues book.txt from another volume" in said for said in refusals(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("mark", "shown", "begin"),
    [
        ("~", "~", r"tr '~' '\t' < FILE"),
        ("^", "^", r"tr '^' '\t' < FILE"),
        ("\x01", "the control character 1", r"tr '\001' '\t' < FILE"),
        ("\xa7", "\xa7", "perl -pe 's/\xa7/\\t/g' FILE"),
    ],
)
def test_another_delimiter_is_named_with_the_command_that_replaces_it(tmp_path: Path, mark: str, shown: str, begin: str) -> None:
    text = "One, two; three at 20 \xb0C, and all the others"  # \xb0 and \xa7 begin with the same byte in UTF-8
    rows = [["id", "text"], *([str(number), text] for number in range(9))]
    file, new = tmp_path / "a.csv", tmp_path / "new.tsv"
    file.write_text("".join(f"{mark.join(row)}\n" for row in rows), encoding="utf-8")
    for message in refusals(file):
        advice, command = message.rsplit(": ", 1)
        assert advice.endswith(f" The columns seem to be separated by {shown}, which is not read. Replace it by tabs")
        assert command == f"{begin} > new.tsv"
    subprocess.run(["sh", "-c", command.replace("FILE", "a.csv")], cwd=tmp_path, check=True)
    assert in_training(new) == [text] * 9
