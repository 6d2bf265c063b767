"""Pages of Parquet files that Arrow reads in another way than their headers seem to say, or that hold next to no text."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest

from gpt_pretrain.texts.chunks import Cursor, ReadPosition, RejectedRecord
from gpt_pretrain.texts.containers.decompression import ContentLimit, DamagedArchiveError
from gpt_pretrain.texts.parquet.footer import check_footer
from gpt_pretrain.texts.records.tables import read_parquet
from tests.helpers.resource_limits import within
from tests.security.test_parquet_columns import element, element_list, varint

PLAIN, LENGTHS_FIRST = 0, 6


def number(value: int) -> bytes:
    return varint(2 * value)


def page(
    values: bytes,
    *,
    n_values: int,
    encoding: int = PLAIN,
    compressed: int = 0,
    level_encoding: int = 3,
    codec: str = "zstd",
) -> bytes:
    """Return a page of values that the column needs, with its header.

    Args:
        compressed: What the header says of its size beyond the truth.
        level_encoding: Of what says which values are null.
    """
    content = pa.Codec(codec).compress(values, asbytes=True)
    sizes = b"\x15" + number(len(values)) + b"\x15" + number(len(content) + compressed)
    details = b"\x2c\x15" + number(n_values) + b"\x15" + number(encoding) + b"\x15" + number(level_encoding) + b"\x15\x06\0"
    return b"\x15\x00" + sizes + details + b"\0" + content


def text(value: bytes) -> bytes:
    return len(value).to_bytes(4, "little") + value


def table(
    pages: list[bytes],
    *,
    n_values: int,
    n_rows: int | None = None,
    columns: bytes = b"",
    nullable: bool = False,
    names: int = 1,
    stated_size: int | None = None,
    groups: int = 1,
    created_by: bytes = b"",
) -> bytes:
    """Return a file with a column of these pages.

    Args:
        n_rows: What the footer says of the rows of the whole file.
        columns: Further columns of the row group.
        names: The number of columns that the footer names.
        stated_size: What the footer says of the size of the column.
        groups: Number of row groups, all with the same pages.
        created_by: The program that wrote the file; one that has a name compresses with Brotli.
    """
    body = b"".join(pages)
    size, path = number(len(body) if stated_size is None else stated_size), b"\x19\x18\x04text"
    codec = b"\x08" if created_by else b"\x0c"
    about = (
        b"\x15\x0c\x19\x15\x00"
        + path
        + b"\x15"
        + codec
        + b"\x16"
        + number(n_values)
        + b"\x16"
        + size
        + b"\x16"
        + size
        + b"\x26\x08"
    )
    column = b"\x26\x08\x1c" + about + b"\0\0"
    count = 1 + len(columns) // 3
    group = b"\x19\xfc" + varint(count) + column + columns + b"\x16" + size + b"\x16" + number(n_values) + b"\0"
    root, leaf = element(b"schema", children=names), b"\x15\x0c\x25" + number(int(nullable)) + b"\x18\x04text\x25\x00\0"
    rows = number(n_values if n_rows is None else n_rows)
    footer = (
        b"\x15\x02\x19"
        + element_list([root, leaf, *[leaf.replace(b"text", b"more")] * (names - 1)])
        + b"\x16"
        + rows
        + b"\x19"
        + element_list([group] * groups)
        + (b"\x28" + varint(len(created_by)) + created_by) * bool(created_by)
        + b"\0"
    )
    return b"PAR1" + body + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def read(data: bytes, text_field: str = "text") -> tuple[list[object], str]:
    """Return the texts, and why the rest was left out."""
    texts, refusal, cursor = list[object](), "", Cursor("a.parquet", ReadPosition(), bytes_read=lambda: 0)
    for chunk in read_parquet(io.BytesIO(data), cursor, text_field, size=len(data), limit=ContentLimit(len(data))):
        if isinstance(chunk.content, RejectedRecord):
            refusal = chunk.content.detail
        elif isinstance(chunk.content, list):
            texts += chunk.content
    return texts, refusal


def test_a_size_of_more_than_32_bits_hides_no_page() -> None:
    long = page(text(b"x" * 80_000_000), n_values=1)
    assert read(table([page(text(b"one"), n_values=1), page(text(b"two"), n_values=1)], n_values=2)) == (["one", "two"], "")
    hidden = table([page(text(b"one"), n_values=1, compressed=1 << 32), long], n_values=2)
    with within(2, 30):
        assert read(hidden) == ([], "a part of it expands to more than 64 MB and 20 times its size")


@pytest.mark.parametrize("encoding", [PLAIN, LENGTHS_FIRST])
def test_pages_with_next_to_no_text_are_counted_too(encoding: int) -> None:
    empty = text(b"") if encoding == PLAIN else varint(128) + varint(4) + varint(1) + varint(0)
    one = page(empty + bytes(60_000_000), n_values=1, encoding=encoding)
    data = table([one] * 100, n_values=100)
    assert len(data) < 1_000_000
    with within(2, 250):
        assert "250 times as large" in read(data)[1]


def test_parts_of_lengths_are_not_counted_for_each_block() -> None:
    lengths = varint(128) + varint(1 << 22) + varint(1 << 22) + varint(0) + bytes(30_000_000)
    with within(0.5, 100):
        assert read(table([page(lengths, n_values=1, encoding=LENGTHS_FIRST)], n_values=1))[1] == (
            "what should be its pages is something else"
        )


def test_a_footer_that_states_no_rows_is_read_all_the_same() -> None:
    assert read(table([page(text(b"one"), n_values=1)], n_values=1, n_rows=0)) == (["one"], "")


def test_a_column_that_a_part_of_the_file_lacks_is_not_looked_for() -> None:
    data = table([page(text(b"one"), n_values=1)], n_values=1, names=2)
    assert read(data, "more") == ([], "a part of it has more or fewer columns than the whole")


def test_columns_of_three_bytes_do_not_fill_the_memory() -> None:
    data = table([page(text(b"one"), n_values=1)], n_values=1, columns=b"\x26\0\0" * 500_000)
    with within(0.5, 50), pytest.raises(DamagedArchiveError, match="far more memory than the file explains"):
        check_footer(io.BytesIO(data))  # Arrow would take 300 MB
    few = table([page(text(b"one"), n_values=1)], n_values=1, columns=b"\x26\0\0" * 1000)
    check_footer(io.BytesIO(few))
    assert read(few) == ([], "a part of it has more or fewer columns than the whole")  # Arrow would end the process at the last


@pytest.mark.parametrize("level_encoding", [3, 4])
def test_levels_without_a_size_do_not_hide_how_many_texts_there_are(level_encoding: int) -> None:
    levels = b"\x02\0\0\0\x02\x01" if level_encoding == 3 else b"\x80"  # one value, which is not null
    lengths = varint(128) + varint(4) + varint(1) + varint(6) + b"one" + bytes(100)
    one = page(levels + lengths, n_values=1, encoding=LENGTHS_FIRST, level_encoding=level_encoding)
    expected = (["one"], "") if level_encoding == 3 else ([], "what should be its pages is something else")
    assert read(table([one], n_values=1, nullable=True)) == expected


def test_a_block_of_more_than_32_bits_does_not_hide_the_second_list() -> None:
    lengths, endings = (varint(block) + varint(4) + varint(count) + varint(0) for block, count in ((128, 200), (128, 1 << 27)))
    # Arrow reads two of them, whatever the number says beyond 32 bits. The second one could also be a list of one length.
    blocks = bytes(5) + varint(128) + varint(4) + varint(1) + bytes(2) + bytes(20)
    for block in (128, (1 << 32) + 128):
        first = varint(block) + lengths[2:]
        data = table([page(first + blocks + endings + bytes(100), n_values=200, encoding=7)], n_values=200)
        with within(1, 50):
            assert read(data) == ([], "a part of it has more than 4,194,304 texts")


@pytest.mark.parametrize("levels", [0, 5])
def test_levels_that_are_longer_than_their_page_are_refused(levels: int) -> None:
    values = varint(128) + varint(4) + varint(1) + varint(6) + b"one"
    content = pa.Codec("zstd").compress(values, asbytes=True)
    size = len(values) if not levels else 3  # With levels, fewer bytes than they have.
    sizes = b"\x15" + number(size) + b"\x15" + number(len(content))
    details = b"\x5c\x15\x02\x15\x00\x15\x02\x15" + number(LENGTHS_FIRST) + b"\x15" + number(levels) + b"\x15\x00\x11\0"
    one = b"\x15" + number(3) + sizes + details + b"\0" + content
    expected = (["one"], "") if not levels else ([], "what should be its pages is something else")
    assert read(table([one], n_values=1, nullable=bool(levels))) == expected


def test_lengths_that_take_no_space_are_counted() -> None:
    lengths = varint(128) + varint(1) + varint(1 << 22) + varint(0) + bytes(2 * (1 << 22) // 128 + 20)
    data = table([page(lengths, n_values=1, encoding=LENGTHS_FIRST)] * 150, n_values=150)
    assert len(data) < 20_000
    with within(3, 50):
        assert "250 times as large" in read(data)[1]


def test_pages_behind_the_stated_end_of_a_column_are_counted() -> None:
    """Arrow reads on there in files of an old writer, which counted the header of a dictionary wrongly."""
    body = page(text(b"one") + bytes(40_000_000), n_values=1, codec="brotli")
    assert len(body) <= 100
    data = table([body], n_values=1, stated_size=0, groups=10, created_by=b"parquet-mr version 1.2.8 (build abc)")
    with within(3, 250):
        texts, refusal = read(data)
    assert texts == ["one"] * 6 and "250 times as large" in refusal


def test_a_page_that_states_more_bytes_than_its_column_has_takes_no_memory() -> None:
    data = table([page(text(b"one"), n_values=1, compressed=250_000_000)], n_values=1)
    with within(1, 50):
        assert read(data) == ([], "what should be its pages is something else")
