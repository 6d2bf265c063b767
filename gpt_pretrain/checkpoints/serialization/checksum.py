"""Store a checksum of a whole file in the comment at the end of the zip archive that `torch.save` writes."""

from __future__ import annotations

import os
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import find_checkpoints

PREFIX = b"gpt-pretrain crc32 "
LENGTH = len(PREFIX) + 8  # eight hexadecimal digits: the CRC-32 of everything before the comment
PART_BYTES = 1 << 22
# After each part, a thread may wait 5 ms for its next turn. While PyTorch is imported, small parts would mostly wait.
LARGE_PART_BYTES = 1 << 26


class SummedStream:
    """A file for `torch.save` that computes the checksum while it is written, so that nothing has to be read again.

    Args:
        stream: The file, open for writing at its beginning.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self._size = self._sum = 0
        self._held = b""  # the last two bytes, with the length of the comment, which are not in the sum yet

    def write(self, data: bytes | memoryview) -> int:
        self.stream.write(data)
        view = memoryview(data).cast("B")
        self._size += len(view)
        if len(view) < 2:
            view = memoryview(self._held + bytes(view))
        else:
            self._sum = zlib.crc32(self._held, self._sum)
        self._sum, self._held = zlib.crc32(view[:-2], self._sum), bytes(view[-2:])
        return len(data)

    def flush(self) -> None:
        self.stream.flush()

    def finish(self) -> None:
        """Write the checksum as the comment of the complete archive, which PyTorch leaves empty.

        A zip archive ends with its comment, preceded by two bytes with the length of the comment.

        Raises:
            OSError: If the file is shorter than what was written to it.
        """
        assert self._held == b"\0\0", "the archive has a comment already"
        length = LENGTH.to_bytes(2, "little")
        if (end := self.stream.seek(-2, os.SEEK_END)) != self._size - 2:
            raise OSError(f"the written file cannot be read back: it has {end + 2:,} of {self._size:,} bytes")
        self.stream.write(length + PREFIX + f"{zlib.crc32(length, self._sum):08x}".encode())


def has_checksum(path: Path) -> bool:
    """Return whether a file carries a checksum."""
    return _comment(path).startswith(PREFIX)


def same_checksum(a: Path, b: Path) -> bool:
    """Return whether two files carry the same checksum."""
    return _comment(a) == _comment(b)


class _EarlyCheck(threading.Thread):
    """Verifies the checksum of a file while the program does something else.

    Attributes:
        stamp: Values that show whether the file has been changed or replaced since.
        done: Whether `problem` is known. It stays False if the file could not be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)  # a program that ends early does not wait for it
        self.path = path
        self.stamp = _stamp(path)
        self.done = False
        self.problem: str | None = None

    def run(self) -> None:
        try:
            self.problem = _verify(self.path, part_bytes=LARGE_PART_BYTES)
            self.done = True
        except OSError:
            pass  # whoever asks for the result meets the error


_early_checks: dict[tuple[int, ...], _EarlyCheck] = {}  # by the stamps of their files, which may have several names


def check_early(name: str) -> None:
    """Begin to verify the checkpoint that a user names, since a second core is free while PyTorch is imported.

    A problem is reported later, when the checkpoint is opened.

    Args:
        name: A checkpoint, a run or "latest". Anything else is ignored.
    """
    with suppress(UserError, OSError, ValueError):
        for path in find_checkpoints(name)[:1]:
            check = _EarlyCheck(path)
            _early_checks[check.stamp] = check
            check.start()


def checksum_error(path: Path) -> str | None:
    """Return the reason why a file does not match its checksum, or None if it matches or carries none."""
    if (early := _early_checks.pop(_stamp(path), None)) is not None:
        early.join()
        if early.done and early.stamp == _stamp(path):
            return early.problem
    return _verify(path, part_bytes=PART_BYTES)


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _verify(path: Path, *, part_bytes: int) -> str | None:
    if not has_checksum(path):
        return None
    with open(path, "rb") as stream:
        found = f"{_crc32(stream, os.fstat(stream.fileno()).st_size - LENGTH, part_bytes=part_bytes):08x}"
        stored = stream.read()[len(PREFIX) :].decode("ascii", errors="replace")
    return None if found == stored else f"its checksum is {found}, not the stored {stored}"


def _comment(path: Path) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - LENGTH))
        return stream.read()


def _crc32(stream: BinaryIO, end: int, *, part_bytes: int) -> int:
    """Return the CRC-32 of a file's first `end` bytes, and leave the stream there."""
    found = 0
    stream.seek(0)
    part = memoryview(bytearray(max(0, min(part_bytes, end))))
    while (left := end - stream.tell()) > 0:
        if not (count := stream.readinto(part[:left])):  # type: ignore[attr-defined]
            break  # the file has become shorter
        found = zlib.crc32(part[:count], found)
    return found
