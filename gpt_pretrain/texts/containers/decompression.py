"""Decompress files of any size with a few megabytes of memory, up to a limit that depends on the size of the file."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

from gpt_pretrain.texts.extras import missing_extra

BLOCK = 1 << 20  # bytes read at a time from a plain file, and yielded at a time from any file
# The content of an archive may have ALWAYS_READ bytes, or MAX_EXPANSION times the size of the archive. Text expands at most a
# hundredfold.
ALWAYS_READ, MAX_EXPANSION = 1 << 28, 250
# Bytes read at a time from an archive. This is little, since four bytes may expand to 128 KiB, zstandard's largest block.
COMPRESSED_BLOCK = 1 << 12
# A window is the part of the content that a decompressor keeps in memory. It may have ALWAYS_KEPT bytes, as 7-Zip's largest ones
# have, or MAX_KEPT times the size of the archive. Archives of zstd often state MAX_WINDOW, whatever they contain. The system
# provides only the memory that the content touches, so such an archive is read until its content exceeds the limit.
ALWAYS_KEPT, MAX_KEPT, MAX_WINDOW = 300_000_000, 32, 1 << 31
# To limit time as well as memory, each compressed part of a file counts as PART bytes of its content. Inside of another archive,
# an empty part takes nearly no space.
PART = 1 << 12
# So does each record of a content: one byte may be a record, which takes as much time as a hundred bytes of text.
RECORD = 100
FRAME_HEADER = 18  # the most bytes at the beginning of a frame of zstd that state its window
EXPANDED = f"its content is more than {MAX_EXPANSION} times as large as the archive; if that is expected, decompress it first"
MANY_PARTS = "it has far more compressed parts than its size explains; if that is expected, decompress it first"
MANY_RECORDS = "it has far more records than its size explains; if that is expected, decompress it first"
LARGE_WINDOW = "decompressing it takes far more memory than its size explains; if that is expected, decompress it first"
MAGIC: dict[str, bytes | tuple[bytes, ...]] = {
    "gz": b"\x1f\x8b",
    "bz2": b"BZh",
    "xz": (b"\xfd7zXZ\0", b"\x5d\0"),
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + kind]) + b"\x2a\x4d\x18" for kind in range(16))),
}
DAMAGE = (zlib.error, lzma.LZMAError, EOFError, OSError)


class DamagedArchiveError(Exception):
    """Raised for an archive that is truncated or cannot be decompressed."""


class PackedFileError(DamagedArchiveError):
    """Raised for an archive that is packed in a way that is not supported, such as encryption or a rare method."""


class NothingToReadError(DamagedArchiveError):
    """Raised for an archive that contains no text."""


class Decompressor(Protocol):
    """The common interface of decompressors. `decompress` returns the content, or its next bytes if there is a limit."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class ContentLimit:
    """Counts the bytes that a file's archives expand to, so that a small file does not fill the disk or take forever.

    Args:
        size: Size of the file in bytes.

    Attributes:
        window: The most bytes of content that a decompressor may keep in memory.
    """

    def __init__(self, size: int) -> None:
        self._left, self._exceeded_by = max_content(size), ""
        self.window = min(max(ALWAYS_KEPT, MAX_KEPT * size), MAX_WINDOW)

    def extend(self, size: int) -> None:
        """Allow as much more as another file of this size explains."""
        self._left += MAX_EXPANSION * size

    def apply(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield blocks as long as the limit allows.

        Raises:
            DamagedArchiveError: If there are more.
        """
        for block in blocks:
            self.take(len(block), EXPANDED)
            yield block

    def take(self, n_bytes: int, problem: str) -> None:
        """Count bytes.

        Args:
            problem: The message of the error, unless the limit was exceeded before: then the first message is repeated.

        Raises:
            DamagedArchiveError: If the limit is exceeded.
        """
        self._left -= n_bytes
        if self._left < 0:
            self._exceeded_by = self._exceeded_by or problem
            raise DamagedArchiveError(self._exceeded_by)


def max_content(size: int) -> int:
    """Return how many bytes a compressed file of this size may expand to."""
    return max(ALWAYS_READ, MAX_EXPANSION * size)


def decompress(blocks: Iterable[bytes], form: str, limit: ContentLimit, *, layers: int = 1) -> Iterator[bytes]:
    """Yield the content of a compressed file in blocks of about BLOCK bytes. The file may be several files joined together.

    Args:
        blocks: The bytes of the compressed file.
        form: gz, bz2, xz or zst.
        limit: Limits what the file expands to, with all files around it.
        layers: The number of these files and itself. All of them keep content in memory at the same time.

    Raises:
        DamagedArchiveError: If the file is truncated or damaged, or expands too far. Everything before is yielded first.
        PackedFileError: If too much of its content would have to be kept.
    """
    yield from limit.apply(_join_blocks(_decompress(_split_blocks(blocks), form, limit, limit.window // layers)))


def drop_bytes(blocks: Iterable[bytes], count: int) -> Iterator[bytes]:
    """Drop the first `count` bytes."""
    for block in blocks:
        if count < len(block):
            yield block[count:] if count else block
        count = max(count - len(block), 0)


def _split_blocks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        for start in range(0, len(block), COMPRESSED_BLOCK):
            yield block[start : start + COMPRESSED_BLOCK]


def _join_blocks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Join small blocks until they reach BLOCK bytes. If an error follows, the bytes before it are yielded first."""
    waiting, size = list[bytes](), 0
    try:
        for block in blocks:
            waiting.append(block)
            size += len(block)
            if size >= BLOCK:
                yield b"".join(waiting)
                waiting, size = [], 0
    except DamagedArchiveError:
        if waiting:
            yield b"".join(waiting)
        raise
    if waiting:
        yield b"".join(waiting)


def _decompress(blocks: Iterable[bytes], form: str, limit: ContentLimit, window: int) -> Iterator[bytes]:
    member: Decompressor | None = None
    make, n_members, is_new = _decompressors(form, window), 0, False
    for data in blocks:
        while data:
            if member is None:
                # Tape drives pad gzip archives with zeros, and so does xz itself.
                data = data.lstrip(b"\0") if n_members and form != "zst" else data
                if not data:
                    break
                limit.take(PART, MANY_PARTS)
                member, n_members, is_new = make(), n_members + 1, True
            try:
                yield from _contents(member, data, form)
            except DamagedArchiveError as error:
                if n_members > 1 and is_new and not data.startswith(MAGIC[form]):
                    raise DamagedArchiveError(f"something else follows its compressed data ({error})") from error
                raise
            data = member.unused_data if member.eof else b""
            member, is_new = None if member.eof else member, False
    if member is not None:
        raise DamagedArchiveError("the archive is truncated")


def _contents(member: Decompressor, data: bytes, form: str) -> Iterator[bytes]:
    """Decompress a few bytes, and yield the result in blocks of at most BLOCK bytes.

    Raises:
        DamagedArchiveError: If the bytes are damaged.
    """
    try:
        if isinstance(member, bz2.BZ2Decompressor | lzma.LZMADecompressor):
            # Without a limit, forty bytes could expand to 46 MB at once.
            yield member.decompress(data, BLOCK)
            while not member.eof and not member.needs_input:
                yield member.decompress(b"", BLOCK)
            return
        content = member.decompress(data)
    except PackedFileError:
        raise
    except DAMAGE as error:
        if isinstance(error, lzma.LZMAError) and "emory" in str(error):
            raise PackedFileError(LARGE_WINDOW) from error
        raise DamagedArchiveError(str(error)) from error
    except Exception as error:  # zstandard has an exception of its own, which cannot be named if it is not installed.
        if form != "zst":
            raise
        if "ictionary" in str(error):
            raise PackedFileError("it was compressed with a dictionary; decompress it first: zstd -d -D DICTIONARY") from error
        raise DamagedArchiveError(str(error)) from error
    # A few bytes may expand to 128 MB. Readers would copy such a block once for each part that they take from it.
    for start in range(0, len(content), BLOCK):
        yield content[start : start + BLOCK]


def _decompressors(form: str, window: int) -> Callable[[], Decompressor]:
    """Return a function that makes a decompressor. Each compressed part of a file needs a new one."""
    if form == "gz":
        return partial(zlib.decompressobj, wbits=31)
    if form == "bz2":
        return bz2.BZ2Decompressor
    if form == "xz":
        return partial(lzma.LZMADecompressor, memlimit=window)
    return partial(_Frame, _import_zstandard().ZstdDecompressor(max_window_size=MAX_WINDOW), window)


class _Frame:
    """Decompresses one frame of zstd.

    Args:
        library: The decompressor of the package zstandard.
        window: The most bytes of content that may be kept in memory.
    """

    def __init__(self, library: Any, window: int) -> None:
        self._frame: Decompressor = library.decompressobj()
        self._window, self._size, self._header = window, 0, b""

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data

    def decompress(self, data: bytes, /) -> bytes:
        """Return the content of the next bytes.

        Raises:
            PackedFileError: If the frame keeps more than its window allows.
        """
        self._header += data[: FRAME_HEADER - len(self._header)]
        content = self._frame.decompress(data)
        self._size += len(content)
        if self._size > self._window and _import_zstandard().get_frame_parameters(self._header).window_size > self._window:
            raise PackedFileError(LARGE_WINDOW)
        return content


def _import_zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise missing_extra("zstandard") from error
    return zstandard
