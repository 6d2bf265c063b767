"""Open the contents of a file: the file itself, its decompressed bytes, or the members of an archive.

An archive may contain compressed files and further archives. Nothing is unpacked to the disk, except for a table or a zip archive
inside of another file: neither can be read as a stream, so it gets a temporary copy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import BinaryIO

from gpt_pretrain.system.recognition.encodings import to_utf8
from gpt_pretrain.system.recognition.file_kinds import COMPRESSED, EMPTY, PARQUET, PLAIN, FileKind
from gpt_pretrain.system.recognition.file_recognition import content_name, recognize
from gpt_pretrain.texts.containers.archives import MANY_FILES, MEMBER, is_hidden, read_tar, read_zip
from gpt_pretrain.texts.containers.blocks import peek, read_stream
from gpt_pretrain.texts.containers.decompression import (
    ContentLimit,
    DamagedArchiveError,
    NothingToReadError,
    decompress,
    drop_bytes,
)
from gpt_pretrain.texts.left_out import LeftOut
from gpt_pretrain.texts.records.missing_text import find_missing_column, find_missing_text

LONGEST_LABEL = 500  # characters of a member's name; each rejected record repeats the name
MAX_LAYERS = 6  # archives and compressed files inside of one another; a .tar.xz of .tar.xz files has four


@dataclass(frozen=True)
class Content:
    """The bytes that documents are read from.

    Args:
        name: Path of the file and, inside of an archive, the member's name.
        kind: Its kind.
        bytes_from_start: Its bytes, which can be read once.
        limit: Limits what the whole file expands to.
        stream: The same bytes as a seekable file, if there is one.
    """

    name: str
    kind: FileKind
    bytes_from_start: Iterator[bytes]
    limit: ContentLimit
    stream: BinaryIO | None = None

    def blocks(self, start: int = 0) -> Iterator[bytes]:
        """Yield the content from an offset on. Text in another encoding is yielded as UTF-8, and offsets count its bytes.

        Raises:
            DamagedArchiveError: If an archive, or a text in UTF-16 or UTF-32, is damaged. Everything before is yielded first.
        """
        if self.kind.encoding.name != "utf-8":
            return drop_bytes(_transcode(self.bytes_from_start, self.kind.encoding.name), start)
        if start and self.stream is not None:
            return read_stream(self.stream, start)
        return drop_bytes(self.bytes_from_start, start)

    @contextmanager
    def seekable(self, limit: ContentLimit) -> Iterator[BinaryIO]:
        """Open the content as a seekable file. Inside of another file, this is a temporary copy.

        Args:
            limit: Limits the size of the copy.
        """
        if self.stream is not None:
            yield self.stream
            return
        with tempfile.TemporaryFile() as copy:
            for block in limit.apply(self.bytes_from_start):
                copy.write(block)
            copy.seek(0)
            yield copy


def open_contents(
    name: str, stream: BinaryIO, *, size: int, left_out: LeftOut, as_text: bool = False, text_field: str | None = None
) -> Iterator[Content]:
    """Yield the contents of a file in order. A content is skipped if it has not been read when the next is asked for.

    Args:
        name: Path of the file.
        stream: The open file. Its position shows how much of it has been read.
        size: Bytes of the file, which limit what it may expand to.
        left_out: Collects the members of archives that are not text.
        as_text: See `recognize`.
        text_field: Members that are JSON or tables without this field are left out. None keeps all.

    Raises:
        DamagedArchiveError: If an archive is damaged, contains nothing that can be read, or expands too far.
    """
    opener = _Opener(size, ContentLimit(size), left_out, as_text, text_field)
    is_empty = True
    for content in opener.contents(name, name, read_stream(stream), 0, stream=stream):
        yield content
        is_empty = False
    if is_empty:
        raise NothingToReadError(f"it contains no file that can be read{left_out.described()}{left_out.advice()}")


@dataclass(frozen=True)
class _Opener:
    """Opens a file layer by layer: decompresses it, and opens the members of archives in turn.

    Args:
        limit: Limits what all layers together expand to. The other arguments are those of `open_contents`.
    """

    size: int
    limit: ContentLimit
    left_out: LeftOut
    as_text: bool
    text_field: str | None

    def contents(
        self,
        name: str,
        label: str,
        blocks: Iterator[bytes],
        layers: int,
        *,
        stream: BinaryIO | None = None,
        is_member: bool = False,
    ) -> Iterator[Content]:
        """Yield the contents of a file, or of a member of an archive.

        Args:
            name: The name by which its kind is recognized.
            label: The name for messages: the path of the file, followed by the names of members.
            layers: The number of archives and compressed files around it.
            stream: The file itself, if it is not inside of another one.
        """
        head, blocks = peek(blocks)
        kind = recognize(name, head, as_text=self.as_text)
        content = Content(label, kind, blocks, self.limit, stream)
        if layers > MAX_LAYERS:
            raise DamagedArchiveError(f"its archives are nested more than {MAX_LAYERS} levels deep")
        if kind.form in COMPRESSED:
            inner = decompress(blocks, kind.form, self.limit, layers=layers + 1)
            yield from self.contents(content_name(name), label, inner, layers + 1, is_member=is_member)
        elif kind.form == "tar":
            yield from self._members(label, read_tar(blocks), layers)
        elif kind.form == "zip":
            with content.seekable(self.limit) as archive:
                yield from self._members(label, read_zip(archive, size=self.size, limit=self.limit), layers)
        elif kind.form == EMPTY:
            yield Content(label, PLAIN, blocks, self.limit)
        elif kind.is_read and is_member and self.text_field is not None:
            self.left_out.warnings.add(kind, label)
            yield from self._with_text(name, content, self.text_field)
        elif kind.is_read:
            yield content
        else:
            self.left_out.add(kind, label)

    def _members(self, label: str, found: Iterable[tuple[str, Iterator[bytes]]], layers: int) -> Iterator[Content]:
        for name, blocks in found:
            self.limit.take(MEMBER, MANY_FILES)
            if not is_hidden(name):
                yield from self.contents(name, f"{label}/{_shorten(name)}", blocks, layers + 1, is_member=True)

    def _with_text(self, name: str, content: Content, text_field: str) -> Iterator[Content]:
        """Yield a member of an archive, unless it is JSON or a table without the field for the text."""
        limit = ContentLimit(self.size)  # for the temporary copy
        with content.seekable(limit) if content.kind.form == PARQUET else nullcontext() as copy:
            if copy is not None:
                missing, content = find_missing_column(copy, text_field), replace(content, stream=copy)
            else:
                missing, blocks = find_missing_text(name, content.kind, content.bytes_from_start, text_field)
                content = replace(content, bytes_from_start=blocks)
            if missing is None:
                yield content
            else:
                self.left_out.add(missing, content.name)


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL // 2]}...{name[-LONGEST_LABEL // 2 :]}"


def _transcode(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    try:
        yield from to_utf8(blocks, encoding)
    except UnicodeDecodeError as error:
        raise DamagedArchiveError(
            f"it begins like {encoding.upper()}, but is not valid {encoding.upper()} ({error.reason})"
        ) from error
