"""A folder of files that can be fetched again, kept below a size limit and shared by several processes."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.files import SCRATCH_SUFFIX, replacing
from gpt_pretrain.system.locks import try_lock

CLEANUP_INTERVAL = 1 / 20  # share of the size limit that a process writes between two checks of the size
CLEANUP_TARGET = 0.9  # share of the size limit that remains after files have been deleted
MAX_SCRATCH_AGE = 3600.0  # seconds after which an unfinished file is assumed to be from a killed process


class ChecksumError(OSError):
    """Raised when fetched content has the wrong checksum."""


class DiskCache:
    """Files by path. The least recently read files are deleted when the cache exceeds its size limit.

    Args:
        path: The folder.
        max_bytes: Size limit of all files in it. Files written between two checks of the size may exceed it.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._written = max_bytes  # makes the first write check the size
        self._lock = threading.Lock()

    def read(self, path: Path) -> bytes | None:
        """Return the content of a file, or None if it is not in the cache."""
        try:
            with open(path, "rb") as stream:
                data = stream.read()
            os.utime(path)
        except OSError:
            return None
        return data

    def write(self, path: Path, data: bytes) -> None:
        """Store a file.

        Raises:
            UserError: If the folder cannot be written.
        """
        self.write_pieces(path, [data], n_bytes=len(data))

    def write_pieces(self, path: Path, pieces: Iterable[bytes], *, n_bytes: int, sha256: str | None = None) -> None:
        """Store a file that arrives in pieces once it is complete.

        Raises:
            ChecksumError: If the content has another checksum.
            OSError: If the content has another length, or the folder is deleted at the same time.
            UserError: If the folder cannot be written.
        """
        self._make_room(n_bytes)
        digest, length = hashlib.sha256(), 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(path.parent, error) from error
        with replacing(path, durable=False) as scratch:
            try:
                stream = open(scratch, "wb")  # noqa: SIM115
            except FileNotFoundError:
                raise  # another thread has just deleted the folder of a damaged file
            except OSError as error:
                raise _not_writable(path.parent, error) from error
            with stream:
                for piece in pieces:
                    stream.write(piece)
                    length += len(piece)
                    if sha256 is not None:
                        digest.update(piece)
            if length != n_bytes:
                raise OSError(f"received {length:,} bytes instead of {n_bytes:,}")
            if sha256 not in (None, digest.hexdigest()):
                raise ChecksumError("the content has another checksum")

    @contextmanager
    def try_lock(self, path: Path) -> Iterator[bool]:
        """Yield whether this process holds the lock of a file, so that only one process fetches it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with try_lock(path.with_name(f".{path.name}.lock")) as held:
            yield held

    def _make_room(self, n_bytes: int) -> None:
        """Delete the least recently read files if the cache is full. Most calls skip the check."""
        with self._lock:
            self._written += n_bytes
            if self._written < CLEANUP_INTERVAL * self.max_bytes:
                return
            self._written = 0
        files = self._list_files()
        total = sum(size for _, size, _ in files) + n_bytes
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(files):
            if total <= CLEANUP_TARGET * self.max_bytes:
                break
            with suppress(OSError):  # another process may have deleted it
                os.unlink(path)
                total -= size

    def _list_files(self) -> list[tuple[float, int, str]]:
        """Return time, size and path of each complete file, and delete what killed processes have left behind."""
        files = []
        for entry in _walk(self.path):
            with suppress(OSError):  # another process may have deleted it
                status = entry.stat()
                if not entry.name.startswith("."):
                    files.append((status.st_mtime, status.st_size, entry.path))
                elif entry.name.endswith(SCRATCH_SUFFIX) and time.time() - status.st_mtime > MAX_SCRATCH_AGE:
                    os.unlink(entry.path)
        return files

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder} cannot be written: {error.strerror}. Choose another folder with data.cache_dir=FOLDER.")


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            else:
                yield entry
