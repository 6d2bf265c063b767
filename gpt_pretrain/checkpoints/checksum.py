"""A checksum of a whole file, kept in the comment at the end of the zip archive that `torch.save` writes."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import BinaryIO

PREFIX = b"gpt-pretrain crc32 "
LENGTH = len(PREFIX) + 8  # eight hexadecimal digits: the CRC-32 of everything before the comment


def add_checksum(path: Path) -> None:
    """Append a checksum to a PyTorch file as the comment of its archive, which PyTorch leaves empty.

    A zip archive ends with its comment, preceded by two bytes with the length of the comment.
    """
    length = LENGTH.to_bytes(2, "little")
    with open(path, "r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        end = stream.tell()
        assert stream.read() == b"\0\0", f"{path} has a comment already"
        found = zlib.crc32(length, _crc32(stream, end))
        stream.seek(end)
        stream.write(length + PREFIX + f"{found:08x}".encode())


def has_checksum(path: Path) -> bool:
    """Return whether a file carries a checksum."""
    return _comment(path).startswith(PREFIX)


def same_checksum(a: Path, b: Path) -> bool:
    """Return whether two files carry the same checksum."""
    return _comment(a) == _comment(b)


def checksum_error(path: Path) -> str | None:
    """Return the reason why a file does not match its checksum, or None if it matches or carries none."""
    if not has_checksum(path):
        return None
    with open(path, "rb") as stream:
        found = f"{_crc32(stream, os.fstat(stream.fileno()).st_size - LENGTH):08x}"
        stored = stream.read()[len(PREFIX) :].decode("ascii", errors="replace")
    return None if found == stored else f"its checksum is {found}, not the stored {stored}"


def _comment(path: Path) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - LENGTH))
        return stream.read()


def _crc32(stream: BinaryIO, end: int) -> int:
    """Return the CRC-32 of a file's first `end` bytes, and leave the stream there."""
    found = 0
    stream.seek(0)
    while (left := end - stream.tell()) > 0:
        found = zlib.crc32(stream.read(min(left, 1 << 22)), found)
    return found
