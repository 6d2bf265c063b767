"""Decide which paths and URLs a stranger's file may name in stored settings: those that cannot lead elsewhere."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from gpt_pretrain.system.checkout import CONF
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.urls import is_cut
from gpt_pretrain.system.yaml_files import read_yaml

READ_WITH_FOLDER = (".json", ".bin")  # manifest.json and train.bin stand for their whole folder
# The user is asked about a location with more of these, in place of checking each.
MAX_FILES = 10_000  # files in a folder
MAX_PARTS = 100  # parts of a path
MAX_SOURCES = 20  # texts of a mixture


def is_harmless_location(key: str, value: Any, *, folder: Path | None) -> bool:
    """Return whether a stored location stays inside the folder of its run or sweep, or inside the working directory.

    Args:
        folder: The folder of the run or sweep; None if it is unknown.
    """
    if value is None:
        return True
    if key == "data.sources":
        paths = _source_paths(value)
        return (
            paths is not None
            and len(paths) <= MAX_SOURCES
            and all(is_harmless_location("data.path", path, folder=folder) for path in paths)
        )
    if key == "evaluation.texts":
        return (
            isinstance(value, list)
            and len(value) <= MAX_SOURCES
            and all(is_harmless_location("data.path", path, folder=folder) for path in value)
        )
    if not isinstance(value, str):
        return False
    if key == "data.url":
        return is_known_url(value)
    read = ("data.path", "evaluation.tasks")
    named = (*read, "checkpoint", "pretrained", "init_from", "tokenizer", "tokenizer.name")
    return key in named and stays_inside(value, folder=folder, must_exist=key not in read)


def fix_location(key: str, value: Any) -> Any:
    """Return a harmless location as an absolute path. It will be signed, so it must mean the same in any working directory."""
    if key == "data.sources" and isinstance(value, list):
        return [one | {"path": fix_location("data.path", one["path"])} for one in value]
    if key == "evaluation.texts" and isinstance(value, list):
        return [fix_location("data.path", path) for path in value]
    return os.path.abspath(value) if key in ("data.path", "evaluation.tasks") and isinstance(value, str) else value


def has_cut_part(value: object) -> bool:
    """Return whether secret parts were cut out of a stored location."""
    if isinstance(value, list) and all(isinstance(path, str) for path in value):
        return any(map(is_cut, value))
    if paths := _source_paths(value):
        return any(map(is_cut, paths))
    return isinstance(value, str) and is_cut(value)


def _source_paths(value: object) -> list[str] | None:
    """Return the paths in a value of data.sources, or None if the value has another form."""
    if not isinstance(value, list) or not all(isinstance(one, dict) and isinstance(one.get("path"), str) for one in value):
        return None
    return [one["path"] for one in value]


def stays_inside(text: str, *, folder: Path | None, must_exist: bool = False) -> bool:
    """Return whether a path, folder or glob leads only to files in a folder or, if it is relative, in the working directory.

    The following count as leading elsewhere:

    - Links, which can lead anywhere, and through deep folders take long to follow.
    - `..` and `~`, and in a relative path hidden files and folders, since the working directory may be the user's home.
    - A glob with a pattern before its last part: with several `**`, a few characters could make the search endless.

    Args:
        folder: The folder of the run or sweep that names the location; None if it is unknown.
        must_exist: Whether a path that does not exist leads elsewhere, as the name of a model on the hub does.
    """
    if "::" in text or "://" in text or "\0" in text or text.startswith("~"):
        return False
    try:
        path = user_path(text)
        hidden = any(part.startswith(".") for part in path.parts)
        roots = [] if folder is None else [Path(os.path.abspath(folder)), folder.resolve()]
        roots += [] if hidden or path.is_absolute() else [Path.cwd()]
        if not roots or ".." in path.parts or (must_exist and not path.exists()):
            return False
        if not path.exists() and (glob.has_magic(str(path.parent)) or "**" in path.name):
            return False
        if path.suffix in READ_WITH_FOLDER:
            path = path.parent
        return any(_is_below(Path(os.path.abspath(path)), root) for root in roots) and _has_few_files_and_no_link(path)
    except (OSError, ValueError, RuntimeError):  # a loop of links, a null character, an unknown home folder
        return False


def is_known_url(url: str) -> bool:
    """Return whether this program's own data options download from a URL."""
    return url in _known_urls()


@cache
def _known_urls() -> frozenset[str]:
    urls = []
    for file in sorted((CONF / "data").glob("*.yaml")):
        try:
            urls.append(read_yaml(file).get("url"))
        except (OSError, DamagedFileError):
            continue
    return frozenset(url for url in urls if isinstance(url, str))


def _is_below(path: Path, root: Path) -> bool:
    """Return whether an absolute path is a folder or lies in it, without a link on the way."""
    on_the_way = [one for one in (path, *path.parents) if len(one.parts) > len(root.parts)]
    return path.is_relative_to(root) and len(on_the_way) <= MAX_PARTS and not any(one.is_symlink() for one in on_the_way)


def _has_few_files_and_no_link(path: Path) -> bool:
    found = list(islice(_links_of_files(path), MAX_FILES + 1))
    return len(found) <= MAX_FILES and not any(found)


def _links_of_files(path: Path) -> Iterator[bool]:
    """Yield, for each path that a glob matches and each entry of the folders among them, whether it is a link."""
    matches = [str(path)] if path.exists() else glob.iglob(str(path))
    for match in matches:
        yield os.path.islink(match)
        folders = [match] if os.path.isdir(match) else []
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    yield entry.is_symlink()
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
