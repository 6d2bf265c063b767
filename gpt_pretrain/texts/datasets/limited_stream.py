"""Limit what the package datasets reads from a compressed file: its bytes, and its records, which take time."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from gpt_pretrain.errors import UserError
from gpt_pretrain.texts.containers.decompression import MAX_EXPANSION, RECORD
from gpt_pretrain.texts.documents import MARKER


class LimitedStream(io.RawIOBase):
    """A decompressed file that cannot be read beyond a limit.

    Args:
        stream: The decompressed file.
        limit: The largest size in bytes that its archive explains. Records, which cost time, have RECORD bytes at least.
    """

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream, self.limit = stream, limit
        self._n_records = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.stream.read(len(buffer))
        if self.stream.tell() > self.limit:
            raise UserError(
                f"A compressed file of this dataset expands to more than {MAX_EXPANSION} times its size. If that is expected, "
                "decompress it first, and give the file as an input."
            )
        # A record is a line or an object, and may have a marker for each of its documents.
        self._n_records += sum(content.count(begin) for begin in (b"\n", b"\r", b"{", MARKER))
        if RECORD * self._n_records > self.limit:
            raise UserError(
                "A compressed file of this dataset has far more records than its size explains. If that is expected, "
                "decompress it first, and give the file as an input."
            )
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END or offset > self.limit:  # All of it would be decompressed.
            raise io.UnsupportedOperation("a compressed file has no known end")
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def close(self) -> None:
        self.stream.close()
        super().close()
