"""Small tables of a dataset are read as a whole only if they fit into memory, whatever their footer says."""

import io
from typing import Any

import pytest

from gpt_pretrain.texts.containers import decompression
from gpt_pretrain.texts.containers.decompression import ContentLimit, DamagedArchiveError
from gpt_pretrain.texts.datasets import small_tables
from gpt_pretrain.texts.datasets.small_tables import check_row_group
from tests.helpers.resource_limits import within

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def check(table: Any, **options: Any) -> None:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    opened = pq.ParquetFile(stream)
    for group in range(opened.num_row_groups):
        check_row_group(stream, opened.metadata.row_group(group), limit=ContentLimit(stream.tell()))


@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"compression": "none"}, {"compression": "zstd"}]
)
def test_tables_of_tasks_fit(options: dict[str, Any]) -> None:
    rows = [
        {"text": f"word {n} " * 20, "endings": ["it " * (n % 30)] * 4, "choices": {"text": ["a", "b"]}, "label": n, "none": None}
        for n in range(5000)
    ]
    check(pa.Table.from_pylist(rows), **options)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_tables, "MAX_TABLE_MEMORY", 1 << 23)
    text = "x" * 100_000
    for values in ([text] * 200, [[text] * 200], [7] * 1_000_000, [None] * 1_000_000):
        with pytest.raises(DamagedArchiveError, match="a part of it needs more than"):
            check(pa.table({"a": values}))


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_encodings_that_hide_sizes_are_refused(encoding: str) -> None:
    with pytest.raises(DamagedArchiveError, match="an encoding that is not supported here"):
        check(pa.table({"a": ["x", "xy"]}), use_dictionary=False, column_encoding={"a": encoding})


def test_all_row_groups_have_one_limit() -> None:
    stream = io.BytesIO()
    pq.write_table(pa.table({"a": ["x" * 1_000_000] * 4}), stream, row_group_size=1, use_dictionary=False)
    groups = [pq.read_metadata(stream).row_group(number) for number in range(4)]
    limit = ContentLimit(0)
    limit.take(decompression.ALWAYS_READ - 2_500_000, "")
    for group in groups[:2]:
        check_row_group(stream, group, limit=limit)
    with pytest.raises(DamagedArchiveError, match="times as large as the file"):
        check_row_group(stream, groups[2], limit=limit)


def test_a_dictionary_of_many_texts_is_not_looked_through() -> None:
    stream = io.BytesIO()
    values = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array([str(n) for n in range(2_000_000)]))
    pq.write_table(pa.table({"a": values}), stream, dictionary_pagesize_limit=1 << 30, compression="zstd")
    with within(0.2, 50), pytest.raises(DamagedArchiveError, match="times as large as the file"):
        check_row_group(stream, pq.read_metadata(stream).row_group(0), limit=ContentLimit(0))
