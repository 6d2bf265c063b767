"""Reading files of tensors that somebody else may have written: nothing in them is run, and no size in them is believed."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt_pretrain.errors import UserError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


CHECKSUM_COMMENT = b"gpt-pretrain crc32 "  # and eight digits: of all that stands before, in the archive's comment


INDEX = "model.safetensors.index.json"


MAX_JSON_BYTES = 20_000_000  # a config.json has a thousand bytes, a shard index a hundred thousand


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file.

    Args:
        name: as stored.
        shape: as stored.
        dtype: as stored; a word of the file's own where it is no floating-point number.
        read: brings it into memory, or maps it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    read: Callable[[], Tensor]


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as the safetensors format says: a length of eight bytes, then a JSON object."""
    with open(path, "rb") as stream:
        return stream.read(9)[8:] == b"{"


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file; each `read` maps the file anew, so that no more than one tensor of it is held.

    Raises:
        UserError: when the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({_short(error)}).") from error

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor

        return read

    return {name: StoredTensor(name, shape, FLOATS.get(dtype, dtype), reader(name)) for name, (shape, dtype) in found.items()}


def read_shards(index: Path) -> dict[str, StoredTensor]:
    """The tensors of the safetensors files that a shard index names.

    Raises:
        UserError: when the index or a file is missing or damaged, or they disagree; all such problems together.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index} is no index of shards: it has no weight_map.")
    problems: list[str] = []
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted({str(shard) for shard in names.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            problems.append(f"{index} names the file {shard!r}, which is no safetensors file of its own folder.")
        elif not (index.parent / shard).is_file():
            problems.append(f"{index.parent / shard} is missing: {index.name} says that it holds a part of the weights.")
        else:
            try:
                found = read_safetensors(index.parent / shard)
            except UserError as error:
                problems += error.problems
                continue
            listed = {name for name, place in names.items() if str(place) == shard}
            problems += [f"{index.parent / shard} lacks the tensor {name}." for name in sorted(listed - found.keys())]
            problems += [f"{index} does not list the tensor {name} of {shard}." for name in sorted(found.keys() - listed)]
            tensors |= found
    if problems:
        raise UserError(problems)
    return tensors


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote to a file, its tensors mapped where the file's format allows.

    Only plain containers and tensors are read; a file that would need anything else is refused and runs nothing.

    Raises:
        UserError: when the file is missing, damaged or hostile.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_zip(path)
            if (problem := checksum_error(path)) is not None:
                raise UserError(f"{path} is damaged: {problem}.")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f" (it needs {needed[1]})" if needed else ", or is no PyTorch file"
        raise UserError(
            f"{path} holds more than tensors and plain data{reason}; it was not loaded, and nothing in it was run. If it is "
            "yours, save the state_dict() alone."
        ) from error
    except UserError:
        raise
    except Exception as error:  # a restricted unpickler over damaged bytes raises nearly anything
        raise UserError(f"{path} is damaged or no PyTorch file ({_short(error)}).") from error
    return content


def in_memory(name: str, value: Tensor) -> StoredTensor:
    """A tensor that has been read, or mapped, already."""
    dtype = value.dtype if value.dtype in FLOATS.values() else str(value.dtype).removeprefix("torch.")
    return StoredTensor(name, tuple(value.shape), dtype, value.detach)


def stored_tensors(content: dict[str, Any], path: Path) -> dict[str, StoredTensor]:
    """The tensors of a state dict that `read_torch_file` read from path; what is no tensor has a dtype that says so.

    Raises:
        UserError: when a tensor says to be larger than its file, or is not a plain one.
    """
    problems, tensors = [], {}
    size = path.stat().st_size
    for name, value in content.items():
        if not isinstance(value, Tensor):
            tensors[str(name)] = StoredTensor(str(name), (), f"a {type(value).__name__}", torch.Tensor)
        elif value.is_nested or value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            problems.append(f"{path}: the tensor {name} is not a plain dense one.")
        elif math.prod(value.shape) * value.element_size() > min(size, value.untyped_storage().nbytes()):
            problems.append(f"{path}: the tensor {name} says to have the shape {tuple(value.shape)}, more than its file holds.")
        else:
            tensors[str(name)] = in_memory(str(name), value)
    if problems:
        raise UserError(problems)
    n_bytes = sum(value.numel() * value.element_size() for value in content.values() if isinstance(value, Tensor))
    if n_bytes > 2 * size:  # a tied output head may count twice
        raise UserError(f"{path}: its tensors say to have {n_bytes:,} bytes together, more than the file holds.")
    return tensors


def add_checksum(path: Path) -> None:
    """Put a checksum of the whole file into the comment of its archive, which PyTorch leaves empty.

    A zip archive ends with the comment, after two bytes with the comment's length.
    """
    length = (len(CHECKSUM_COMMENT) + 8).to_bytes(2, "little")
    with open(path, "r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        end = stream.tell()
        assert stream.read() == b"\0\0", f"{path} has a comment already"
        found = zlib.crc32(length, _crc32(stream, end))
        stream.seek(end)
        stream.write(length + CHECKSUM_COMMENT + f"{found:08x}".encode())


def has_checksum(path: Path) -> bool:
    """Whether a file carries its checksum."""
    with open(path, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - len(CHECKSUM_COMMENT) - 8))
        return stream.read().startswith(CHECKSUM_COMMENT)


def same_checksum(a: Path, b: Path) -> bool:
    """Whether two files carry one and the same checksum."""
    ends = []
    for path in (a, b):
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - len(CHECKSUM_COMMENT) - 8))
            ends.append(stream.read())
    return ends[0] == ends[1]


def checksum_error(path: Path) -> str | None:
    """What is wrong with a file that carries its checksum; None if nothing is, or it has none."""
    if not has_checksum(path):
        return None
    with open(path, "rb") as stream:
        found = f"{_crc32(stream, os.fstat(stream.fileno()).st_size - len(CHECKSUM_COMMENT) - 8):08x}"
        promised = stream.read()[len(CHECKSUM_COMMENT) :].decode("ascii", errors="replace")
    return None if found == promised else f"its checksum is {found}, not the stored {promised}"


def _crc32(stream: BinaryIO, end: int) -> int:
    """The checksum of a file's bytes before end, where it leaves the stream."""
    found = 0
    stream.seek(0)
    while (left := end - stream.tell()) > 0:
        found = zlib.crc32(stream.read(min(left, 1 << 22)), found)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        UserError: when the file cannot be read, is no JSON object, or is far too large for what it should be.
    """
    if path.is_file() and path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, far too many for what it should be; it was not read.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it cannot be read as JSON ({_short(error)}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds a {type(content).__name__}, not a JSON object.")
    return content


def tables(content: Any, *, most: int = 2000) -> list[dict[Any, Any]]:
    """The dicts within nested containers of plain data, such as settings are.

    Raises:
        UserError: when there are far more parts than settings have, as where something contains itself.
    """
    found, waiting, seen = [], [content], 0
    while waiting:
        if (seen := seen + 1) > most:
            raise UserError("The stored settings have far too many parts.")
        node = waiting.pop()
        if isinstance(node, dict):
            found.append(node)
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else []
    return found


def _check_zip(path: Path) -> None:
    """Refuse an archive whose parts would be larger in memory than the file is, as PyTorch never writes one."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > path.stat().st_size:
        raise UserError(f"{path} is damaged or no PyTorch file (its parts are larger than the file).")


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
