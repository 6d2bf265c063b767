"""Recognize JSON and tables without text, which often lie beside texts: settings, or a list of the texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.json_files import check_json_values
from gpt_pretrain.system.nested_values import MAX_VALUES
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.recognition.encodings import to_utf8
from gpt_pretrain.system.recognition.file_kinds import ARRAY, LINES, OBJECTS, ROWS, FileKind
from gpt_pretrain.texts.containers.blocks import look_ahead, take
from gpt_pretrain.texts.containers.decompression import DamagedArchiveError
from gpt_pretrain.texts.parquet.footer import check_footer
from gpt_pretrain.texts.records.columns import column_paths, find_column
from gpt_pretrain.texts.records.csv_rows import read_columns
from gpt_pretrain.texts.records.record_text import InvalidRecordError, find_field

LARGEST_JSON = 1 << 22  # bytes; larger files are taken for texts without being parsed
LINE_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")  # Settings are never stored in such files.
# A string counts as text, not as a name, if it has this many words. Chinese and Japanese have no spaces between words, so their
# characters are counted.
FEWEST_WORDS, FEWEST_IDEOGRAPHS, FIRST_IDEOGRAPHIC = 3, 8, "\u2e80"
MAX_NAMED = 10  # fields that a message names


def find_missing_text(
    name: str, kind: FileKind, blocks: Iterator[bytes], text_field: str
) -> tuple[FileKind | None, Iterator[bytes]]:
    """Return the kind of a content without text, or None if it may have text; and all bytes of the content."""

    def look(first: Iterator[bytes]) -> FileKind | None:
        try:
            utf8 = to_utf8(first, kind.encoding.name)
            if kind.form == ROWS:
                columns = read_columns(utf8, text_field, name)
                return None if text_field in columns else _table_without(text_field, columns)
            if kind.form in (LINES, ARRAY, OBJECTS) and not name.lower().endswith(LINE_SUFFIXES):
                return _json_without(text_field, take(utf8, LARGEST_JSON + 1))
        except (UnicodeDecodeError, DamagedArchiveError, DamagedFileError, ValueError, RecursionError):
            pass  # The reader says what is wrong with it.
        return None

    return look_ahead(blocks, look)


def find_missing_column(source: BinaryIO, text_field: str) -> FileKind | None:
    """Return the kind of a Parquet file without the column for the text, or None if it has the column or cannot be read."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return None
    try:
        check_footer(source)
        schema = pq.read_schema(source)
    except (pa.ArrowException, OSError, ValueError, DamagedArchiveError):
        return None
    finally:
        source.seek(0)
    try:
        find_column(text_field, schema, "")
    except UserError:
        return _table_without(text_field, column_paths(schema))
    return None


def _json_without(text_field: str, data: bytes) -> FileKind | None:
    """Return the kind of JSON in which no record has the field for the text, or None if one has it. See `FileKind`."""
    if len(data) > LARGEST_JSON:
        return None
    check_json_values(data, max_values=MAX_VALUES)
    value = json.loads(data.decode("utf-8-sig"), strict=False, parse_int=float)
    records = value if isinstance(value, list) else [value]
    if not records or any(_has_field(record, text_field) for record in records) or _are_texts(records):
        return None
    fields = dict.fromkeys(field for record in records[:MAX_NAMED] if isinstance(record, dict) for field in record)
    return FileKind(
        f"JSON {'array' if isinstance(value, list) else 'object'} without a field {text_field}", advice=_field_advice(fields)
    )


def _are_texts(records: list[Any]) -> bool:
    """Return whether the elements of an array are texts, and not names such as those of languages or packages."""
    n_texts = sum(len(record.split()) >= FEWEST_WORDS or _is_spaceless(record) for record in records if isinstance(record, str))
    return all(isinstance(record, str) for record in records) and n_texts >= len(records) / 2


def _is_spaceless(text: str) -> bool:
    """Return whether a text without spaces has enough Chinese or Japanese characters for a sentence."""
    return sum(character >= FIRST_IDEOGRAPHIC for character in text) >= FEWEST_IDEOGRAPHS


def _has_field(record: Any, text_field: str) -> bool:
    try:
        find_field(record, text_field)
    except InvalidRecordError:
        return False
    return True


def _table_without(text_field: str, columns: list[str]) -> FileKind:
    return FileKind(f"table without a column {text_field}", advice=_field_advice(dict.fromkeys(columns)))


def _field_advice(fields: dict[str, None]) -> str:
    """Return advice to choose among the fields that exist."""
    return f"Set text_field= to the field that contains the text: {', '.join(fields)[:300]}." if fields else ""
