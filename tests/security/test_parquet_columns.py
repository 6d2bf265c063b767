"""Parquet files whose list of columns is small in the file and large in memory."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pretrain.texts.chunks import Cursor, ReadPosition, RejectedRecord
from gpt_pretrain.texts.containers.decompression import ContentLimit, DamagedArchiveError
from gpt_pretrain.texts.parquet import footer
from gpt_pretrain.texts.parquet.footer import check_footer
from gpt_pretrain.texts.records.tables import read_parquet


def varint(number: int) -> bytes:
    made = b""
    while number > 127:
        made, number = made + bytes([number & 127 | 128]), number >> 7
    return made + bytes([number])


def element(name: bytes, *, children: int | None = None) -> bytes:
    """Return a SchemaElement in the compact protocol: a group, or a column of booleans."""
    if children is None:
        return b"\x15\x00\x25\x00\x18" + varint(len(name)) + name + b"\0"
    return b"\x35\x00\x18" + varint(len(name)) + name + b"\x15" + varint(2 * children) + b"\0"


def element_list(elements: list[bytes], *, kind: int = 12) -> bytes:
    return bytes([0xF0 | kind]) + varint(len(elements)) + b"".join(elements)


def parquet_file(elements: list[bytes], *, schema: bytes = b"\x19", kind: int = 12) -> io.BytesIO:
    """Return a file of these columns, without rows.

    Args:
        schema: What announces the list of columns.
        kind: What the list says that its elements are.
    """
    footer = b"\x15\x02" + schema + element_list(elements, kind=kind) + b"\x06\x06\x00\x19\x0c\0"
    return io.BytesIO(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def test_long_names_of_groups_are_counted_for_each_of_their_columns() -> None:
    columns = [element(b"b%d" % number) for number in range(10_000)]
    file = parquet_file([element(b"schema", children=1), element(b"x" * 20_000, children=10_000), *columns])
    with pytest.raises(DamagedArchiveError, match="the names of its columns"):  # Arrow would take 600 MB
        check_footer(file)


def test_groups_within_groups_are_counted_too() -> None:
    groups = [element(b"x" * 90, children=1) for _ in range(90)]
    columns = [element(b"b") for _ in range(10_000)]
    file = parquet_file([element(b"schema", children=1), *groups, element(b"y", children=10_000), *columns])
    with pytest.raises(DamagedArchiveError, match="the names of its columns"):
        check_footer(file)


@pytest.mark.parametrize(
    "schema",
    [b"\x05\xd2\x0f\x00\x09\x04", b"\x08\xff\xff\x01\x00\x09\x04", b"\x09" + varint(2 * ((1 << 16) + 2))],
    ids=["behind an unknown field", "behind an extension", "as a number of more than 16 bits"],
)
def test_the_list_of_columns_is_found_where_arrow_finds_it(schema: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet_file([element(b"schema", children=1), element(b"long_name")], schema=schema)
    assert pq.ParquetFile(file).schema.names == ["long_name"]
    monkeypatch.setattr(footer, "MAX_PATHS", 5)
    with pytest.raises(DamagedArchiveError, match="the names of its columns"):
        check_footer(file)


HARMLESS = [element(b"schema", children=1), element(b"a")]


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        (b"\x19" + element_list(HARMLESS) + b"\x09\x04", 12),
        (b"\x18\x01x\x09\x04", 12),
        (b"\x0b\xd2\x0f\x00\x09\x04", 12),
        (b"\x0d\xd2\x0f" + b"\x01" * 16 + b"\x09\x04", 12),
        (b"\x0c\xd2\x0f" + b"\x1c" * 20 + b"\x00" * 21 + b"\x09\x04", 12),
        (b"\x19", 8),
        (b"\x19" + element_list(HARMLESS) + b"\x29\x18\x16\x00\x09\x04", 12),
    ],
    ids=[
        "behind another list",
        "behind a text in its place",
        "behind a map",
        "behind an identifier",
        "behind something deep",
        "as a list of texts",
        "within a text that Arrow reads as a row group",
    ],
)
def test_no_list_of_columns_hides_another_from_the_check(schema: bytes, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet_file([element(b"schema", children=1), element(b"long_name")], schema=schema, kind=kind)
    if b"\x29\x18" not in schema:  # Arrow finds a row group without what it needs.
        assert pq.ParquetFile(file).schema.names == ["long_name"]
    monkeypatch.setattr(footer, "MAX_PATHS", 5)
    with pytest.raises(DamagedArchiveError, match=r"the names of its columns|what should be its footer"):
        check_footer(file)


@pytest.mark.parametrize("children", [b"\x16\x02", b"\x15" + varint(1 << 33)], ids=["of 64 bits", "of more than 32 bits"])
def test_columns_are_no_groups_where_arrow_sees_none(children: bytes) -> None:
    columns = [b"\x15\x00\x25\x00\x18\x01b" + children + b"\0" for _ in range(1000)]
    file = parquet_file([element(b"schema", children=1), element(b"x" * 30_000, children=1000), *columns])
    with pytest.raises(DamagedArchiveError, match="the names of its columns"):
        check_footer(file)


def test_a_list_that_is_longer_than_the_footer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footer, "MAX_PATHS", 5)
    for kind in (3, 7):  # Of a fixed size each.
        with pytest.raises(DamagedArchiveError, match="what should be its footer"):
            check_footer(parquet_file([], schema=b"\x09\xd2\x0f" + bytes([0xF0 | kind]) + varint(1 << 62)))


def test_a_table_has_a_limited_number_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footer, "MAX_COLUMNS", 50)
    with pytest.raises(DamagedArchiveError, match="more than 50 columns"):
        check_footer(parquet_file([element(b"schema", children=60), *(element(b"b") for _ in range(60))]))


def test_the_columns_of_ordinary_files_are_counted_as_arrow_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "a", "more": {"a": 1.5, "b": [1, 2]}, "flag": True, "when": None}] * 3
    pq.write_table(pa.Table.from_pylist(rows * 40), tmp_path / "a.parquet", row_group_size=7)
    schema = pq.ParquetFile(tmp_path / "a.parquet").schema
    length = sum(len(schema.column(number).path) + 1 for number in range(len(schema)))
    for most in (length, length - 1):
        monkeypatch.setattr(footer, "MAX_PATHS", most)
        with open(tmp_path / "a.parquet", "rb") as stream:
            if most == length:
                check_footer(stream)
            else:
                with pytest.raises(DamagedArchiveError, match="the names of its columns"):
                    check_footer(stream)


def test_no_part_of_a_file_is_read_for_many_groups_of_rows() -> None:
    n_pages, n_groups = 800, 200  # One after the other, 160,000 headers of pages.
    page = b"\x15\x00\x15\x00\x15\x00\x2c\x15\x00\x15\x00\x15\x06\x15\x06\0\0"
    size, encodings, path = varint(2 * len(page) * n_pages), b"\x19\x15\x00", b"\x19\x18\x04text"
    column = b"\x26\x08\x1c\x15\x0c" + encodings + path + b"\x15\x00\x16\x02\x16" + size + b"\x16" + size + b"\x26\x08\0\0"
    groups = element_list([b"\x19\x1c" + column + b"\x16\x02\x16\x02\0"] * n_groups)
    root, text = element(b"schema", children=1), b"\x15\x0c\x25\x00\x18\x04text\x25\x00\0"
    footer = b"\x15\x02\x19" + element_list([root, text]) + b"\x16" + varint(2 * n_groups) + b"\x19" + groups + b"\0"
    data = b"PAR1" + page * n_pages + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    cursor = Cursor("a.parquet", ReadPosition(), bytes_read=lambda: 0)
    (chunk,) = read_parquet(io.BytesIO(data), cursor, "text", size=len(data), limit=ContentLimit(len(data)))
    assert isinstance(chunk.content, RejectedRecord) and "together larger than the file" in chunk.content.detail
