"""Read a model whose tensors are in one file, or in several that an index lists."""

from __future__ import annotations

from pathlib import Path

from gpt_pretrain.checkpoints.file_content import read_weights
from gpt_pretrain.checkpoints.tensor_files import (
    StoredTensor,
    is_safetensors,
    read_model_json,
    read_safetensors,
    state_dict_tensors,
)
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import short_repr


def index_files(index: Path) -> dict[str, str]:
    """Return the file of each tensor that the index of a model in several files names.

    Raises:
        UserError: If it is no such index, or names a file in another folder.
    """
    files = read_model_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{index} is not an index of a model in several files: it has no weight_map.")
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith((".safetensors", ".bin")):
            raise UserError(f"{index} names {short_repr(file)}, which is not a file of tensors in the same folder.")
    return files


def read_indexed(index: Path) -> dict[str, StoredTensor]:
    """Return the tensors of all files that an index names.

    Raises:
        UserError: If the index or a file is missing or damaged, or they disagree. All problems are reported together.
    """
    files = index_files(index)
    problems: list[str] = []
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(files.values())):
        path = index.parent / file
        if not path.is_file():
            problems.append(f"{path} is missing: {index.name} lists tensors in it.")
            continue
        try:
            found = read_tensors(path)
        except UserError as error:
            problems += error.problems
            continue
        listed = {name for name, its_file in files.items() if its_file == file}
        problems += [f"{path} lacks the tensor {name}." for name in sorted(listed - found.keys())]
        problems += [f"{index} does not list the tensor {name} of {file}." for name in sorted(found.keys() - listed)]
        tensors |= found
    if problems:
        raise UserError(problems)
    return tensors


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file that holds nothing else.

    Raises:
        UserError: If the file cannot be read.
    """
    return read_safetensors(path) if is_safetensors(path) else state_dict_tensors(read_weights(path).tensors, path)
