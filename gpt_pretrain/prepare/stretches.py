"""The content of one file divided into lines or documents."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gpt_pretrain.prepare.encoding import split_point
from gpt_pretrain.prepare.items import LONGEST_RECORD, PART, Bad, Item, ReadPosition


class Cursor:
    """Where in a file reading is.

    Args:
        file: the file's name.
        place: where it begins.
        read: tells how many bytes of all files have been read so far.
    """

    def __init__(self, file: str, place: ReadPosition, *, read: Callable[[], int]) -> None:
        self.file = file
        self.offset, self.record, self.in_document = place.offset, place.record, place.in_document
        self._number, self._read = place.file, read

    def records(self, content: bytes | list[Any], *, size: int, count: int) -> Item:
        """The next records, of which there are `count`, `size` bytes or rows long."""
        first = self.record + 1
        self.offset, self.record = self.offset + size, self.record + count
        return self._item(first, content)

    def part(self, text: str, *, ends: bool, end: int | None = None) -> Item:
        """The next part of a document.

        Args:
            end: the offset behind it, if that is not where the text ends.
        """
        begins, first = not self.in_document, self.record + 1
        self.offset = self.offset + len(text.encode()) if end is None else end
        self.record, self.in_document = self.record + ends, not ends
        return self._item(first, text, begins=begins, ends=ends)

    def bad(self, reason: str, detail: str, *, size: int = 0) -> Item:
        """What is wrong with the next record, or the document that has been begun."""
        begins, self.in_document = not self.in_document, False
        self.offset, self.record = self.offset + size, self.record + 1
        return self._item(self.record, Bad(self.file, self.record, reason, detail), begins=begins)

    def _item(self, first: int, content: bytes | str | list[Any] | Bad, *, begins: bool = True, ends: bool = True) -> Item:
        after = ReadPosition(self._number, self.offset, self.record, self.in_document)
        return Item(self.file, first, content, after, self._read(), begins, ends)


def lines(content: Iterable[bytes], cursor: Cursor) -> Iterator[Item]:
    """Whole lines."""
    rest = bytearray()
    overlong = 0  # bytes of a line that is too long, so far
    for block in content:
        if overlong:
            end = block.find(b"\n") + 1
            overlong += end or len(block)
            if not end:
                continue
            yield _too_long(cursor, overlong)
            overlong, block = 0, block[end:]
        if end := block.rfind(b"\n") + 1:
            rest += block[:end]
            yield _lines(cursor, bytes(rest))
            rest = bytearray(block[end:])
        else:
            rest += block
        if len(rest) > LONGEST_RECORD:
            overlong, rest = len(rest), bytearray()
    if overlong:
        yield _too_long(cursor, overlong)
    elif rest:
        yield _lines(cursor, bytes(rest))


def documents(content: Iterable[bytes], cursor: Cursor, separator: str | None) -> Iterator[Item]:
    """The documents between separators, the long ones in the parts that `encoding.parts` would make of them."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, broken, behind = "", "", cursor.offset
    for data, skipped, ends in _divided(content, separator, in_document=cursor.in_document):
        if not broken:
            try:
                text += decoder.decode(data, ends)
            except UnicodeDecodeError as error:
                broken = f"{error.reason} near byte {behind + error.start}"
        behind += len(data) + skipped
        while not broken and len(text) > PART:
            place = split_point(text)
            yield cursor.part(text[:place], ends=False)
            text = text[place:]
        if ends:
            yield (
                cursor.bad("not UTF-8", broken, size=behind - cursor.offset)
                if broken
                else cursor.part(text, ends=True, end=behind)
            )
            decoder.reset()
            text, broken = "", ""


def _divided(content: Iterable[bytes], separator: str | None, *, in_document: bool) -> Iterator[tuple[bytes, int, bool]]:
    """Stretches of documents, the bytes that stand between each and the next, and whether the document ends there."""
    mark = (separator or "").encode()
    rest, begun, any_end = b"", in_document, False
    for block in content:
        *whole, rest = (rest + block).split(mark) if mark else [rest + block]
        for data in whole:
            yield data, len(mark), True
        begun, any_end = begun and not whole, any_end or bool(whole)
        kept = len(mark) - 1 if mark else 0  # bytes that may be the beginning of a separator
        if len(rest) > kept:
            yield rest[: len(rest) - kept], 0, False
            rest, begun = rest[len(rest) - kept :], True
    if rest or begun or not any_end:  # a separator at the end of a file has no document behind it
        yield rest, 0, True


def _lines(cursor: Cursor, data: bytes) -> Item:
    return cursor.records(data, size=len(data), count=data.count(b"\n") + (not data.endswith(b"\n")))


def _too_long(cursor: Cursor, size: int) -> Item:
    return cursor.bad("too long", f"more than {LONGEST_RECORD:,} bytes", size=size)
