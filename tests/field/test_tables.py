"""Tables in CSV, TSV and Parquet: their rows, columns and quotation marks."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pretrain.errors import UserError
from gpt_pretrain.texts.chunks import Cursor, ReadPosition
from gpt_pretrain.texts.records import csv_rows
from tests.helpers.text_inputs import check, in_corpus, in_training


def test_columns_with_dots_in_their_names_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"article.body": "one"}\n{"article": {"x.y": {"z": 0}, "body": "two"}}\n')
    check(tmp_path / "a.jsonl", ["one", "two"], text_field="article.body")


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ('id\ttext\n1\t"Hello\n2\tHe said "no"\n3\tyes"\n', ['"Hello', 'He said "no"', 'yes"']),
        ('id\ttext\n1\t"Hello ""you"""\n2\t"two\nlines"\n', ['Hello "you"', "two\nlines"]),
        ('text\n"a, b"\n"c\r\nd"\n\nplain\n', ["a, b", "c\nd", "plain"]),
    ],
)
def test_quotes_in_tables_are_what_the_table_means(tmp_path: Path, content: str, documents: list[str]) -> None:
    name = "a.tsv" if "\t" in content else "a.csv"
    (tmp_path / name).write_bytes(content.encode())
    check(tmp_path / name, documents)


@pytest.mark.parametrize("content", ['text,n\n"never closed,1\nb,2\n', 'text,n\n"a"b,1\n', "text,n\na, b,1\n", "text\na\nb,c\n"])
def test_a_broken_row_is_never_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=r"a\.csv, record \d: broken row"):
        in_training(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_two_columns_of_the_same_name_are_not_guessed_between(tmp_path: Path, name: str) -> None:
    if name == "a.csv":
        (tmp_path / name).write_text("text,text\na,b\n")
    else:
        pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / name)
    for read in (in_training, lambda path: in_corpus(path, tmp_path / "out")):
        with pytest.raises(UserError, match=r"has 2 columns named text\. Rename all of them except the column with the text"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "text\tnumber (one, two, three, or more)\nhello, you\t1\n"),
        ("a.csv", "number (one, two, three, or more);text\n1;hello, you\n"),
    ],
)
def test_commas_in_the_names_of_columns_divide_nothing(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    check(tmp_path / name, ["hello, you"])


def test_one_column_is_not_several(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\na\n")
    with pytest.raises(UserError, match=r"broken row \(1 column instead of 2\)"):
        in_training(tmp_path / "a.csv")


@pytest.mark.parametrize("start", ["sep=;\r\n", '\ufeff"sep=;"\n', ""])
def test_tables_of_spreadsheets_are_read(tmp_path: Path, start: str) -> None:
    (tmp_path / "a.csv").write_text(start + "id; text \n1;one, two, three\n2;four\n", newline="")
    check(tmp_path / "a.csv", ["one, two, three", "four"])


def test_a_quoted_value_of_many_short_lines_is_given_to_the_module_csv_at_once() -> None:
    lines = csv_rows._Lines([b'text\n"a\n' + b"b\n" * 1000 + b'c"\nd\n'])
    assert csv_rows._read_header(lines, "text", "a.csv") == (["text"], ",")
    handed_out = []
    for row in csv_rows._rows((handed_out.append(line) or line for line in lines), ",", csv.QUOTE_MINIMAL):  # type: ignore[func-returns-value]
        lines.end_row()
        assert row in (["a\n" + "b\n" * 1000 + "c"], ["d"])
    assert handed_out == ['"a\n', "b\n" * 1000 + 'c"\n', "d\n"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(alphabet='ab1 \n\r,;\t"é東', max_size=12).filter(str.strip), min_size=1, max_size=6),
    st.sampled_from([",", ";", "|"]),
    st.integers(1, 9),
)
def test_tables_are_read_as_they_were_written(texts: list[str], delimiter: str, block: int) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["n", "text", "more"], *([n, text, ""] for n, text in enumerate(texts))])
    data = stream.getvalue().encode()
    blocks = [data[start : start + block] for start in range(0, len(data), block)]
    cursor = Cursor("name", ReadPosition(), bytes_read=lambda: 0)
    found = [value for chunk in csv_rows.split_rows(blocks, cursor, "text") for value in chunk.content]  # type: ignore[union-attr]
    assert found == texts and cursor.offset == len(data)
