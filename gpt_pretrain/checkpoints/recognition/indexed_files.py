"""Read a model whose tensors are in one file, or in several files that an index lists."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from gpt_pretrain.checkpoints.recognition.file_content import read_weights
from gpt_pretrain.checkpoints.recognition.folder_contents import check_is_no_other_file
from gpt_pretrain.checkpoints.recognition.misfits import name_some
from gpt_pretrain.checkpoints.serialization.tensor_files import (
    StoredTensor,
    is_safetensors,
    read_model_json,
    read_safetensors,
    state_dict_tensors,
)
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.shown_values import short_repr

MIXED = "The files may be of several models or downloads."


def index_files(index: Path) -> dict[str, str]:
    """Read the index of a model in several files, and return the file of each tensor.

    Raises:
        UserError: If the file is no such index, or names a file in another folder.
    """
    files = read_model_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{index} is not an index of a model in several files: it has no weight_map.")
    for file in files.values():
        if not _is_file_name(file):
            raise UserError(f"{index} names {short_repr(file)}, which is not a file of tensors in the same folder.")
    return files


def _is_file_name(value: object) -> bool:
    """Return whether a value is the plain name of a file of tensors, which the bar of a download shows as it is."""
    if not isinstance(value, str) or not value.isprintable():
        return False
    return Path(value).name == value and value.endswith((".safetensors", ".bin"))


def read_indexed(index: Path) -> dict[str, StoredTensor]:
    """Return the tensors of all files that an index names.

    Raises:
        UserError: If the index or a file is missing or damaged, or they disagree. All problems are reported together.
    """
    files = index_files(index)
    problems: list[str] = []
    tensors: dict[str, StoredTensor] = {}
    listed_in = defaultdict[str, set[str]](set)
    for name, file in files.items():
        listed_in[file].add(name)
    missing = [file for file in sorted(listed_in) if not (index.parent / file).is_file()]
    if missing:
        problems.append(f"{index} lists tensors in files that are missing: {name_some(missing)}. Copy them into the same folder.")
    present = sorted(listed_in.keys() - set(missing))
    _check_distinct(index, present)
    for file in present:
        path, listed = index.parent / file, listed_in[file]
        try:
            found = read_tensors(path)
        except UserError as error:
            problems += error.problems
            continue
        if lacking := sorted(listed - found.keys()):
            problems.append(f"{path} lacks tensors that {index.name} lists in it: {name_some(lacking)}. {MIXED}")
        if unlisted := sorted(found.keys() - listed):
            problems.append(f"{path} has tensors that {index.name} does not list in it: {name_some(unlisted)}. {MIXED}")
        tensors |= found
    if problems:
        raise UserError(problems)
    return tensors


def _check_distinct(index: Path, files: list[str]) -> None:
    """Check that the names in an index lead to different files. A small folder could otherwise list a file thousands of times.

    Raises:
        UserError: If two names lead to the same file.
    """
    known: dict[tuple[int, int], str] = {}
    for file in files:
        status = (index.parent / file).stat()
        if (other := known.setdefault((status.st_dev, status.st_ino), file)) != file:
            raise UserError(f"{index} lists one file under two names: {name_some([other, file])}. {MIXED}")


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file that holds nothing but tensors.

    Raises:
        UserError: If the file cannot be read.
    """
    if is_safetensors(path):
        return read_safetensors(path)
    check_is_no_other_file(path)
    return state_dict_tensors(read_weights(path).tensors, path)
