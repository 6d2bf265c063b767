"""Random access to the files of one folder, on a local disk or elsewhere."""

from __future__ import annotations

import logging
import os
import re
import stat
import weakref
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Protocol

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import not_regular
from gpt_pretrain.system.terminal import escape_line

# A process may often have no more than 1024 open files or, on macOS, 256.
MAX_OPEN_FILES = 64
# The name of a file beside a manifest: no path, no part of a URL, and none of the names that the cache uses for itself.
FILE_NAME = re.compile(r"(?!whole$)[A-Za-z0-9_][\w.+=@ -]{0,199}", re.ASCII)

# A whole word in a name: medieval.npy and latest_1.npy are for training.
VALIDATION_WORD = re.compile(r"(?<![a-z])(?:val|valid|validation|test|testing|eval|evaluation)(?![a-z])", re.IGNORECASE)

log = logging.getLogger(__name__)


class Files(Protocol):
    """The files of a folder; their content does not change.

    Attributes:
        location: The folder as the user names it.
        remote: Whether reads are slow enough to be worth prefetching.
    """

    location: str
    remote: bool

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        ...

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist."""
        ...

    def read(self, name: str, start: int, count: int) -> bytes:
        """Return `count` bytes of a file from byte `start` on, or fewer at its end.

        Raises:
            UserError: If the file cannot be read.
        """
        ...

    def prefetch(self, name: str, start: int, count: int) -> None:
        """Start to fetch bytes that will soon be read, without waiting for them."""
        ...


def split_by_name(names: list[str]) -> tuple[list[str], list[str]]:
    """Return the files for training and those for validation, as their names tell."""
    val = dict.fromkeys(name for name in names if VALIDATION_WORD.search(name) and "train" not in name)
    return [name for name in names if name not in val], list(val)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, or to where this user may not look
        return False


class LocalFiles:
    """The files of a folder on a local disk; at most MAX_OPEN_FILES are open at a time."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = str(folder)

    def names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.folder) if _is_file(entry))
        except OSError as error:
            raise UserError(f"data.path={self.location} cannot be read: {error.strerror or error}.") from error

    def size(self, name: str) -> int | None:
        try:
            status = (self.folder / name).stat()
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, name: str, start: int, count: int) -> bytes:
        try:
            self._check_stamp(name)
            return self.read_file(name, start, count)
        except OSError as error:
            raise UserError(f"{self.folder / name} cannot be read: {error.strerror or error}.") from error

    def read_file(self, name: str, start: int, count: int) -> bytes:
        """Return bytes of a file as `read` does.

        Raises:
            OSError: If the file cannot be read.
        """
        return os.pread(self._handle(name), count, start)

    def prefetch(self, name: str, start: int, count: int) -> None:
        """Do nothing: the operating system reads ahead by itself."""

    def _handle(self, name: str) -> int:
        handles = self._handles
        if name in handles:
            handles.move_to_end(name)
            return handles[name]
        # Without O_NONBLOCK, opening a FIFO would wait for its writer.
        handle = os.open(self.folder / name, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
            os.close(handle)
            raise not_regular(self.folder / name, mode)
        handles[name] = handle
        if len(handles) > MAX_OPEN_FILES:
            os.close(handles.popitem(last=False)[1])
        return handles[name]

    def _check_stamp(self, name: str) -> None:
        """Warn once if a file has been written to since its first read. A tool may have set its time alone."""
        status = os.fstat(self._handle(name))
        stamp = status.st_size, status.st_mtime_ns
        if self._stamps.setdefault(name, stamp) not in (stamp, None):
            self._stamps[name] = None
            log.warning(
                "%s has been written to while it is in use. If its content has changed, the results of this run come from both "
                "contents: start again.",
                escape_line(str(self.folder / name)),
            )

    @cached_property
    def _stamps(self) -> dict[str, tuple[int, int] | None]:
        """The size and the modification time of each file at its first read. None after a warning."""
        return {}

    @cached_property
    def _handles(self) -> OrderedDict[str, int]:
        """Open files by name; the most recently used one is last."""
        handles = OrderedDict[str, int]()
        # Not in __del__, which may run at the end of the program, when this module has lost its names.
        weakref.finalize(self, _close, handles)
        return handles

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalFiles) and other.folder == self.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    def __getstate__(self) -> dict[str, object]:
        """Leave out the open files: each worker process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_handles"}


def _close(handles: dict[str, int]) -> None:
    for handle in handles.values():
        os.close(handle)
