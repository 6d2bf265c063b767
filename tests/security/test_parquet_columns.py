"""Parquet files whose list of columns is small in the file and large in memory."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pretrain.texts import parquet_footer
from gpt_pretrain.texts.decompression import DamagedArchiveError
from gpt_pretrain.texts.parquet_footer import check_column_paths


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


def parquet_file(elements: list[bytes], *, schema: bytes = b"\x19") -> io.BytesIO:
    """Return a file of these columns, without rows.

    Args:
        schema: What announces the list of columns.
    """
    footer = b"\x15\x02" + schema + b"\xfc" + varint(len(elements)) + b"".join(elements) + b"\x06\x06\x00\x19\x0c\0"
    return io.BytesIO(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def test_long_names_of_groups_are_counted_for_each_of_their_columns() -> None:
    columns = [element(b"b%d" % number) for number in range(10_000)]
    file = parquet_file([element(b"schema", children=1), element(b"x" * 20_000, children=10_000), *columns])
    with pytest.raises(DamagedArchiveError, match="the names of its columns"):  # Arrow would take 600 MB
        check_column_paths(file)


def test_groups_within_groups_are_counted_too() -> None:
    groups = [element(b"x" * 90, children=1) for _ in range(90)]
    columns = [element(b"b") for _ in range(10_000)]
    file = parquet_file([element(b"schema", children=1), *groups, element(b"y", children=10_000), *columns])
    with pytest.raises(DamagedArchiveError, match="the names of its columns"):
        check_column_paths(file)


@pytest.mark.parametrize(
    "schema",
    [b"\x05\xd2\x0f\x00\x09\x04", b"\x08\xff\xff\x01\x00\x09\x04", b"\x09" + varint(2 * ((1 << 16) + 2))],
    ids=["behind an unknown field", "behind an extension", "as a number of more than 16 bits"],
)
def test_the_list_of_columns_is_found_where_arrow_finds_it(schema: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet_file([element(b"schema", children=1), element(b"long_name")], schema=schema)
    assert pq.ParquetFile(file).schema.names == ["long_name"]
    monkeypatch.setattr(parquet_footer, "MAX_PATHS", 5)
    with pytest.raises(DamagedArchiveError, match="the names of its columns"):
        check_column_paths(file)


def test_a_table_has_a_limited_number_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_footer, "MAX_COLUMNS", 50)
    with pytest.raises(DamagedArchiveError, match="more than 50 columns"):
        check_column_paths(parquet_file([element(b"schema", children=60), *(element(b"b") for _ in range(60))]))


def test_the_columns_of_ordinary_files_are_counted_as_arrow_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "a", "more": {"a": 1.5, "b": [1, 2]}, "flag": True, "when": None}] * 3
    pq.write_table(pa.Table.from_pylist(rows * 40), tmp_path / "a.parquet", row_group_size=7)
    schema = pq.ParquetFile(tmp_path / "a.parquet").schema
    length = sum(len(schema.column(number).path) + 1 for number in range(len(schema)))
    for most in (length, length - 1):
        monkeypatch.setattr(parquet_footer, "MAX_PATHS", most)
        with open(tmp_path / "a.parquet", "rb") as stream:
            if most == length:
                check_column_paths(stream)
            else:
                with pytest.raises(DamagedArchiveError, match="the names of its columns"):
                    check_column_paths(stream)
