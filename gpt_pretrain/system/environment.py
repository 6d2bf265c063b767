"""What the program needs of its environment: an operating system that it supports, and the user's folders."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from gpt_pretrain.errors import UserError

APP = "gpt-pretrain"
SHORT_FOLDER = "/tmp"
MAX_SOCKET_FOLDER_BYTES = 60
_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []  # deleted when the process ends


def check_operating_system() -> None:
    """Check that the command line is used on a system on which it is tested.

    Raises:
        UserError: On Windows.
    """
    if sys.platform == "win32":
        raise UserError(
            "gpt-pretrain runs on Linux and macOS. On Windows, run it in WSL, the Windows Subsystem for Linux: wsl --install"
        )


def decode_arguments(arguments: Iterable[str], *, texts: Collection[str] = ()) -> list[str]:
    """Return command-line arguments without lone surrogates, which stand for bytes that are no text in the system's encoding.

    In a text, UTF-8 is decoded, and bytes that are not UTF-8 are replaced by U+FFFD.

    Args:
        texts: The names of settings whose values are texts.

    Raises:
        UserError: If there are such bytes in other arguments; all of them together.
    """
    decoded, problems = [], []
    for argument in arguments:
        if argument.isascii() or not any("\udc80" <= char <= "\udcff" for char in argument):
            decoded.append(argument)
            continue
        content = argument.encode("utf-8", "surrogateescape")
        if argument.partition("=")[0].lstrip("+") in texts:
            decoded.append(content.decode("utf-8", "replace"))
        elif sys.getfilesystemencoding() == "utf-8":
            problems.append(f"{ascii(content)[1:]}: this is not UTF-8. Rename the file or folder, so that its name is UTF-8.")
        else:
            problems.append(
                f"{ascii(content)[1:]}: this is not {sys.getfilesystemencoding()}, the encoding of this system. Set PYTHONUTF8=1."
            )
    if problems:
        raise UserError(problems)
    return decoded


def use_short_socket_folder() -> None:
    """Have multiprocessing make its sockets in a folder with a short path, if that of temporary files is long.

    The path of a socket has at most 107 bytes, or 103 on macOS. Where it would have more, workers fail and are waited for
    without end (Python 3.11, multiprocessing.util.get_temp_dir).
    """
    settings: dict[str, object] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    if "tempdir" not in settings and len(os.fsencode(tempfile.gettempdir())) > MAX_SOCKET_FOLDER_BYTES:
        folder = tempfile.TemporaryDirectory(prefix="gpt-", dir=SHORT_FOLDER, ignore_cleanup_errors=True)
        _TEMPORARY.append(folder)
        settings["tempdir"] = folder.name


def user_path(name: str | os.PathLike[str]) -> Path:
    """Return a path that a user has typed, with `~` replaced by the home folder.

    A name such as `~$draft.txt` or `~somebody/text.txt` stays as it is if there is no user of that name.
    """
    return Path(os.path.expanduser(name))


def user_cache_folder() -> Path:
    """Return the program's folder in the user's cache.

    Raises:
        OSError: If the user has no home folder.
    """
    return _in_home(user_cache_path)


def user_data_folder() -> Path:
    """Return the program's folder in the user's data.

    Raises:
        OSError: If the user has no home folder.
    """
    return _in_home(user_data_path)


def _in_home(find_folder: Callable[[str], Path]) -> Path:
    problem = OSError(errno.ENOENT, "HOME is not set, and this user has no home folder")
    try:
        path = find_folder(APP)
    except RuntimeError as error:
        raise problem from error
    if path.parts[:1] == ("~",):  # earlier versions of platformdirs raise no error
        raise problem
    return path
