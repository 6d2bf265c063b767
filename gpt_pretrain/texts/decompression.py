"""Read the bytes of plain and compressed files from any offset, with at most a few megabytes in memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Protocol

from gpt_pretrain.texts.inputs import InputFile, missing_extra

BLOCK = 1 << 20  # Bytes read at a time from a plain file, and yielded at a time from any file.
# The content of an archive may be this many bytes, or this many times as large as the archive; text is at most a hundred times.
ALWAYS_READ, MAX_EXPANSION = 1 << 28, 250
# Bytes read at a time from an archive. Four bytes may expand to 128 KiB, the largest block of the zstandard format.
COMPRESSED_BLOCK = 1 << 12


class DamagedArchiveError(Exception):
    """Raised for an archive that is truncated or cannot be decompressed."""


class Decompressor(Protocol):
    """The common interface of the decompressors of zlib and zstandard."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def read_blocks(file: InputFile, stream: BinaryIO, *, start: int = 0) -> Iterator[bytes]:
    """Yield the content of a file from an offset on, in blocks of about BLOCK bytes.

    Args:
        stream: The opened file. Its position shows how much of the file has been read.
        start: Offset in the decompressed content. Everything before it is decompressed and dropped.

    Raises:
        DamagedArchiveError: If an archive is truncated or cannot be decompressed, after everything before the damage.
        OSError: If the file cannot be read.
    """
    if file.archive is None:
        stream.seek(start)
        while block := stream.read(BLOCK):
            yield block
        return
    yield from _join_blocks(drop_bytes(_limit(_decompress(stream, file.archive), file.size), start))


def max_content(size: int) -> int:
    """Return the largest believable content of a compressed file of this size, both in bytes."""
    return max(ALWAYS_READ, MAX_EXPANSION * size)


def _limit(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield blocks up to the largest believable content, so that a small archive does not fill the disk.

    Raises:
        DamagedArchiveError: If there is more.
    """
    left = max_content(size)
    for block in blocks:
        left -= len(block)
        if left < 0:
            raise DamagedArchiveError(
                f"its content is more than {MAX_EXPANSION} times as large as the archive; decompress it first if that is right"
            )
        yield block


def drop_bytes(blocks: Iterable[bytes], count: int) -> Iterator[bytes]:
    """Drop the first `count` bytes."""
    for block in blocks:
        if count < len(block):
            yield block[count:]
        count = max(count - len(block), 0)


def _join_blocks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Join small blocks until they reach BLOCK bytes; the bytes before an error are yielded before it is raised."""
    waiting: list[bytes] = []
    try:
        for block in blocks:
            waiting.append(block)
            if sum(map(len, waiting)) >= BLOCK:
                yield b"".join(waiting)
                waiting = []
    except DamagedArchiveError:
        if waiting:
            yield b"".join(waiting)
        raise
    if waiting:
        yield b"".join(waiting)


def _decompress(stream: BinaryIO, archive: str) -> Iterator[bytes]:
    """Yield the content of an archive, which may consist of several concatenated archives."""
    zstandard = _import_zstandard() if archive == "zst" else None
    damage = zlib.error if zstandard is None else zstandard.ZstdError
    member: Decompressor | None = None
    while data := stream.read(COMPRESSED_BLOCK):
        while data:
            if member is None:
                data = data if zstandard else data.lstrip(b"\0")  # Tape drives pad gzip archives with zeros.
                if not data:
                    break
                member = zstandard.ZstdDecompressor().decompressobj() if zstandard else zlib.decompressobj(wbits=31)
            try:
                content = member.decompress(data)
            except damage as error:
                raise DamagedArchiveError(str(error)) from error
            # A few bytes may expand to 128 MB. Such a block would be copied once for each of its parts further on.
            for start in range(0, len(content), BLOCK):
                yield content[start : start + BLOCK]
            data = member.unused_data if member.eof else b""
            member = None if member.eof else member
    if member is not None:
        raise DamagedArchiveError("the archive is truncated")


def _import_zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise missing_extra("zstandard") from error
    return zstandard
