"""What the program needs of its environment: an operating system that it supports, and the user's folders."""

from __future__ import annotations

import errno
import os
import sys
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
    return _in_home(user_cache_path(APP))


def user_data_folder() -> Path:
    """Return the program's folder in the user's data.

    Raises:
        OSError: If the user has no home folder.
    """
    return _in_home(user_data_path(APP))


def _in_home(path: Path) -> Path:
    if path.parts[:1] == ("~",):  # expanduser leaves it alone if HOME is not set and the user is not known to the system
        raise OSError(errno.ENOENT, "HOME is not set, and this user has no home folder")
    return path
