"""Parquet files, and whatever the package datasets reads: columns of text."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.items import BATCH, DAMAGED_ARCHIVE, LONGEST_RECORD, Item, ReadPosition
from gpt_pretrain.prepare.sources import InputFile
from gpt_pretrain.prepare.streams import missing_extra
from gpt_pretrain.prepare.stretches import Cursor

MOST_ROWS = 64  # that are read at once, of which one may be as long as all others of its group together
SAVED = ("state.json", "dataset_dict.json")  # one of them is in a folder that save_to_disk wrote


def read_parquet(source: InputFile, text_field: str, place: ReadPosition, behind: int) -> Iterator[Item]:
    """The rows of a Parquet file from a place on, some at once.

    Args:
        behind: bytes of the files before.

    Raises:
        UserError: when it has no such column.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing_extra("pyarrow") from error
    read = behind
    cursor = Cursor(source.path, place, read=lambda: read)
    try:
        with pq.ParquetFile(source.path, buffer_size=BATCH, pre_buffer=False) as table:
            names = table.schema_arrow.names
            if text_field not in names:
                raise UserError(f"{source.path} has no column {text_field}, but {', '.join(names)}. Choose one with text_field=.")
            rows, first = table.metadata.num_rows, 0
            for number in range(table.num_row_groups):
                group = table.metadata.row_group(number)
                first, skip = first + group.num_rows, max(cursor.record - first, 0)
                if skip >= group.num_rows:
                    continue
                at_once = min(max(BATCH * group.num_rows // max(group.total_byte_size, 1), 1), MOST_ROWS)
                for batch in table.iter_batches(at_once, row_groups=[number], columns=[text_field], use_threads=False):
                    values = batch.column(0).slice(skip).to_pylist()
                    skip = max(skip - len(batch), 0)
                    read = behind + source.size * (cursor.record + len(values)) // rows
                    yield from _items(values, cursor)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield cursor.bad(DAMAGED_ARCHIVE, str(error).splitlines()[0])


def describe_dataset(name: str, config: str | None, split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A dataset as the manifest has it, and the same with what tells whether its files, if they are here, were changed.

    Raises:
        UserError: when the package datasets is not installed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise missing_extra("datasets")
    about = {"dataset": name, "config": config, "split": split}
    place = Path(name).expanduser()
    found = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place] if place.is_file() else []
    sizes = {str(file): file.stat().st_size for file in found}
    changed = {str(file): file.stat().st_mtime_ns for file in found}
    return about | {"bytes": sum(sizes.values()) if found else None}, about | {"files": sizes, "changed": changed}


def read_dataset(name: str, config: str | None, split: str, text_field: str, place: ReadPosition) -> Iterator[Item]:
    """The records of a dataset from a place on; those before are read and thrown away where the dataset cannot skip them.

    Raises:
        UserError: when there is no such dataset, split or column, or it cannot be read to its end.
    """
    cursor = Cursor(f"{name} ({split})", place, read=lambda: 0)
    try:
        records = _open_dataset(name, config, split)
        names = records.column_names
        if names is not None and text_field not in names:
            raise UserError(f"dataset={name} has no column {text_field}, but {', '.join(names)}. Choose one with text_field=.")
        records = records if names is None else records.select_columns([text_field])
        for batch in records.skip(place.record).iter(batch_size=64):
            yield from _items(batch[text_field], cursor)
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # whatever the dataset's own reader, and the network below it, may raise
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"dataset={name}: the package datasets says behind record {cursor.record:,}: {told.rstrip('.')}. Once that is "
            "mended, the same command goes on where it was."
        ) from error


def _open_dataset(name: str, config: str | None, split: str) -> Any:
    os.environ.setdefault("USE_TORCH", "0")  # else datasets loads torch, 200 MB, to be able to make tensors
    import datasets

    datasets.disable_progress_bars()
    folder = Path(name).expanduser()
    if not any((folder / file).is_file() for file in SAVED):
        return datasets.load_dataset(str(folder) if folder.exists() else name, config, split=split, streaming=True)
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(f"dataset={name} has no split {split}, but {', '.join(saved)}. Choose one with dataset_split=.")
        saved = saved[split]
    return saved.to_iterable_dataset()


def _items(values: list[Any], cursor: Cursor) -> Iterator[Item]:
    """Values of a column, those that are too long apart."""
    waiting: list[Any] = []
    for value in values:
        if isinstance(value, str) and len(value) > LONGEST_RECORD:
            if waiting:
                yield cursor.records(waiting, size=len(waiting), count=len(waiting))
            yield cursor.bad("too long", f"more than {LONGEST_RECORD:,} characters", size=1)
            waiting = []
        else:
            waiting.append(value)
    if waiting:
        yield cursor.records(waiting, size=len(waiting), count=len(waiting))
