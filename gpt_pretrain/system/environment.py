"""What the program needs of its environment: an operating system that it supports, and the user's folders."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from gpt_pretrain.errors import UserError

APP = "gpt-pretrain"


def check_operating_system() -> None:
    """Check that the command line is used on a system on which it is tested.

    Raises:
        UserError: On Windows.
    """
    if sys.platform == "win32":
        raise UserError(
            "gpt-pretrain runs on Linux and macOS. On Windows, run it in WSL, the Windows Subsystem for Linux: wsl --install"
        )


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
