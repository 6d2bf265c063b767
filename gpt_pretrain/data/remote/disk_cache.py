"""A folder of files that can be fetched again, kept below a size limit and shared by several processes.

The files lie in `KEY/FOLDER/`: pieces with numbers for names, each followed by a signature, and whole files. Nothing else is
deleted, and no link is followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt_pretrain.data.private_cache import create_private, make_folder, mark_as_used, not_writable, open_own
from gpt_pretrain.system.files import SCRATCH_SUFFIX, replacing
from gpt_pretrain.system.locks import try_lock
from gpt_pretrain.system.signing import SIGNATURE_BYTES, has_signature, signature

CLEANUP_INTERVAL = 1 / 20  # share of the size limit that a process writes between two checks of the size
CLEANUP_TARGET = 0.9  # share of the size limit that remains after files have been deleted
MAX_SCRATCH_AGE = 3600.0  # seconds after which an unfinished file is assumed to be from a killed process
WHOLE = "whole"  # the folder of the files that are not in pieces
KEY = re.compile("[0-9a-f]{32}")
PIECE = re.compile("[0-9]{8}")
SCRATCH = re.compile(rf"\..+\.[0-9a-f]{{8}}{re.escape(SCRATCH_SUFFIX)}")


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

    def read(self, path: Path, *, length: int) -> bytes | None:
        """Return the content of a piece, or None if the cache does not hold it as this user has written it.

        Args:
            length: Its length in bytes.
        """
        try:
            with open_own(path) as stream:
                data = stream.read(length + SIGNATURE_BYTES + 1)
            mark_as_used(path)
        except OSError:
            return None
        content, signed = data[:length], data[length:]
        return content if has_signature(content, signed, purpose=self._purpose(path)) else None

    def write(self, path: Path, data: bytes) -> None:
        """Store a piece.

        Raises:
            UserError: If the folder cannot be written.
        """
        signed = signature(data, purpose=self._purpose(path))
        self.write_pieces(path, [data, signed], n_bytes=len(data) + len(signed))

    def write_pieces(self, path: Path, pieces: Iterable[bytes], *, n_bytes: int, sha256: str | None = None) -> str:
        """Store a file that arrives in pieces once it is complete.

        Returns:
            Its SHA-256 in hexadecimal.

        Raises:
            ChecksumError: If the content has another checksum.
            OSError: If the content has another length, or the folder is deleted at the same time.
            UserError: If the folder cannot be written.
        """
        self._make_room(n_bytes)
        digest, length = hashlib.sha256(), 0
        try:
            make_folder(self.path, path.parent)
        except OSError as error:
            raise not_writable(path.parent, error) from error
        with replacing(path, durable=False) as scratch:
            try:
                stream = create_private(scratch)
            except FileNotFoundError:
                raise  # another thread has just deleted the folder of a damaged file
            except OSError as error:
                raise not_writable(path.parent, error) from error
            with stream:
                for piece in pieces:
                    stream.write(piece)
                    length += len(piece)
                    digest.update(piece)
                    if length > n_bytes:
                        break
            if length != n_bytes:
                raise OSError(f"received {length:,} bytes instead of {n_bytes:,}")
            if sha256 not in (None, digest.hexdigest()):
                raise ChecksumError(path.name)
        return digest.hexdigest()

    def forget(self, folder: Path) -> None:
        """Delete the pieces in a folder."""
        for entry in _entries(folder):
            if PIECE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):  # another process may have deleted it
                    os.unlink(entry.path)

    @contextmanager
    def try_lock(self, path: Path) -> Iterator[bool]:
        """Yield whether this process holds the lock of a file, so that only one process fetches it."""
        make_folder(self.path, path.parent)
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
        for folder in _own_folders(self.path):
            name = re.compile(r"[^.].*") if folder.name == WHOLE else PIECE
            for entry in _entries(folder):
                if not entry.is_file(follow_symlinks=False):
                    continue
                with suppress(OSError):  # another process may have deleted it
                    status = entry.stat(follow_symlinks=False)
                    if name.fullmatch(entry.name):
                        files.append((status.st_mtime, status.st_size, entry.path))
                    elif SCRATCH.fullmatch(entry.name) and time.time() - status.st_mtime > MAX_SCRATCH_AGE:
                        os.unlink(entry.path)
        return files

    def _purpose(self, path: Path) -> str:
        """Return what a file is signed for: its place in the cache."""
        return "cached piece " + "/".join(path.relative_to(self.path).parts)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _own_folders(root: Path) -> Iterator[Path]:
    """Yield the folders `KEY/FOLDER` that hold files."""
    for key in _entries(root):
        if KEY.fullmatch(key.name) and key.is_dir(follow_symlinks=False):
            yield from (Path(one.path) for one in _entries(Path(key.path)) if one.is_dir(follow_symlinks=False))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # another process may have deleted it
        return []
