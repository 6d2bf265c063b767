"""A folder of files that can be had again, kept below a size; several processes share it."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.files import replacing
from gpt_pretrain.system.locks import try_lock

TIDY_AFTER = 1 / 20  # of the size, written by a process before it looks for what to give up
TIDY_TO = 0.9  # of the size, when something had to be given up
LEFT_BEHIND = 3600.0  # seconds after which an unfinished file is a killed process's


class ChecksumError(OSError):
    """What came is not what it should be."""


class CacheFolder:
    """Files by path; those that were read longest ago are given up when there are too many.

    Args:
        path: the folder.
        most_bytes: of all files in it, but for what is written between two looks.
    """

    def __init__(self, path: Path, *, most_bytes: int) -> None:
        self.path = path
        self.most_bytes = most_bytes
        self._written = most_bytes  # so that the first file brings about a look
        self._lock = threading.Lock()

    def read(self, path: Path) -> bytes | None:
        """A file's content; None if it is not there."""
        try:
            with open(path, "rb") as stream:
                data = stream.read()
            os.utime(path)
        except OSError:
            return None
        return data

    def write(self, path: Path, data: bytes) -> None:
        """Keep a file.

        Raises:
            UserError: when the folder cannot be written.
        """
        self.write_pieces(path, [data], n_bytes=len(data))

    def write_pieces(self, path: Path, pieces: Iterable[bytes], *, n_bytes: int, sha256: str | None = None) -> None:
        """Keep a file that comes in pieces, once it is whole.

        Raises:
            ChecksumError: when it comes to other bytes than it should; OSError: to more or fewer.
            UserError: when the folder cannot be written.
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
            except OSError as error:
                raise _not_writable(path.parent, error) from error
            with stream:
                for piece in pieces:
                    stream.write(piece)
                    length += len(piece)
                    if sha256 is not None:
                        digest.update(piece)
            if length != n_bytes:
                raise OSError(f"{length:,} bytes came instead of {n_bytes:,}")
            if sha256 not in (None, digest.hexdigest()):
                raise ChecksumError("what came has another checksum than it should")

    @contextmanager
    def only_one(self, path: Path) -> Iterator[bool]:
        """Whether this process is the only one that is inside for a path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with try_lock(path.with_name(f".{path.name}.lock")) as held:
            yield held

    def _make_room(self, n_bytes: int) -> None:
        """Now and then, give up what was read longest ago."""
        with self._lock:
            self._written += n_bytes
            if self._written < TIDY_AFTER * self.most_bytes:
                return
            self._written = 0
        files = []
        for entry in _files_below(self.path):
            with suppress(OSError):  # another process was faster
                status = entry.stat()
                if not entry.name.startswith("."):
                    files.append((status.st_mtime, status.st_size, entry.path))
                elif entry.name.endswith(".tmp") and time.time() - status.st_mtime > LEFT_BEHIND:
                    os.unlink(entry.path)
        total = sum(size for _, size, _ in files) + n_bytes
        if total <= self.most_bytes:
            return
        for _, size, path in sorted(files):
            if total <= TIDY_TO * self.most_bytes:
                break
            with suppress(OSError):
                os.unlink(path)
                total -= size

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder} cannot be written: {error.strerror}. Choose another data.cache_dir.")


def _files_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(Path(entry.path))
            else:
                yield entry
