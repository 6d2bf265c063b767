"""Places that a stored setting may name without being asked about: those that a stranger's file cannot point at anything else."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from gpt_pretrain.system.checkout import CHECKOUT
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.yaml_files import read_yaml

READ_WITH_FOLDER = (".json", ".bin")  # manifest.json and train.bin stand for the folder that they are in
MAX_FILES = 10_000  # to look at; a folder with more is asked about


def stays_inside(text: str, *, folder: Path | None, must_exist: bool = False) -> bool:
    """Return whether a path, folder or glob leads only to files in a folder or, if it is relative, in the working directory.

    Links are followed. A relative path through a hidden file or folder, or through `..` or `~`, leads elsewhere too, since the
    working directory may be the user's home. Only the last part of a glob may be a pattern: with several `**` or through
    links, a few characters could stand for more folders than can be searched.

    Args:
        folder: The folder of the run or sweep that names the place; None if it is unknown.
        must_exist: Whether a path that does not exist leads elsewhere, as the name of a model on the hub does.
    """
    if "::" in text or "://" in text or text.startswith("~"):
        return False
    try:
        path = user_path(text)
        hidden = any(part.startswith(".") for part in path.parts)
        roots = [] if folder is None else [folder.resolve()]
        roots += [] if hidden or path.is_absolute() else [Path.cwd().resolve()]
        if not roots or (must_exist and not path.exists()):
            return False
        if not path.exists() and (glob.has_magic(str(path.parent)) or "**" in path.name):
            return False
        if path.suffix in READ_WITH_FOLDER:
            path = path.parent
        found = list(islice(_files(path), MAX_FILES + 1))
        return len(found) <= MAX_FILES and any(all(file.resolve().is_relative_to(root) for file in found) for root in roots)
    except (OSError, ValueError, RuntimeError):  # a loop of links, a null character, an unknown home folder
        return False


def is_known_url(url: str) -> bool:
    """Return whether this program's own data options download from a URL."""
    return url in _known_urls()


@cache
def _known_urls() -> frozenset[str]:
    urls = []
    for file in sorted((CHECKOUT / "conf" / "data").glob("*.yaml")):
        try:
            urls.append(read_yaml(file).get("url"))
        except (OSError, DamagedFileError):
            continue
    return frozenset(url for url in urls if isinstance(url, str))


def _files(path: Path) -> Iterator[Path]:
    """Yield a path, what it matches as a glob, and everything in the folders among them."""
    yield path
    for match in [str(path)] if path.exists() else glob.iglob(str(path)):
        yield Path(match)
        for parent, folders, files in os.walk(match):
            yield from (Path(parent) / name for name in [*folders, *files])
