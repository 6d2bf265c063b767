"""Read regular files that anybody may have written: no devices, no links out of a folder, no more bytes than a limit."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from gpt_pretrain.system.reading_cost import add_opened

MAX_BYTES = 20_000_000  # For comparison: a config.json has about 1,000 bytes, the index of a sharded model about 100,000.
# A small archive may give one file, by links, thousands of names. Of a file with more names, this many are read.
MAX_NAMES = 20
_names_read: dict[tuple[int, int], set[str]] = {}


class DamagedFileError(ValueError):
    """A file is not what its name says, or is far too large. The message leaves out the name, which the caller adds."""


def open_regular(path: Path, *, within: Path | None = None) -> BufferedReader:
    """Open a regular file for reading.

    Devices and pipes are refused, since reading them could block or never end.

    Args:
        within: The folder that must contain the file after all links are followed. None allows any folder.

    Raises:
        OSError: If the file does not exist or is not regular. With `within`, also if a link leads out of the folder, or if the
            file has more than MAX_NAMES names and has been read under as many of them.
    """
    real = path if within is None else path.resolve()
    if within is not None and not real.is_relative_to(within.resolve()):
        raise _leads_out(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        if path.is_socket():  # The system's own message speaks of a missing device.
            raise not_regular(path, stat.S_IFSOCK) from None
        raise
    if within is not None and not _is_inside(handle, path, within):
        os.close(handle)
        raise _leads_out(path)
    status = os.fstat(handle)
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise not_regular(path, mode)
    if within is not None and not _counts_as_new(handle, path, real):
        os.close(handle)
        raise OSError(errno.EMLINK, f"it has very many names, of which {MAX_NAMES} have been read", str(path))
    add_opened(status)
    return os.fdopen(handle, "rb")


def _counts_as_new(handle: int, path: Path, real: Path) -> bool:
    """Return whether an open file has few names, or this is one of the first of them that are read.

    Args:
        real: The path without links. Nothing tells how many links lead to it.
    """
    status, name = os.fstat(handle), os.path.abspath(path)
    if status.st_nlink <= MAX_NAMES and name == str(real):
        return True
    names = _names_read.setdefault((status.st_dev, status.st_ino), set())
    if name not in names and len(names) >= MAX_NAMES:
        return False
    names.add(name)
    return True


def _is_inside(handle: int, path: Path, folder: Path) -> bool:
    """Return whether an open file is still the file at its path in a folder.

    The owner of the folder may have put a link there just for the moment of opening.
    """
    opened, real = os.fstat(handle), path.resolve()
    try:
        named = os.lstat(real)
    except OSError:
        return False
    is_same = (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)
    return is_same and real.is_relative_to(folder.resolve())


def not_regular(path: Path, mode: int) -> OSError:
    """Return the error that says what a path names in place of a regular file.

    Args:
        mode: The mode of the file, as `os.stat` returns it.
    """
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    remedy = ". Save its content to a file first" * (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))
    return OSError(errno.EINVAL, f"it is {kinds.get(stat.S_IFMT(mode), 'a socket')}, not a regular file{remedy}", str(path))


def _leads_out(path: Path) -> OSError:
    return OSError(errno.EPERM, "it is a link that leads out of its folder", str(path))


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES, within: Path | None = None) -> bytes:
    """Read a whole regular file.

    Args:
        max_bytes: The largest size that is accepted.
        within: See `open_regular`.

    Raises:
        OSError: If `open_regular` refuses the file.
        DamagedFileError: If the file is larger.
    """
    with open_regular(path, within=within) as stream:
        # A stream takes memory for all that is asked for, so the file's size comes first. Files of the system state 0.
        content = stream.read(min(os.fstat(stream.fileno()).st_size, max_bytes) + 1)
        content += stream.read(max_bytes + 1 - len(content)) if len(content) <= max_bytes and stream.peek(1) else b""
    if len(content) > max_bytes:
        raise DamagedFileError(f"it has more than {max_bytes:,} bytes")
    return content


def read_lines(stream: BufferedReader, *, max_line_bytes: int, max_bytes: int) -> Iterator[str]:
    """Yield the lines of a text file with their ends. Stop before a line that is too long, or once max_bytes are read."""
    left = max_bytes
    while left > 0 and (line := stream.readline(max_line_bytes + 1)):
        if len(line) > max_line_bytes:
            return
        left -= len(line)
        yield line.decode(errors="replace").replace("\0", "")
