"""Recognize the kind of a file on the disk before it is read. Compressed files are looked into."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import open_regular
from gpt_pretrain.system.reading_cost import explained_by_own_size
from gpt_pretrain.system.recognition.file_kinds import ARRAY, COMPRESSED, HEAD, LINES, OBJECTS, PARQUET, ROWS, FileKind
from gpt_pretrain.system.recognition.file_recognition import content_name, recognize
from gpt_pretrain.texts.containers.blocks import peek
from gpt_pretrain.texts.containers.contents import open_contents
from gpt_pretrain.texts.containers.decompression import ContentLimit, DamagedArchiveError, decompress
from gpt_pretrain.texts.left_out import LeftOut
from gpt_pretrain.texts.records.missing_text import find_missing_column, find_missing_text

MAX_LAYERS = 3  # compressed files inside of one another that are looked into


@explained_by_own_size
def recognize_file(path: str, *, as_text: bool = False) -> FileKind:
    """Return the kind of a file. For a compressed file whose content is not read, return the kind of the content.

    Args:
        as_text: See `recognize`.

    Raises:
        OSError: If there is no such file or it cannot be read.
    """
    name = path
    with open_regular(Path(path)) as stream:
        limit = ContentLimit(os.fstat(stream.fileno()).st_size)
        head, blocks = peek(iter(lambda: stream.read(HEAD), b""))
        kind = outer = recognize(name, head, as_text=as_text)
        for layers in range(1, MAX_LAYERS + 1):
            if kind.form not in COMPRESSED:
                break
            try:
                name, (head, blocks) = content_name(name), peek(decompress(blocks, kind.form, limit, layers=layers))
            except UserError:  # The reader will say that a package is missing.
                return outer
            if not head:
                return outer
            kind = recognize(name, head, as_text=as_text)
    return replace(outer, warning=kind.warning, content=kind.form) if kind.is_read else kind


@explained_by_own_size
def recognize_without_text(path: str, kind: FileKind, text_field: str, *, as_text: bool = False) -> FileKind | None:
    """Return the kind of a file of JSON or a table that has no text, such as settings. Return None if it may have text.

    Args:
        kind: The kind of the file by its first bytes.
        as_text: See `recognize`.
    """
    form = kind.content or kind.form
    if form not in (LINES, ARRAY, OBJECTS, ROWS, PARQUET):
        return None
    try:
        with open_regular(Path(path)) as stream:
            size = os.path.getsize(path)
            contents = open_contents(path, stream, size=size, left_out=LeftOut(), as_text=as_text)
            content = next(contents)
            if form != PARQUET:
                name = content_name(path) if kind.content else path
                return find_missing_text(name, content.kind, content.bytes_from_start, text_field)[0]
            with content.seekable(ContentLimit(size)) as table:
                return find_missing_column(table, text_field)
    except (OSError, UserError, DamagedArchiveError):
        return None  # The reader says what is wrong with it.
