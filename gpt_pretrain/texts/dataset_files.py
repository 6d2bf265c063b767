"""Keep the package datasets to the files of the dataset that it is asked for.

The README.md of a dataset may list its files, and so does the state.json of a saved dataset. datasets 5.2 opens whatever stands
there: files of this machine, and URLs of any file system of fsspec. A column may be declared as images, sounds or the like; then
datasets opens the path or URL in each of its rows as well. What it reads would become part of the corpus.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.reading import DamagedFileError, open_regular, read_json, short_repr

REPOSITORY = re.compile(r"hf://datasets/[^/@]+(/[^/@]+)?(?=@)")
STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
SAVED = (STATE, SPLITS)  # A folder written by save_to_disk contains one of these.
SAVED_NAME = re.compile(r"\w[\w.+=@ -]*")  # Of a split's folder or a file, neither of which may be a path or a URL.
TEXT_TYPES = ("string", "large_string", "string_view", "binary", "large_binary")  # Bytes may be UTF-8.


@contextmanager
def own_files_only(name: str) -> Iterator[None]:
    """Have datasets refuse, during the block, to look for files that are not the dataset's own.

    Args:
        name: The dataset's name on the hub, or its folder or file on this machine.
    """
    from datasets import data_files

    resolve: Callable[..., list[str]] = data_files.resolve_pattern

    def resolve_own(pattern: str, base_path: str, *arguments: Any, **options: Any) -> list[str]:
        if not _is_own(pattern, base_path, name):
            raise UserError(
                f"dataset={name}: its description names {pattern}, which is not a file of the dataset itself and could be any "
                "file of this machine. Nothing was read. If you trust it, download the files and give them as inputs."
            )
        return resolve(pattern, base_path, *arguments, **options)

    data_files.resolve_pattern = resolve_own
    try:
        yield
    finally:
        data_files.resolve_pattern = resolve


def check_saved_dataset(folder: Path) -> None:
    """Check that a folder written by save_to_disk lists only regular files of its own.

    Raises:
        UserError: If it lists anything else, or a list cannot be read.
    """
    folders = [folder]
    try:
        # datasets looks for these in the same order.
        if not (folder / STATE).is_file() or not (folder / INFO).is_file():
            folders = [folder / _saved_name(split) for split in _list(read_json(folder / SPLITS, within=folder), "splits")]
        for part in folders:
            read_json(part / INFO, within=folder)
            for file in _list(read_json(part / STATE, within=folder), "_data_files"):
                name = _saved_name(file.get("filename") if isinstance(file, dict) else None)
                open_regular(part / name, within=folder).close()
    except (OSError, DamagedFileError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(
            f"dataset={folder} is not read: {where}{reason}. A dataset that save_to_disk wrote consists of regular files in its "
            "own folder. If you trust it, copy it with `cp -rL`, which copies what its links lead to, and give the copy."
        ) from error


def check_is_text(text_field: str, features: Mapping[str, Any], name: str) -> None:
    """Check that a column's declared type is text, which datasets hands over without opening anything.

    Raises:
        UserError: If not.
    """
    if _is_text(features[text_field]):
        return
    kind = type(features[text_field]).__name__
    kind = features[text_field].dtype if kind == "Value" else kind
    columns = ", ".join(column for column in features if _is_text(features[column]))
    raise UserError(
        f"dataset={name}: its column {text_field} is of the type {kind}, but only columns of text are read: "
        "for images and the like, datasets would open the addresses in the rows. Nothing was opened. "
        + (f"Choose one with text_field=: {columns}." if columns else "It has no column of text.")
    )


def _is_text(feature: Any) -> bool:
    from datasets import Value

    return type(feature) is Value and feature.dtype in TEXT_TYPES


def _list(content: dict[str, Any], name: str) -> list[Any]:
    value = content.get(name)
    if not isinstance(value, list):
        raise DamagedFileError(f"its {name} is {short_repr(value)}, not a list")
    return value


def _saved_name(name: Any) -> str:
    if not isinstance(name, str) or SAVED_NAME.fullmatch(name) is None:
        raise DamagedFileError(f"it lists {short_repr(name)}, which is not the plain name of a file in the same folder")
    return name


def _is_own(pattern: str, base_path: str, name: str) -> bool:
    """Return whether a pattern, which may be relative to a base path, matches only files of the dataset."""
    whole = pattern if "://" in pattern or os.path.isabs(pattern) else f"{base_path}/{pattern}"
    if "::" in whole or ".." in Path(whole).parts:
        return False
    local = user_path(name)
    if not local.exists():
        on_hub = REPOSITORY.match(base_path)  # its name on the hub may be longer than the typed one
        return on_hub is not None and whole.startswith((f"{on_hub[0]}@", f"{on_hub[0]}/"))
    folder = local if local.is_dir() else local.parent
    return "://" not in whole and Path(os.path.abspath(whole)).is_relative_to(os.path.abspath(folder))
