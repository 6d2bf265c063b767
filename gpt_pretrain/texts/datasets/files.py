"""Check what a dataset says about itself before the package datasets acts on it.

The state.json of a saved dataset lists its files, and datasets 5.2 opens every path in this list. If a column is declared as
images or sounds, datasets opens the path or URL in each of its rows. Without a check, any file of this machine could become part
of the corpus.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.json_files import read_json
from gpt_pretrain.system.reading import DamagedFileError, open_regular
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.texts.records.columns import TEXT_TYPES

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
SAVED = (STATE, SPLITS)  # A folder written by save_to_disk contains one of these.
SAVED_NAME = re.compile(r"\w[\w.+=@ -]*")  # A plain name of a split's folder or of a file, never a path or a URL.


def check_saved_dataset(folder: Path) -> int:
    """Check that a folder written by save_to_disk lists only regular files of its own, and return their size in bytes.

    Raises:
        UserError: If it lists anything else, or a list cannot be read.
    """
    folders, size = [folder], 0
    try:
        # datasets looks for these in the same order.
        if not (folder / STATE).is_file() or not (folder / INFO).is_file():
            folders = [folder / name for name in _saved_names(_list(read_json(folder / SPLITS, within=folder), "splits"))]
        for part in folders:
            read_json(part / INFO, within=folder)
            files = _list(read_json(part / STATE, within=folder), "_data_files")
            for name in _saved_names(file.get("filename") if isinstance(file, dict) else None for file in files):
                with open_regular(part / name, within=folder) as stream:
                    size += stream.seek(0, os.SEEK_END)
    except (OSError, DamagedFileError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(
            f"dataset={folder} is not read: {where}{reason}. A dataset that save_to_disk wrote consists of regular files in its "
            "own folder. If you trust it, copy it with `cp -rL`, which copies what its links lead to, and give the copy."
        ) from error
    return size


def check_is_text(text_field: str, features: Mapping[str, Any], name: str) -> None:
    """Check that a column is declared as text, since datasets opens nothing for text.

    Raises:
        UserError: If it is declared as something else.
    """
    if _is_text(features[text_field]):
        return
    kind = type(features[text_field]).__name__
    kind = features[text_field].dtype if kind == "Value" else kind
    columns = ", ".join(column for column in features if _is_text(features[column]))
    raise UserError(
        f"dataset={name}: its column {text_field} is of the type {kind}, but only columns of text are read: "
        "for images and the like, datasets would open the addresses in the rows. Nothing was opened. "
        + (f"Set text_field= to a column of text: {columns}." if columns else "It has no column of text.")
    )


def _is_text(feature: Any) -> bool:
    from datasets import Value

    return type(feature) is Value and feature.dtype in TEXT_TYPES


def _list(content: dict[str, Any], name: str) -> list[Any]:
    value = content.get(name)
    if not isinstance(value, list):
        raise DamagedFileError(f"its {name} is {short_repr(value)}, not a list")
    return value


def _saved_names(names: Iterable[Any]) -> list[str]:
    """Check that names are plain, and each is listed once: datasets reads a file each time that it is listed."""
    found: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str) or SAVED_NAME.fullmatch(name) is None:
            raise DamagedFileError(f"it lists {short_repr(name)}, which is not the plain name of a file in the same folder")
        if name in found:
            raise DamagedFileError(f"it lists {short_repr(name)} twice")
        found[name] = None
    return list(found)
