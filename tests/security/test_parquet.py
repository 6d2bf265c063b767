"""Parquet files of strangers: what is in memory follows from the file's pages, not from what its footer says of them."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.texts import reading
from gpt_pretrain.texts.chunks import ReadPosition, RejectedRecord
from gpt_pretrain.texts.containers import archives, decompression
from gpt_pretrain.texts.inputs import CorpusInputs, stat_input_file
from gpt_pretrain.texts.parquet.pages import read_page_header
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.helpers.resource_limits import within


def read(path: Path, text_field: str = "text") -> Iterator[list[object] | RejectedRecord]:
    inputs = CorpusInputs([stat_input_file(str(path))], None, text_field, None, [], [])
    for chunk in reading.read_inputs(inputs, ByteTokenizer(), start=ReadPosition()):
        assert isinstance(chunk.content, list | RejectedRecord)
        yield chunk.content


def sizes_and_refusal(path: Path) -> tuple[list[int], str]:
    """Return the numbers of rows that were in memory at a time, and why the rest was left out."""
    sizes, refusal = list[int](), ""
    for content in read(path):
        if isinstance(content, RejectedRecord):
            refusal = content.detail
        else:
            sizes.append(len(content))
    return sizes, refusal


def texts_of(path: Path) -> list[object]:
    return [text for content in read(path) if isinstance(content, list) for text in content]


def write(path: Path, values: pa.Array, **options: object) -> Path:
    """Write a column of text, of which the schema says nothing but that it is text."""
    table = pa.table({"text": values})
    if isinstance(values, pa.DictionaryArray):
        table = table.cast(pa.schema([("text", pa.dictionary(pa.int32(), pa.string()))]))
    defaults = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, "store_schema": False, "write_statistics": False}
    pq.write_table(table, path, **(defaults | options))
    return path


def repeated(text: str, n_rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * n_rows, pa.int32()), pa.array([text]))


def test_a_text_that_is_named_many_times_is_left_at_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "bomb.parquet", repeated("a " * 16_000_000, 5000))
    assert path.stat().st_size < 10_000
    with within(seconds=20, megabytes=250):
        sizes, refusal = sizes_and_refusal(path)
    assert "250 times as large" in refusal and set(sizes) == {1}


def number(value: int, *, length: int = 0) -> bytes:
    """Return a whole number as the footer has it, also with more bytes than it needs."""
    digits, left = [], value * 2
    while left or len(digits) < max(length, 1):
        digits.append(left & 0x7F)
        left >>= 7
    return bytes(digit | 0x80 for digit in digits[:-1]) + bytes(digits[-1:])


def hide_dictionary(path: Path) -> None:
    """Have the footer say that the column begins with ordinary pages, and expands to little."""
    column = pq.read_metadata(path).row_group(0).column(0)
    content = path.read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
    size, pages, start = (
        number(value) for value in (column.total_uncompressed_size, column.data_page_offset, column.dictionary_page_offset)
    )
    hidden = footer.replace(size, number(2 * column.total_compressed_size, length=len(size)))
    # Two fields of 64 bits: the first one now names the dictionary, and the second one is one that nobody knows.
    places = b"\x26" + pages + b"\x26" + start
    assert hidden.count(places) == 1 and hidden != footer
    hidden = hidden.replace(places, b"\x26" + number(column.dictionary_page_offset, length=len(pages)) + b"\xf6" + start)
    path.write_bytes(content.replace(footer, hidden))
    hidden_column = pq.read_metadata(path).row_group(0).column(0)
    assert not hidden_column.has_dictionary_page and hidden_column.data_page_offset == column.dictionary_page_offset


def test_a_dictionary_that_the_footer_hides_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", repeated("x" * 8_000_000, 300))
    hide_dictionary(path)
    with within(seconds=10, megabytes=200):
        assert "250 times as large" in sizes_and_refusal(path)[1]


def test_a_page_that_expands_too_much_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array(["hi", "x" * 80_000_000]), use_dictionary=False)
    with within(seconds=5, megabytes=30):
        assert sizes_and_refusal(path)[1] == "a part of it expands to more than 64 MB and 20 times its size"


def test_pages_of_single_long_texts_are_read_one_by_one(tmp_path: Path) -> None:
    options = {"use_dictionary": False, "data_page_size": 1, "write_batch_size": 1}
    path = write(tmp_path / "a.parquet", pa.array(["x" * 5_000_000] * 40), **options)
    with within(seconds=10, megabytes=200):
        assert sum(sizes_and_refusal(path)[0]) == 40


def test_texts_that_begin_as_the_one_before_are_counted_as_a_whole(tmp_path: Path) -> None:
    options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    path = write(tmp_path / "a.parquet", pa.array(["x" * 4_000_000] * 100), **options)
    with within(seconds=10, megabytes=250):
        assert "250 times as large" in sizes_and_refusal(path)[1]


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
@pytest.mark.parametrize("which", ["count", "parts"])
def test_lengths_that_take_no_space_are_counted_first(tmp_path: Path, encoding: str, which: str) -> None:
    options = {"use_dictionary": False, "column_encoding": {"text": encoding}, "compression": "none"}
    path = write(tmp_path / "a.parquet", pa.array(["abcd"] * 10), **options)
    column = pq.read_metadata(path).row_group(0).column(0)
    content = path.read_bytes()
    start = column.data_page_offset + read_page_header(io.BytesIO(content), column.data_page_offset)[1]
    values = start + 4 + int.from_bytes(content[start : start + 4], "little")
    huge = b"\xff\xff\xff\x3f"  # 2**27 - 1
    lengths = b"\x80\x80\x80\x40" + (b"\x01" + huge if which == "count" else huge + b"\x0a") + b"\0\0\0"
    path.write_bytes(content[:values] + lengths + content[values + len(lengths) :])
    with within(seconds=2, megabytes=30):
        assert sizes_and_refusal(path)[1] == "a part of it has more than 4,194,304 texts"


def test_rows_without_text_are_left_at_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.nulls(6_000_000, pa.string()))
    assert path.stat().st_size < 20_000
    with within(seconds=30, megabytes=50):
        assert "more records than its size explains" in sizes_and_refusal(path)[1]


LISTS = pa.array([["one"]])


@pytest.mark.parametrize(
    ("columns", "text_field", "message"),
    [
        (
            {"text": LISTS},
            "text",
            r"its column text is of the type list<.*>, not text\. To make one text of each list, join its parts first",
        ),
        ({"text": LISTS, "body": ["a"]}, "text", r"not text\. Set text_field= to another column: body\."),
        ({"text": pa.array([b"one"], pa.binary(3))}, "text", r"is of the type fixed_size_binary\[3\], not text"),
        ({"text": [1]}, "text", "is of the type int64, not text"),
        ({"text": [{"en": "one"}]}, "text", r"of the type struct<.*>, not text\. Set text_field= to another column: text\.en"),
        ({"a": [{"text": ["one"]}]}, "a.text", "its column a.text is of the type list"),
        ({"a.text": ["one"], "a": [{"text": ["one"]}]}, "a.text", "or several columns, as a.text"),
    ],
    ids=["list", "list beside text", "fixed size", "number", "struct", "list in a struct", "the same path twice"],
)
def test_a_column_that_is_no_text_is_refused(tmp_path: Path, columns: dict[str, object], text_field: str, message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        list(read(tmp_path / "a.parquet", text_field))


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["one", None]),
        pa.array(["one", None], pa.large_string()),
        pa.array([b"one", None], pa.binary()),
        pa.array(["one", None]).dictionary_encode(),
        pa.array(["one", None], pa.string_view()),
        pa.nulls(2),
    ],
    ids=["string", "large string", "binary", "dictionary", "view", "null"],
)
def test_every_kind_of_text_is_read(tmp_path: Path, values: pa.Array) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet") == values.to_pylist()


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_every_form_of_a_page_is_read(tmp_path: Path, encoding: str, compression: str) -> None:
    texts = [None if number % 5 == 0 else f"text {number % 7} " * (number % 11) for number in range(700)]
    for version, nullable in itertools.product(("1.0", "2.0"), (False, True)):
        values = texts if nullable else [text or "" for text in texts]
        table = pa.Table.from_arrays([pa.array(values)], schema=pa.schema([pa.field("text", pa.string(), nullable=nullable)]))
        pq.write_table(
            table,
            tmp_path / "a.parquet",
            compression=compression,
            use_dictionary=False,
            column_encoding={"text": encoding},
            data_page_version=version,
            data_page_size=1000,
            row_group_size=300,
        )
        assert texts_of(tmp_path / "a.parquet") == values


@pytest.mark.parametrize("compression", ["snappy", "gzip", "brotli", "zstd", "lz4"])
def test_a_page_that_is_longer_when_it_is_compressed_is_read(tmp_path: Path, compression: str) -> None:
    options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}}
    assert texts_of(write(tmp_path / "a.parquet", pa.array(["one"]), compression=compression, **options)) == ["one"]


def test_ordinary_files_are_read_many_rows_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array([f"Document {n}." for n in range(500)]))
    assert sizes_and_refusal(path)[0] == [64] * 7 + [52]


def test_all_tables_in_an_archive_have_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompression, "ALWAYS_READ", (1 << 20) + 8 * archives.MEMBER)
    monkeypatch.setattr(decompression, "MAX_EXPANSION", 10)
    pq.write_table(pa.table({"text": ["x" * 200_000]}), tmp_path / "a.parquet", compression="zstd", write_statistics=False)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(8):
            archive.add(tmp_path / "a.parquet", f"{number}.parquet")
    sizes, refusal = sizes_and_refusal(tmp_path / "a.tar")
    assert len(sizes) == 5 and "times as large as the file" in refusal


@pytest.mark.parametrize("text", ["a", "a<|endoftext|>" * 10])
def test_a_table_has_no_more_documents_than_its_size_explains(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompression, "ALWAYS_READ", 1 << 20)
    few, many = (1000, 11_000) if text == "a" else (100, 1100)
    for n_rows, fits in ((few, True), (many, False)):
        path = write(tmp_path / "a.parquet", repeated(text, n_rows))
        assert sizes_and_refusal(path)[1].startswith("it has far more records") is not fits
    # When reading resumes, the rows before count too.
    inputs = CorpusInputs([stat_input_file(str(path))], None, "text", None, [], [])
    end = next(reading.read_inputs(inputs, ByteTokenizer(), start=ReadPosition(offset=many, record=many)), None)
    assert end is None or isinstance(end.content, RejectedRecord)
