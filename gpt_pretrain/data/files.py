"""Files of a folder, read in pieces, wherever the folder is."""

from __future__ import annotations

import os
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Protocol

from gpt_pretrain.errors import UserError

MOST_HANDLES = 64  # files of a folder held open at once; a process may often have no more than 1024 or, on macOS, 256


def is_url(path: str) -> bool:
    """Whether a path is behind a network, or another of fsspec's file systems."""
    return "://" in path


class Files(Protocol):
    """A folder of files that do not change.

    Attributes:
        place: the folder, as a user names it.
        remote: whether reading takes long enough to be done ahead.
    """

    place: str
    remote: bool

    def names(self) -> list[str]:
        """The files in the folder, sorted."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is no such file."""
        ...

    def read(self, name: str, start: int, count: int) -> bytes:
        """So many bytes of a file from start on; fewer where it ends before.

        Raises:
            UserError: when the file cannot be read.
        """
        ...

    def prefetch(self, name: str, start: int, count: int) -> None:
        """Begin to fetch what `read` will soon be asked for, and do not wait for it."""
        ...


class LocalFiles:
    """A folder on a disk of this machine, of which only so many files are open at once."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = str(folder)

    def names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.folder) if entry.is_file())
        except OSError as error:
            raise UserError(f"data.path={self.place} cannot be read: {error.strerror or error}.") from error

    def size(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_size
        except OSError:
            return None

    def read(self, name: str, start: int, count: int) -> bytes:
        try:
            return self.read_file(name, start, count)
        except OSError as error:
            raise UserError(f"{self.folder / name} cannot be read: {error.strerror or error}.") from error

    def read_file(self, name: str, start: int, count: int) -> bytes:
        """`read`, with the system's own errors."""
        handle = self._handle(name)
        if hasattr(os, "pread"):
            return os.pread(handle, count, start)
        os.lseek(handle, start, os.SEEK_SET)  # Windows, where each loader process has opened the file itself
        return os.read(handle, count)

    def prefetch(self, name: str, start: int, count: int) -> None:
        """The system reads ahead by itself."""

    def _handle(self, name: str) -> int:
        handles = self._handles
        if name in handles:
            handles.move_to_end(name)
            return handles[name]
        handles[name] = os.open(self.folder / name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        if len(handles) > MOST_HANDLES:
            os.close(handles.popitem(last=False)[1])
        return handles[name]

    @cached_property
    def _handles(self) -> OrderedDict[str, int]:
        """Open files, those used last at the end."""
        return OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """Loader processes open the files themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "_handles"}

    def __del__(self) -> None:
        for handle in self.__dict__.get("_handles", {}).values():
            os.close(handle)
