"""Read columns of text: Parquet files, and everything that the package datasets reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.chunks import BATCH, DAMAGED_ARCHIVE, LONGEST_RECORD, Chunk, Cursor, ReadPosition
from gpt_pretrain.prepare.inputs import InputFile, StreamedDataset, missing_extra

MAX_ROWS = 64  # Rows read at a time. One of them may be as long as the rest of its row group.
SAVED = ("state.json", "dataset_dict.json")  # A folder written by save_to_disk contains one of these.


def read_parquet(file: InputFile, text_field: str, *, start: ReadPosition, bytes_before: int = 0) -> Iterator[Chunk]:
    """Yield the rows of a Parquet file from a position on.

    Args:
        bytes_before: Total size of the files before this one.

    Raises:
        UserError: If the file has no such column.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing_extra("pyarrow") from error
    bytes_read = bytes_before
    cursor = Cursor(file.path, start, bytes_read=lambda: bytes_read)
    try:
        with pq.ParquetFile(file.path, buffer_size=BATCH, pre_buffer=False) as table:
            _check_column(text_field, table.schema_arrow.names, file.path)
            n_rows, group_start = table.metadata.num_rows, 0
            for number in range(table.num_row_groups):
                group = table.metadata.row_group(number)
                skip = max(cursor.record - group_start, 0)
                group_start += group.num_rows
                if skip >= group.num_rows:
                    continue
                batch_size = min(max(BATCH * group.num_rows // max(group.total_byte_size, 1), 1), MAX_ROWS)
                for batch in table.iter_batches(batch_size, row_groups=[number], columns=[text_field], use_threads=False):
                    values = batch.column(0).slice(skip).to_pylist()
                    skip = max(skip - len(batch), 0)
                    bytes_read = bytes_before + file.size * (cursor.record + len(values)) // n_rows
                    yield from _chunk_values(values, cursor)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield cursor.reject(DAMAGED_ARCHIVE, str(error).splitlines()[0])


def read_dataset(dataset: StreamedDataset, text_field: str, *, start: ReadPosition) -> Iterator[Chunk]:
    """Yield the records of a dataset from a position on; a dataset that cannot skip is read from its beginning.

    Raises:
        UserError: If the dataset, split or column does not exist, or the dataset cannot be read to its end.
    """
    cursor = Cursor(f"{dataset.name} ({dataset.split})", start, bytes_read=lambda: 0)
    try:
        records = _open_dataset(dataset)
        if records.column_names is not None:
            _check_column(text_field, records.column_names, f"dataset={dataset.name}")
            records = records.select_columns([text_field])
        for batch in records.skip(start.record).iter(batch_size=64):
            yield from _chunk_values(batch[text_field], cursor)
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # The dataset's own reader and the network below it may raise anything.
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"dataset={dataset.name}: the package datasets fails after record {cursor.record:,}: {message.rstrip('.')}. "
            "Fix this and run the same command again to resume."
        ) from error


def _open_dataset(dataset: StreamedDataset) -> Any:
    os.environ.setdefault("USE_TORCH", "0")  # Otherwise datasets imports torch (200 MB) to be able to create tensors.
    import datasets

    datasets.disable_progress_bars()
    folder = Path(dataset.name).expanduser()
    if not any((folder / file).is_file() for file in SAVED):
        name = str(folder) if folder.exists() else dataset.name
        return datasets.load_dataset(name, dataset.config, split=dataset.split, streaming=True)
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.DatasetDict):
        if dataset.split not in saved:
            raise UserError(
                f"dataset={dataset.name} has no split {dataset.split}. Choose one with dataset_split=: {', '.join(saved)}."
            )
        saved = saved[dataset.split]
    return saved.to_iterable_dataset()


def _check_column(text_field: str, columns: list[str], name: str) -> None:
    if text_field not in columns:
        raise UserError(f"{name} has no column {text_field}. Choose one with text_field=: {', '.join(columns)}.")


def _chunk_values(values: list[Any], cursor: Cursor) -> Iterator[Chunk]:
    """Yield the values of a column as chunks; values that are too long are rejected."""
    waiting: list[Any] = []
    for value in values:
        if isinstance(value, str) and len(value) > LONGEST_RECORD:
            if waiting:
                yield cursor.records(waiting, size=len(waiting), count=len(waiting))
            yield cursor.reject("too long", f"more than {LONGEST_RECORD:,} characters", size=1)
            waiting = []
        else:
            waiting.append(value)
    if waiting:
        yield cursor.records(waiting, size=len(waiting), count=len(waiting))
