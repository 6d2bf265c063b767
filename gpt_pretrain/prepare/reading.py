"""Files to items, in order, from any place on; one process reads for all workers."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gpt_pretrain.prepare.items import BATCH, DAMAGED_ARCHIVE, Item, ReadPosition
from gpt_pretrain.prepare.sources import InputFile, check_unchanged
from gpt_pretrain.prepare.streams import DamagedArchive, blocks
from gpt_pretrain.prepare.stretches import Cursor, documents, lines


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        text_field: where a record of JSON or of a table has its text.
        separator: what stands between the documents of a text file; None: each file is one.
    """

    text_field: str
    separator: str | None


def read(sources: Sequence[InputFile], reading: Reading, *, start: ReadPosition) -> Iterator[Item]:
    """All that stands in files from a place on.

    Raises:
        UserError: when a file is no longer what it was when the work was planned, or a package is missing.
        OSError: when one cannot be read.
    """
    behind = sum(source.size for source in sources[: start.file])
    for number in range(start.file, len(sources)):
        source = sources[number]
        check_unchanged([source])
        yield from _read_one(source, reading, start if number == start.file else ReadPosition(number), behind)
        behind += source.size
        check_unchanged([source])


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in lists that hold about BATCH bytes of text each."""
    waiting: list[Item] = []
    size = 0
    for item in items:
        waiting.append(item)
        size += item.size
        if size >= BATCH:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def _read_one(source: InputFile, reading: Reading, place: ReadPosition, behind: int) -> Iterator[Item]:
    if source.form == "parquet":
        from gpt_pretrain.prepare.tables import read_parquet

        yield from read_parquet(source, reading.text_field, place, behind)
        return
    with open(source.path, "rb") as stream:
        cursor = Cursor(source.path, place, read=lambda: behind + stream.tell())
        content = _without_mark(blocks(source, stream, start=place.offset), cursor)
        try:
            if source.form == "lines":
                yield from lines(content, cursor)
            else:
                yield from documents(content, cursor, reading.separator)
        except DamagedArchive as error:
            yield cursor.bad(DAMAGED_ARCHIVE, str(error))


def _without_mark(content: Iterator[bytes], cursor: Cursor) -> Iterator[bytes]:
    """A file's content without the byte order mark at its start, which is no text."""
    if cursor.offset == 0 and (first := next(content, b"")):
        mark = codecs.BOM_UTF8 if first.startswith(codecs.BOM_UTF8) else b""
        cursor.offset = len(mark)
        yield first.removeprefix(mark)
    yield from content
