"""Recognize files on disk, also what is in a compressed file, before they are read."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.encodings import to_utf8
from gpt_pretrain.system.file_kinds import COMPRESSED, HEAD, LINES, OBJECTS, ROWS, FileKind
from gpt_pretrain.system.file_recognition import content_name, recognize
from gpt_pretrain.system.reading import DamagedFileError, open_regular, parse_json_value, read_bytes
from gpt_pretrain.texts.contents import peek, read_stream
from gpt_pretrain.texts.decompression import DamagedArchiveError, decompress
from gpt_pretrain.texts.records import InvalidRecordError, find_field
from gpt_pretrain.texts.rows import read_columns

LARGEST_OBJECT = 1 << 22  # Bytes of a JSON object that is looked into.
MAX_LAYERS = 3  # Compressed files inside of one another that are looked into.


def recognize_file(path: str, *, as_text: bool = False) -> FileKind:
    """Return the kind of a file. Of a compressed file whose content is not read, return the kind of that.

    Args:
        as_text: See `recognize`.

    Raises:
        OSError: If there is no such file or it cannot be read.
    """
    name = path
    with open_regular(Path(path)) as stream:
        head, blocks = peek(iter(lambda: stream.read(HEAD), b""))
        kind = outer = recognize(name, head, as_text=as_text)
        for _ in range(MAX_LAYERS):
            if kind.form not in COMPRESSED:
                break
            try:
                name, (head, blocks) = content_name(name), peek(decompress(blocks, kind.form))
            except UserError:  # A package is missing, which the reader says.
                return outer
            if not head:
                return outer
            kind = recognize(name, head, as_text=as_text)
    return replace(outer, warning=kind.warning, content=kind.form) if kind.is_read else kind


def is_record_without_text(path: str, kind: FileKind, text_field: str) -> bool:
    """Return whether a file is a single JSON object without the field, such as settings or a notebook beside texts."""
    is_lines = path.lower().endswith((".jsonl", ".ndjson", ".jsonlines"))
    if kind.form not in (LINES, OBJECTS) or is_lines or os.path.getsize(path) > LARGEST_OBJECT:
        return False
    try:
        value = parse_json_value(read_bytes(Path(path)))
        find_field(value, text_field)
    except (DamagedFileError, OSError):
        return False
    except InvalidRecordError:
        return isinstance(value, dict)
    return False


def is_table_without_text(path: str, kind: FileKind, text_field: str) -> bool:
    """Return whether a file is a table in CSV without the column, such as a list of the texts beside it."""
    if kind.form != ROWS:
        return False
    try:
        with open_regular(Path(path)) as stream:
            return text_field not in read_columns(to_utf8(read_stream(stream), kind.encoding.name))
    except (OSError, UnicodeDecodeError, DamagedArchiveError):
        return False
