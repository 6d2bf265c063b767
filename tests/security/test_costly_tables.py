"""Tables that are made to cost much time or memory."""

from __future__ import annotations

import pyarrow as pa
import pytest

from gpt_pretrain.texts.chunks import Cursor, ReadPosition, RejectedRecord
from gpt_pretrain.texts.records import csv_rows
from gpt_pretrain.texts.records.columns import column_paths
from gpt_pretrain.texts.records.csv_rows import read_columns, split_rows
from tests.helpers.resource_limits import allocating_at_most


def test_a_first_row_with_an_open_quotation_mark_is_read_within_bounds() -> None:
    names = read_columns([b'a,"' + b"x" * 200_000], "text", "a.csv")
    assert names[0] == "a" and len(names) == 2


def read_rows(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the texts in a table, and the details of its rejected rows."""
    texts, problems = list[str](), list[str]()
    blocks = ("".join(lines).encode()[start : start + 100_000] for start in range(0, sum(map(len, lines)), 100_000))
    for chunk in split_rows(blocks, Cursor("a.csv", ReadPosition(), bytes_read=lambda: 0), "text"):
        if isinstance(chunk.content, RejectedRecord):
            problems.append(chunk.content.detail)
        elif isinstance(chunk.content, list):
            texts += chunk.content
    return texts, problems


def test_a_row_over_many_lines_has_few_columns() -> None:
    lines = ["text,b\n", '"\n', *(['",' + "ab," * 30_000 + '"\n'] * 40), '",1\n']
    with allocating_at_most(megabytes=60):
        texts, problems = read_rows(lines)
    assert not texts and "more than 100,000 columns" in problems


@pytest.mark.parametrize("begin", ["", 'a"', '"a"', '"a""b"', '"', '""'])
def test_a_line_with_many_columns_is_rejected_wherever_its_quotation_marks_are(begin: str) -> None:
    with allocating_at_most(megabytes=60):
        texts, problems = read_rows(["text,b\n", begin + "ab," * 1_000_000 + "\n", "good,1\n"])
    if begin == '"':  # all that follows is one value
        return
    assert problems == ["more than 100,000 columns"]
    assert texts == ["good"]


def test_commas_within_a_value_are_no_columns() -> None:
    value = '""He said, no, ""' * 100_000
    texts, problems = read_rows(["text,b\n", f'"{value}",1\n', f'1,"{value}\n{value}"\n', f'"\n{value}",1\n'])
    assert not problems
    assert texts == [value.replace('""', '"'), "1", "\n" + value.replace('""', '"')]


def test_marks_of_a_table_without_quoting_hide_no_columns() -> None:
    head = ["text\tb\n", *(['5" nails\tx\n', '"odd\tx\n'] * 10_000)]
    with allocating_at_most(megabytes=60):
        texts, problems = read_rows([*head, '"' + "ab\t" * 1_000_000 + "\n", "good\t1\n"])
    assert problems == ["more than 100,000 columns"]
    assert len(texts) == 20_001


def test_a_row_that_never_ends_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "LONGEST_RECORD", 100_000)
    texts, problems = read_rows(["text,b\n", *(['x,"\n', '",\n'] * 3), 'y,"', *(["abcdefgh\n"] * 20_000), 'z"\n', "good,1\n"])
    assert "the row is longer than 100,000 bytes" in problems
    assert texts[-1] == "good"


def test_columns_are_named_in_part() -> None:
    inner = pa.struct([pa.field(f"{number}" + "b" * 100_000, pa.string()) for number in range(200)])
    schema = pa.schema([pa.field("a" * 100_000, inner)])
    with allocating_at_most(megabytes=70):
        names = column_paths(schema)
    assert len(names) == 50 and all(len(name) <= 201 for name in names)
