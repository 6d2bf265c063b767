"""Find the files that a path names: a file, a folder or a glob.

Links to files and folders are followed, and no file is listed twice. What is missing is an error: a folder that cannot be listed,
or a link that leads nowhere.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import is_written_by_runs
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.texts.left_out import warn_once

RECURSIVE = "**"
CACHE_TAG = "CACHEDIR.TAG"  # marks a folder as a cache, such as the token cache; see https://bford.info/cachedir/
# The folder by which a table with a log is recognized, and the program. The files of such a table also hold deleted rows.
TABLE_LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}


class RealPaths:
    """Resolves links in paths as `os.path.realpath` does, but looks at each folder on the way only once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, path: str) -> str:
        """Return the path without links of a file or folder that exists."""
        parent, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):
            return os.path.realpath(path)
        return os.path.join(self._of_folder(parent), name)

    def _of_folder(self, path: str) -> str:
        below = list[str]()
        while (real := self._folders.get(path)) is None:
            if os.path.basename(path) in ("", ".", "..") or os.path.islink(path):
                real = self._folders[path] = os.path.realpath(path)
                break
            below.append(path)
            path = os.path.dirname(path)
        for folder in reversed(below):
            real = self._folders[folder] = os.path.join(real, os.path.basename(folder))
        return real


def match_files(name: str) -> tuple[list[str], bool]:
    """Return the files that a path names, sorted, and whether it is the name of a file.

    Raises:
        UserError: If files would be missing, because a folder cannot be listed or a link leads nowhere.
    """
    path = user_path(name)
    try:
        if path.is_dir():
            return _existing_files(files_below(path)), False
        return ([str(path)], True) if path.exists() else (_match_glob(path), False)
    except RecursionError as error:
        raise UserError(f"The folders in {name} are nested too deeply. Name a folder that is nearer to the texts.") from error


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the visible files in a folder and below. The folders that links lead to come last.

    Folders of runs, sweeps and caches below the folder are left out: their logs, samples and reports are not the text.

    Raises:
        UserError: If a folder cannot be listed, or is a table whose files must not be read one by one.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed: {error.strerror or error}.") from error

    visited, waiting, written, paths = set[str](), [folder], list[str](), RealPaths()
    while waiting:
        if paths.of(str(start := waiting.pop(0))) in visited:  # Any number of links may lead to a large folder.
            continue
        for parent, folders, names in os.walk(start, onerror=refuse):
            real = paths.of(parent)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            _check_no_table(Path(parent))
            if Path(parent) != folder and (is_written_by_runs(names) or CACHE_TAG in names):
                written += [] if CACHE_TAG in names else [parent]
                folders.clear()
                continue
            yield from (Path(parent) / name for name in names if not name.startswith("."))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for link in [Path(parent) / name for name in folders if os.path.islink(Path(parent) / name)]:
                if Path(real).is_relative_to(os.path.realpath(link)):
                    warn_once(f"{escape_line(str(link))} is a link to a folder that contains it, and is not followed.")
                else:
                    waiting.append(link)
    if written:
        count = format_count(len(written), "folder")
        shown = escape_line(min(written))
        warn_once(f"{count} of runs or sweeps left out, such as {shown}. To read one, give its own path.")


def explain_empty_folder(folder: Path) -> str:
    """Return a clause that says why no file is found in a folder."""
    if any(names for _, _, names in os.walk(folder)):
        return "the folder has no files that are read: hidden files, and the folders of runs, sweeps and caches, are left out"
    return "the folder has no files"


def _match_glob(path: Path) -> list[str]:
    """Return the files that a glob matches. Brackets are also tried as part of a name."""
    parts = path.parts
    n_literal = next(number for number in range(len(parts), -1, -1) if Path(*parts[:number]).is_dir())
    base, pattern = Path(*parts[:n_literal]), parts[n_literal:]
    matches = list(_glob(base, pattern)) or list(_glob(base, [part.replace("[", "[[]") for part in pattern]))
    for folder in {base, *(match.parent for match in matches)}:
        _check_no_table(folder)
    if folders := [match for match in matches if match.is_dir()]:
        count = format_count(len(folders), "folder")
        warn_once(
            f"{escape_line(str(path))} also matches {count}, whose files are not read. Name the folder, or end the glob with **."
        )
    return _existing_files(match for match in matches if not match.is_dir())


def _glob(base: Path, pattern: Sequence[str]) -> Iterator[Path]:
    """Yield what a pattern matches below a folder."""
    escaped = glob.escape(str(base))
    if RECURSIVE not in pattern:
        yield from map(Path, glob.glob(os.path.join(escaped, *pattern)))
        return
    # The standard library would follow links in circles.
    start = list(pattern).index(RECURSIVE)
    for folder in map(Path, glob.glob(os.path.join(escaped, *pattern[:start], ""))):
        for file in files_below(folder):
            if _matches(file.relative_to(folder).parts, pattern[start:]):
                yield file


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == RECURSIVE:
        return any(_matches(names[start:], pattern[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatch(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _existing_files(paths: Iterable[Path]) -> list[str]:
    """Return the paths of files, sorted and each file once; pipes, sockets and devices are left out.

    Raises:
        UserError: If a link leads nowhere.
    """
    found, broken, special, real = dict[str, str](), list[str](), list[str](), RealPaths()
    for path in paths:
        if path.is_file():
            found.setdefault(real.of(str(path)), str(path))
        elif path.is_symlink() and not path.exists():
            broken.append(str(path))
        elif path.exists():
            special.append(str(path))
    if special:
        count = format_count(len(special), "special file")
        warn_once(f"{count} left out, such as {escape_line(min(special))}. Pipes, sockets and devices are not read.")
    if broken:
        if len(broken) == 1:
            if _is_circle(broken[0]):
                raise UserError(f"{broken[0]} is a link that leads in a circle, and to no file. Delete it.")
            raise UserError(
                f"{broken[0]} is a link to a missing file, whose text would be missing. Restore the file, or delete the link."
            )
        more = f"{min(broken)} and {len(broken) - 1} more are links to missing files, whose text would be missing."
        raise UserError(f"{more} Restore the files, or delete the links.")
    return sorted(found.values())


def _is_circle(link: str) -> bool:
    try:
        os.stat(link)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _check_no_table(folder: Path) -> None:
    """Check that a folder is not a table with a log, which says which rows are current.

    Raises:
        UserError: If it is.
    """
    program = next((program for log, program in TABLE_LOGS.items() if (folder / log).is_dir()), None)
    if program is None and (folder / "data").is_dir() and any((folder / "metadata").glob("*.metadata.json")):
        program = "Iceberg"
    if program is not None:
        raise UserError(
            f"{folder} is a table of {program}. Its files also hold rows that were deleted or replaced, which only the table's "
            "log tells apart. Write the current rows to a Parquet file, and give that file."
        )
