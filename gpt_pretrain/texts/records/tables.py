"""Read columns of text from Parquet files, and from everything that the package datasets reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, BinaryIO

from gpt_pretrain.errors import UserError, first_line
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.resources import bounded_memory
from gpt_pretrain.texts.chunks import BATCH, DAMAGED_ARCHIVE, LONGEST_RECORD, Chunk, Cursor, ReadPosition
from gpt_pretrain.texts.containers.decompression import ContentLimit, DamagedArchiveError
from gpt_pretrain.texts.datasets.arrow_tables import ArrowLimit
from gpt_pretrain.texts.datasets.files import SAVED, check_is_text, check_saved_dataset
from gpt_pretrain.texts.datasets.guard import check_reader, own_files_only
from gpt_pretrain.texts.extras import missing_extra
from gpt_pretrain.texts.inputs import StreamedDataset
from gpt_pretrain.texts.parquet.footer import check_footer
from gpt_pretrain.texts.parquet.pages import check_parts
from gpt_pretrain.texts.parquet.rows import RowLimit, read_few_rows, text_values
from gpt_pretrain.texts.records.columns import check_column, find_column, find_leaf

DATASET_MEMORY = 1 << 30  # bytes that datasets may take for the next records


def read_parquet(source: str | BinaryIO, cursor: Cursor, text_field: str, *, size: int, limit: ContentLimit) -> Iterator[Chunk]:
    """Yield the rows of a Parquet file from the cursor's position on.

    Args:
        source: Path of the file, or an open temporary copy of a file in an archive.
        text_field: The name of the column. Dots lead to a field in a column of structs.
        size: Bytes of the file.
        limit: Limits the text in it, together with all other members of its archive.

    Raises:
        UserError: If the file has no such column.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing_extra("pyarrow") from error
    try:
        with open(source, "rb") if isinstance(source, str) else nullcontext(source) as stream:
            unreadable = check_footer(stream)
            with pq.ParquetFile(source, buffer_size=BATCH, pre_buffer=False) as table:
                yield from _read_row_groups(table, stream, cursor, text_field, size=size, limit=limit, unreadable=unreadable)
    # Some errors of Arrow are also a ValueError or a MemoryError.
    except (pa.ArrowException, OSError, ValueError, OverflowError, DamagedArchiveError) as error:
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        yield cursor.reject(DAMAGED_ARCHIVE, first_line(error))


def _read_row_groups(
    table: Any, stream: BinaryIO, cursor: Cursor, text_field: str, *, size: int, limit: ContentLimit, unreadable: dict[int, str]
) -> Iterator[Chunk]:
    """Yield the rows of an open Parquet file from the cursor's position on."""
    fields = find_column(text_field, table.schema_arrow, cursor.file)
    column = find_leaf(fields, table.schema, cursor.file)
    check_parts(table.metadata, [column], size=size, unreadable=unreadable)
    n_rows, group_start = max(table.metadata.num_rows, 1), 0  # The stated number of rows may be wrong.
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        skip = max(cursor.record - group_start, 0)
        group_start += group.num_rows
        if skip >= group.num_rows:
            continue
        row_limit = RowLimit(limit)
        for batch, page_bytes in read_few_rows(table, stream, group=number, column=column, limit=limit):
            values = text_values(batch.slice(skip), fields)
            skip = max(skip - len(batch), 0)
            cursor.bytes_of_file = size * (cursor.record + len(values)) // n_rows
            row_limit.take(values, page_bytes)
            yield from _chunk_values(values, cursor)


def read_dataset(dataset: StreamedDataset, text_field: str, *, start: ReadPosition) -> Iterator[Chunk]:
    """Yield the records of a dataset from a position on.

    Raises:
        UserError: If the dataset, split or column does not exist, or the dataset cannot be read to its end.
    """
    cursor = Cursor(f"{dataset.name} ({dataset.split})", start, bytes_read=lambda: 0)
    os.environ.setdefault("USE_TORCH", "0")  # datasets would import torch (200 MB of memory) to be able to create tensors.
    arrow_limit = ArrowLimit()
    try:
        with own_files_only(dataset.name, arrow_limit=arrow_limit):
            with bounded_memory(DATASET_MEMORY):  # For some kinds of files, datasets reads the first records to find columns.
                records = _open_dataset(dataset, text_field, arrow_limit)
            # If the features are unknown, datasets decodes nothing, so there is nothing to check.
            if records.features is not None:
                check_column(text_field, list(records.features), f"dataset={dataset.name}")
                check_is_text(text_field, records.features, dataset.name)
                records = records.select_columns([text_field]).decode(False)
            batches = records.skip(start.record).iter(batch_size=64)
            while True:
                with bounded_memory(DATASET_MEMORY):
                    batch = next(batches, None)
                    if batch is None:
                        return
                    texts = _texts(batch[text_field])
                arrow_limit.take(texts)
                yield from _chunk_values(texts, cursor)
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # The reader of the dataset, and the network, may raise anything.
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise UserError(
                f"dataset={dataset.name}: what comes after record {cursor.record:,} needs more than {DATASET_MEMORY >> 30} GB of "
                "memory in the package datasets. Give the files themselves as inputs: they are read in small parts."
            ) from error
        message = first_line(error)
        raise UserError(
            f"dataset={dataset.name}: the package datasets failed after record {cursor.record:,}: {message.rstrip('.')}. "
            "Fix this and run the same command again to resume."
        ) from error


def _open_dataset(dataset: StreamedDataset, text_field: str, arrow_limit: ArrowLimit) -> Any:
    """Return the records of a dataset. From Parquet files, only the column of text is read."""
    import datasets

    datasets.disable_progress_bars()
    folder = user_path(dataset.name)
    if not any((folder / file).is_file() for file in SAVED):
        name = str(folder) if folder.exists() else dataset.name
        builder = datasets.load_dataset_builder(name, dataset.config)
        check_reader(builder, dataset.name)
        records = builder.as_streaming_dataset(split=dataset.split)
        if hasattr(builder.config, "columns") and text_field in (records.features or ()):
            builder.config.columns = [text_field]
            records = builder.as_streaming_dataset(split=dataset.split)
        elif hasattr(builder.config, "usecols") and records.features is None:
            builder.config.usecols = [text_field]  # pandas is slow with thousands of columns
        return records
    arrow_limit.add_file(check_saved_dataset(folder))
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.DatasetDict):
        if dataset.split not in saved:
            raise UserError(
                f"dataset={dataset.name} has no split {dataset.split}. Set dataset_split= to one of its splits: "
                f"{', '.join(saved)}."
            )
        saved = saved[dataset.split]
    return saved.with_format("arrow").to_iterable_dataset()  # A saved format may turn text into tensors.


def _texts(column: Any) -> list[Any]:
    """Return the texts of a batch, which is a table if the dataset is a saved one.

    Raises:
        pyarrow.ArrowInvalid: If a text lies outside of its file. datasets 5.2 checks this in other Arrow files only.
    """
    if isinstance(column, list):
        return column
    column.validate(full=True)
    texts: list[Any] = column.to_pylist()
    return texts


def _chunk_values(values: list[Any], cursor: Cursor) -> Iterator[Chunk]:
    """Yield the values of a column as chunks. Values that are too long are rejected."""
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
