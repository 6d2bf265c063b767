"""Read tensor files that anybody may have written. Nothing in them is run, and no size that they state is trusted."""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt_pretrain.checkpoints.recognition.tensor_names import find_slot
from gpt_pretrain.checkpoints.serialization.checksum import checksum_error
from gpt_pretrain.checkpoints.serialization.opened_safetensors import OpenedSafetensors
from gpt_pretrain.checkpoints.serialization.torch_pickles import check_legacy_file, check_torch_zip, read_inert
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.json_files import parse_json, read_json
from gpt_pretrain.system.pickle_rules import RefusedNameError
from gpt_pretrain.system.reading import DamagedFileError, open_regular

MAX_HEADER = 100_000_000  # bytes; safetensors allows no more
INCOMPLETE = "{} is incomplete: {}. Download or copy it again."
FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What a user can do about a file of PyTorch that is refused, by the beginning of the name that it would import.
REMEDIES = {
    r"torch\.storage\._load_from_bytes": "It was written with pickle.dump. Write it with torch.save(model.state_dict(), FILE).",
    r"numpy\.": "If its tensors are NumPy arrays, convert them with torch.from_numpy first.",
    r"__torch__": "It is a TorchScript program: save the state_dict() of the model that it was made from.",
    r"torch\._utils\._rebuild_meta": "Its tensors are on the device meta, which keeps no values.",
    r"torch\._utils\._rebuild_(sparse|q)": "Its tensors are sparse or quantized: save the model's original weights.",
}
DEFAULT_REMEDY = "If the file is yours, save only the state_dict()."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that may still be in its file.

    Args:
        name: The stored name.
        shape: The stored shape.
        dtype: The stored dtype, or the file's own name for it if it is not a floating-point type.
        read: Reads or maps the tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    read: Callable[[], Tensor]


def is_safetensors(path: Path) -> bool:
    """Return whether a file starts as the safetensors format requires: a length of eight bytes, then a JSON object."""
    with open_regular(path) as stream:
        head = stream.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file. Each is read when it is needed, so memory holds one at a time.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        if "os error 19" in str(error):  # ENODEV; the library's exception has no errno
            raise UserError(
                f"{path} is on a file system that cannot map files into memory, which this format needs. Copy it to another disk."
            ) from error
        if (end := _stated_size(path)) is not None and end > (size := path.stat().st_size):
            raise UserError(INCOMPLETE.format(path, f"by its header it has {end:,} bytes, but the file has {size:,}")) from error
        if _starts_as_zip(path):  # PyTorch goes by the suffix as well, so the file must be renamed.
            new_name = path.with_suffix(".pt").name
            raise UserError(
                f"{path} was written by torch.save, despite its name. Rename it, for example to {new_name}"
            ) from error
        raise UserError(
            f"{path} is damaged or is not a safetensors file ({_first_sentence(error)}). Download or copy it again."
        ) from error

    opened = OpenedSafetensors(path)
    return {
        name: StoredTensor(name, shape, FLOAT_DTYPES.get(dtype, dtype), partial(opened.read, name))
        for name, (shape, dtype) in found.items()
    }


def _stated_size(path: Path) -> int | None:
    """Return the size of a safetensors file by its header, or None if the header cannot be read."""
    try:
        with open_regular(path) as stream:
            start = int.from_bytes(stream.read(8), "little")
            if 8 + start > path.stat().st_size:
                return 8 + start if start <= MAX_HEADER else None
            header = parse_json(stream.read(min(start, MAX_HEADER)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + start + max(ends, default=0)
    except (OSError, DamagedFileError, LookupError, TypeError):
        return None


def read_torch_file(path: Path) -> Any:
    """Read a file that `torch.save` wrote, with its tensors mapped if the format of the file allows it.

    Only plain containers and tensors are read. A file that needs anything else is rejected, and nothing in it is run.

    Raises:
        UserError: If the file is missing, damaged or hostile.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file." if not path.exists() else f"{path} is not a regular file.")
        if not path.stat().st_size:
            raise UserError(INCOMPLETE.format(path, "it is empty"))
        zipped = zipfile.is_zipfile(path)
        if not zipped and _starts_as_zip(path):
            raise UserError(INCOMPLETE.format(path, "it begins as PyTorch's files do, but its end is missing"))
        if zipped and (problem := checksum_error(path)) is not None:
            raise UserError(f"{path} is damaged: {problem}.")
        (check_torch_zip if zipped else check_legacy_file)(path)
        if zipped:
            _check_zip(path)
        try:
            return load_plain(path, mapped=zipped)
        except pickle.UnpicklingError:
            # The file has passed all checks, but PyTorch (2.13) loads only pickles of protocol 2 without running them.
            return read_inert(path)
    except RefusedNameError as error:
        raise UserError(
            f"{path} holds more than tensors and plain data ({error}). It was not loaded, and nothing in it was run. "
            + next((remedy for pattern, remedy in REMEDIES.items() if re.match(pattern, error.name)), DEFAULT_REMEDY)
        ) from error
    except UserError:
        raise
    # The restricted unpickler can raise almost any exception on damaged bytes.
    except Exception as error:
        raise UserError(f"{path} is damaged or is not a PyTorch file ({_first_sentence(error)}).") from error


def load_plain(path: Path, *, mapped: bool) -> Any:
    """Load plain data and tensors. With `mapped`, tensors are mapped from the file if the file system can do so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except RuntimeError as error:
            if not mapped or "unable to mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


def read_torch_content(path: Path) -> tuple[Any, bool]:
    """Read a file that `torch.save` wrote, even if it holds objects of unknown classes.

    Returns:
        The content of the file, and whether it may contain an `InertObject`.

    Raises:
        UserError: As in `read_torch_file`.
    """
    try:
        return read_torch_file(path), False
    except UserError as error:
        if not isinstance(error.__cause__, RefusedNameError):
            raise
        refused = error
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
        return read_inert(path), True
    # The message of the strict reader is the better one: it names what the file needs.
    except Exception:
        raise refused from None


def loaded_tensor(name: str, value: Tensor) -> StoredTensor:
    """Describe a tensor that is already in memory or mapped."""
    dtype = value.dtype if value.dtype in FLOAT_DTYPES.values() else str(value.dtype).removeprefix("torch.")
    return StoredTensor(name, tuple(value.shape), dtype, value.detach)


def state_dict_tensors(content: dict[str, Any], path: Path) -> dict[str, StoredTensor]:
    """Describe the tensors of a state dict that was read from a path. For any other value, the dtype names its type.

    Raises:
        UserError: If a tensor claims to be larger than its file, or is not a plain dense tensor.
    """
    problems, tensors = [], {}
    size = path.stat().st_size
    for name, value in content.items():
        if not isinstance(value, Tensor):
            tensors[str(name)] = StoredTensor(str(name), (), f"a {type(value).__name__}", torch.Tensor)
        elif value.is_nested or value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            problems.append(f"{path}: the tensor {name} is not a plain dense tensor.")
        # An expanded tensor may repeat one stored number any number of times.
        elif math.prod(value.shape) * value.element_size() > size:
            problems.append(f"{path}: the tensor {name} claims the shape {tuple(value.shape)}, more than its file holds.")
        else:
            tensors[str(name)] = loaded_tensor(str(name), value)
    if problems:
        raise UserError(problems)
    # A file may have several names for one tensor of the model. Only one of them is read, so each slot counts once.
    sizes = {
        (found[1] if (found := find_slot(str(name))) is not None else name): value.numel() * value.element_size()
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if (n_bytes := sum(sizes.values())) > 2 * size:
        raise UserError(f"{path}: its tensors claim {n_bytes:,} bytes in total, more than the file holds.")
    return tensors


def is_finite_tensor(values: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity."""
    if values.device.type == "cpu" and values.dtype in FLOAT_DTYPES.values() and values.numel():
        # aminmax() returns NaN if there is one. isfinite() on the whole tensor would need several times its memory.
        return all(bool(value.isfinite()) for value in torch.aminmax(values))
    return bool(values.isfinite().all())


def check_tensor_sizes(content: Any, path: Path) -> None:
    """Check that the tensors in nested containers are not much larger in total than the file that they were read from.

    A tensor may repeat a single stored number any number of times, and would take memory when it is copied.

    Raises:
        UserError: If they are.
    """
    n_bytes, waiting = 0, [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tensor):
            n_bytes += math.prod(node.shape) * node.element_size()
        elif isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list | tuple):
            waiting += node
    # A tied output head counts twice.
    if n_bytes > 2 * path.stat().st_size:
        raise UserError(f"{path}: its tensors claim {n_bytes:,} bytes in total, more than the file holds.")


def read_model_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that belongs to a model and holds an object.

    Raises:
        UserError: If the file cannot be read, is not a JSON object or is far too large.
    """
    try:
        return read_json(path)
    except DamagedFileError as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _starts_as_zip(path: Path) -> bool:
    with open_regular(path) as stream:
        return stream.read(4) == b"PK\x03\x04"


def _check_zip(path: Path) -> None:
    """Reject an archive whose parts are together larger than the file. PyTorch never writes one."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > path.stat().st_size:
        raise UserError(f"{path} is damaged or is not a PyTorch file (its parts are larger than the file).")


def _first_sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0][:200]  # PyTorch adds a guess after its first sentence
