"""Check the program's environment: the operating system, the current folder, and the user's folders."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.checkout import CHECKOUT, IS_INSTALLED

APP = "gpt-pretrain"
COMPILE_CACHE = "TORCHINDUCTOR_CACHE_DIR"
SHORT_FOLDER = "/tmp"
MAX_SOCKET_FOLDER_BYTES = 60
_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []  # deleted when the process ends


def check_environment() -> None:
    """Check that a command runs on a tested system, in a folder whose name can be written into files.

    Raises:
        UserError: On Windows, under `python -O`, and in a folder that was deleted or whose name is not text.
    """
    if sys.platform == "win32":
        raise UserError(
            "gpt-pretrain runs on Linux and macOS. On Windows, run it in WSL, the Windows Subsystem for Linux: wsl --install"
        )
    # Hydra's parser advances within an assertion. Source: https://github.com/hydra-ecosystem/hydra/issues/2570
    if sys.flags.optimize:
        raise UserError("Python leaves out assertions here, on which Hydra relies. Unset PYTHONOPTIMIZE, or leave out -O.")
    try:
        folder = os.getcwd()
    except OSError as error:
        raise UserError(
            f"The current folder cannot be used: {error.strerror or error}. Change to another one, such as ~."
        ) from error
    if (problem := _undecoded_problem(folder)) is not None:
        raise UserError(f"The current folder {problem}")


def keep_imports_out_of_working_folder() -> None:
    """Keep Python processes that libraries start from importing files of the current folder, which may be a stranger's.

    torch.compile, joblib and submitit start processes with `-m` or `-c`. For these, Python searches the current folder before its
    own modules. They find this program where this process has found it.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.environ.get("PYTHONPATH") else []
    if not IS_INSTALLED and str(CHECKOUT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *paths])


def without_comment(words: Iterable[str]) -> list[str]:
    """Return the words before a comment. If a command is pasted with a comment, zsh passes it on to the program."""
    return list(itertools.takewhile(lambda word: word != "#", words))


def decode_arguments(arguments: Iterable[str], *, texts: Collection[str] = ()) -> list[str]:
    """Return command-line arguments as proper texts: lone surrogates stand for bytes that Python could not decode.

    In a text, UTF-8 is decoded, whatever the system's encoding is. A comment is left out.

    Args:
        texts: The names of settings whose values are texts.

    Raises:
        UserError: If there are such bytes in other arguments, or bytes in a text that are not UTF-8. All are reported together.
    """
    decoded, problems = [], []
    for argument in without_comment(arguments):
        if argument.partition("=")[0].lstrip("+") in texts:
            data = argument.encode("utf-8", "surrogateescape")
            try:
                decoded.append(data.decode("utf-8"))
            except UnicodeDecodeError:
                problems.append(
                    f"{ascii(data)[2:-1]} is not UTF-8 text. Set the terminal's encoding to UTF-8, and type it again."
                )
        elif (problem := _undecoded_problem(argument)) is not None:
            problems.append(problem)
        else:
            decoded.append(argument)
    if problems:
        raise UserError(problems)
    return decoded


def _undecoded_problem(name: str) -> str | None:
    """Return what is wrong with a name that cannot be decoded in the system's encoding, or None."""
    if not any("\udc80" <= char <= "\udcff" for char in name):
        return None
    shown = ascii(name.encode("utf-8", "surrogateescape"))[1:]
    if (encoding := sys.getfilesystemencoding()) == "utf-8":
        return f"{shown} is not UTF-8. Rename the file or folder, so that its name is UTF-8."
    return f"{shown} is not {encoding.upper()}, the encoding of this system's names. Set PYTHONUTF8=1."


def use_short_socket_folder() -> None:
    """Let multiprocessing make its sockets in a folder with a short path, if the path of the temporary folder is long.

    The path of a socket has at most 107 bytes, or 103 on macOS. With a longer path, workers fail, and Python (3.11,
    multiprocessing.util.get_temp_dir) waits for them forever.
    """
    settings: dict[str, object] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    if "tempdir" not in settings and len(os.fsencode(tempfile.gettempdir())) > MAX_SOCKET_FOLDER_BYTES:
        folder = tempfile.TemporaryDirectory(prefix="gpt-", dir=SHORT_FOLDER, ignore_cleanup_errors=True)
        _TEMPORARY.append(folder)
        settings["tempdir"] = folder.name


def use_own_compile_cache() -> None:
    """Let torch.compile keep its files in a folder that only this user can write to, unless the user has named a folder.

    It runs code and loads pickles from there (PyTorch 2.13, torch._inductor.codecache). Its own choice is a known name in the
    temporary folder, so another user of the machine could make that folder first.
    """
    named = os.environ.get(COMPILE_CACHE)  # some modules of PyTorch set it to their own folder when they are imported
    if named is not None and not Path(named).name.startswith("torchinductor_"):
        return
    folder = Path(tempfile.gettempdir()) / f"{APP}-compiled-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    except OSError:  # A file or a link has this name, or the folder cannot be made.
        is_own = False
    if not is_own:
        temporary = tempfile.TemporaryDirectory(prefix=f"{APP}-compiled-", ignore_cleanup_errors=True)
        _TEMPORARY.append(temporary)
        folder = Path(temporary.name)
    os.environ[COMPILE_CACHE] = str(folder)


def user_path(name: str | os.PathLike[str]) -> Path:
    """Return a path that a user has typed, with `~` replaced by the home folder.

    A name such as `~$draft.txt` or `~somebody/text.txt` is not changed if there is no user of that name.
    """
    return Path(os.path.expanduser(name))


def user_cache_folder() -> Path:
    """Return the program's folder in the user's cache.

    Raises:
        OSError: If the user has no home folder, or it is relative to the working directory.
    """
    return _in_home(user_cache_path)


def user_data_folder() -> Path:
    """Return the program's folder in the user's data.

    Raises:
        OSError: If the user has no home folder, or it is relative to the working directory.
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
    if not path.is_absolute():  # A stranger's folder could bring a key and code. The XDG specification forbids such paths, too.
        remedy = "Set XDG_CACHE_HOME and XDG_DATA_HOME to absolute ones"
        raise OSError(errno.EINVAL, f"The user's folder {path} is a relative path. {remedy}")
    return path
