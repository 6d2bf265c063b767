"""Check a file of `torch.save` before `torch.load` reads it.

`torch.load(weights_only=True)` (PyTorch 2.13) runs no code of a file, but the file chooses the arguments of some functions: 200
bytes are enough for `bytearray(3_000_000_000)`. Also, a few lists that share their parts can stand for 2**60 values, and whatever
visits them never ends. So all of this is refused here, along with tensors that no state dict needs, such as sparse ones.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from gpt_pretrain.system.number_keys import KeyCounter, check_key
from gpt_pretrain.system.pickle_rules import Call, InertObject, PickledName, PickledReference, PickleRules
from gpt_pretrain.system.pickles import read_pickle
from gpt_pretrain.system.reading import DamagedFileError, open_regular
from gpt_pretrain.system.shown_values import short_repr

MAX_DIMENSIONS = 64
LENGTHS_IN_HEADER, HEADER_BYTES = 26, 30  # in the header of a zip member: the offset of two lengths, and the offset of the name
MAX_RECORDS = 200_000  # A record takes 600 bytes of memory, and as little as 80 bytes of the file.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # Source: MAGIC_NUMBER in torch/serialization.py, of files before PyTorch 1.6
ENCODINGS = ("latin1", "latin-1", "utf-8", "utf8", "ascii")  # Some others take quadratic time, or expand a text.
# The dtypes of typed storages. Any other storage states its size in bytes. Source: torch/storage.py.
STORAGE_DTYPES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16},
    **{"CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
    **{"ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128},
}


@dataclass(frozen=True)
class _TensorStandIn:
    """Stands for a tensor that the file would build."""


Build = Callable[[str, torch.dtype, int, tuple[int, ...], tuple[int, ...]], torch.Tensor]


class _StorageSizes:
    """Collects the sizes that the pickles of a file state for its storages, and checks that they fit into the file.

    Args:
        file_size: Bytes of the file.
        build: Builds a tensor from the key of its storage, its dtype, offset, size and stride. None builds a stand-in.
    """

    def __init__(self, file_size: int, build: Build | None = None) -> None:
        self.file_size = file_size
        self._build = build
        self._sizes: dict[str, int] = {}
        self.item_bytes: dict[str, int] = {}

    def rebuild(self, reference: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        """Check that a tensor lies within its storage."""
        count = self._count(reference)
        if len(size) > MAX_DIMENSIONS or len(stride) > MAX_DIMENSIONS:
            raise DamagedFileError(f"a tensor has more than {MAX_DIMENSIONS} dimensions")
        numbers = [offset, *size, *stride]
        if not all(isinstance(number, int) and 0 <= number < 1 << 62 for number in numbers) or len(size) != len(stride):
            raise DamagedFileError("a tensor has an invalid shape")
        end = offset + 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if 0 not in size and end > count:
            raise DamagedFileError(f"a tensor claims the shape {short_repr(tuple(size))}, more than its storage holds")
        if any(isinstance(part, dict) and part for part in rest):
            raise DamagedFileError("a tensor has hooks, or is stored as the negative or the conjugate of another")
        dtype = STORAGE_DTYPES.get(reference.key[1].name.rpartition(".")[2])
        # If the storage has no type, the second to last argument is the dtype of the tensor.
        names = [_DTYPES[part.name] for part in rest if isinstance(part, PickledName) and part.name in _DTYPES]
        dtype = dtype if dtype is not None else next(iter(names), None)
        if self._build is None or dtype is None:
            return _TensorStandIn()
        if any(part is not None for part in reference.key[5:]):
            raise DamagedFileError("a storage is a part of another, as PyTorch wrote them before 0.4")
        return self._build(reference.key[2], dtype, offset, tuple(size), tuple(stride))

    def _count(self, reference: Any) -> int:
        """Return the number of items in the storage of a tensor."""
        if not isinstance(reference, PickledReference):
            raise DamagedFileError("a tensor has no storage")
        kind, storage, key, _, count, *_ = reference.key
        if kind != "storage" or not isinstance(storage, PickledName) or not isinstance(key, str) or not isinstance(count, int):
            raise DamagedFileError("a storage is not described as PyTorch does")
        dtype = STORAGE_DTYPES.get(storage.name.rpartition(".")[2])
        self.item_bytes[key] = 1 if dtype is None else dtype.itemsize
        n_bytes = count * self.item_bytes[key]
        self._sizes[key] = max(self._sizes.get(key, 0), n_bytes)
        return count

    def check_records(self, record_sizes: Mapping[str, int]) -> None:
        """Check that the archive holds as many bytes for each storage as the pickle states."""
        for key, n_bytes in self._sizes.items():
            if n_bytes > (found := record_sizes.get(f"data/{key}", 0)):
                raise DamagedFileError(f"a tensor claims {n_bytes:,} bytes, and the archive has {found:,} of them")

    def n_bytes(self, key: str) -> int:
        """Return the bytes of a storage, as the file's tensors state them."""
        return self._sizes.get(key, 0)

    def check_total(self) -> None:
        """Check that all storages together fit into the file."""
        if (total := sum(self._sizes.values())) > self.file_size:
            raise DamagedFileError(f"its tensors claim {total:,} bytes in total, more than the file has")


def check_torch_zip(path: Path) -> None:
    """Check the archive that `torch.save` writes today.

    Raises:
        DamagedFileError: If it holds anything but plain data and dense tensors that fit into the file.
    """
    _check_zip_parts(path, inert=False)


def check_legacy_file(path: Path) -> None:
    """Check a file that PyTorch before 1.6 wrote: five pickles, followed by the bytes of the storages.

    Raises:
        DamagedFileError: If it is no such file, or holds anything but plain data and dense tensors that fit into the file.
    """
    _check_legacy_parts(path, inert=False)


def read_inert(path: Path) -> Any:
    """Read a file of `torch.save` that holds objects of unknown classes.

    Tensors are mapped, and an `InertObject` stands for each other object: nothing is imported or called. The file is read twice,
    and the first pass checks all sizes before the second builds tensors.

    Raises:
        DamagedFileError: If the file is damaged, holds tensors that do not fit into it, or is made to run a command.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        content, offsets = _check_zip_parts(path, inert=True)
        return _read(io.BytesIO(content), _StorageSizes(size, _mapped(path, offsets)), size=len(content), inert=True)
    start, offsets = _check_legacy_parts(path, inert=True)
    with open_regular(path) as stream:
        stream.seek(start)
        return _read(stream, _StorageSizes(size, _mapped(path, offsets)), size=size, inert=True)


def _record_sizes(path: Path, reader: Any, records: list[str]) -> dict[str, int]:
    """Return the number of bytes of each record in an archive.

    The reader of PyTorch 2.11 does not tell them. They are then read from the archive's index, and each record must begin where
    the reader finds it.

    Raises:
        DamagedFileError: If the index and PyTorch's reader disagree.
    """
    if hasattr(reader, "get_record_size"):
        return {name: reader.get_record_size(name) for name in records}
    sizes = {}
    with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        for name in records:
            entry = entries.get(name)
            if entry is None or entry.compress_type != zipfile.ZIP_STORED:
                raise DamagedFileError("its parts differ from its index")
            stream.seek(entry.header_offset + LENGTHS_IN_HEADER)
            name_length, extra_length = struct.unpack("<HH", stream.read(4))
            if reader.get_record_offset(name) != entry.header_offset + HEADER_BYTES + name_length + extra_length:
                raise DamagedFileError("its parts differ from its index")
            sizes[name] = entry.file_size
    return sizes


def _check_zip_parts(path: Path, *, inert: bool) -> tuple[bytes, dict[str, int]]:
    """Check an archive. Return its pickle, and the offsets of its storages in the file."""
    size = path.stat().st_size
    # This is the reader that torch.load uses. Another one could find other content in an archive that was made to deceive it.
    reader = torch._C.PyTorchFileReader(str(path))
    records = reader.get_all_records()
    if len(records) > MAX_RECORDS:
        raise DamagedFileError(f"it has more than {MAX_RECORDS:,} parts")
    record_sizes = _record_sizes(path, reader, records)
    if sum(record_sizes.values()) > size:
        raise DamagedFileError("its parts are larger than the file")
    content = reader.get_record("data.pkl")
    sizes = _StorageSizes(size)
    _read(io.BytesIO(content), sizes, size=len(content), inert=inert)
    sizes.check_total()
    sizes.check_records(record_sizes)
    if inert and "byteorder" in records and reader.get_record("byteorder") != sys.byteorder.encode():
        raise DamagedFileError("its numbers have the byte order of another machine")
    # PyTorch's own type hints lack this method.
    return content, {key: reader.get_record_offset(f"data/{key}") for key in sizes.item_bytes}  # type: ignore[attr-defined]


def _check_legacy_parts(path: Path, *, inert: bool) -> tuple[int, dict[str, int]]:
    """Check an old file. Return the offset of its content, and the offsets of its storages."""
    size = path.stat().st_size
    with open_regular(path) as stream:
        magic, *_ = parts = [_read(stream, sizes := _StorageSizes(size), size=size)]
        if magic != LEGACY_MAGIC:
            raise DamagedFileError("it does not begin as PyTorch's files do")
        parts += [_read(stream, sizes, size=size) for _ in range(2)]
        start = stream.tell()
        parts += [_read(stream, sizes, size=size, inert=inert), _read(stream, sizes, size=size)]
        sizes.check_total()
        if not isinstance(parts[4], list) or not all(isinstance(key, str) for key in parts[4]):
            raise DamagedFileError("it does not list its storages")
        return start, _legacy_offsets(stream, parts[4], sizes) if inert else {}


def _legacy_offsets(stream: IO[bytes], keys: list[str], sizes: _StorageSizes) -> dict[str, int]:
    """Return the offset of each storage's bytes in an old file. They follow the number of its items."""
    offsets = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        if count * sizes.item_bytes.get(key, 1) != sizes.n_bytes(key):
            raise DamagedFileError("a storage has another size than its tensors state")
        offsets[key] = stream.tell()
        stream.seek(sizes.n_bytes(key), io.SEEK_CUR)
    if stream.tell() > sizes.file_size:
        raise DamagedFileError("it ends before its tensors do")
    return offsets


def _mapped(path: Path, offsets: Mapping[str, int]) -> Build:
    """Return a function that builds tensors by mapping their bytes from a file."""
    whole = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)

    def build(key: str, dtype: torch.dtype, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        if 0 in size:
            return torch.empty(size, dtype=dtype)
        end = 1 + offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        part = whole[offsets[key] : offsets[key] + end * dtype.itemsize]
        return torch.empty(0, dtype=dtype).set_(part, offset, size, stride)  # type: ignore[call-overload, no-any-return]

    return build


def _read(stream: IO[bytes], sizes: _StorageSizes, *, size: int, inert: bool = False) -> Any:
    return read_pickle(stream, _rules(sizes, inert=inert), size=size)


def _rules(sizes: _StorageSizes, *, inert: bool) -> PickleRules:
    keys = KeyCounter()
    calls: dict[str, Call] = {
        "collections.OrderedDict": partial(_dict, keys),
        "collections.Counter": partial(_dict, keys),
        "builtins.set": partial(_set, keys),
        "builtins.complex": lambda *parts: _plain(parts, "complex"),
        "_codecs.encode": _encode,
        "torch.Size": lambda *parts: _plain(parts, "torch.Size"),
        "torch.device": lambda *parts: _plain(parts, "torch.device"),
        "torch._utils._rebuild_tensor": sizes.rebuild,
        "torch._utils._rebuild_tensor_v2": sizes.rebuild,
        "torch._utils._rebuild_tensor_v3": sizes.rebuild,
        "torch._utils._rebuild_parameter": _parameter,
    }
    if inert:
        calls |= {
            "builtins.set": lambda *items: InertObject("builtins.set", items),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._tensor._rebuild_from_type_v2": _rebuild_from_type(dict(calls)),
        }
    return PickleRules(calls, _NAMES, references=True, build=_ignore_state if inert else _check_state, inert=inert)


def _dict(counter: KeyCounter, *arguments: Any) -> dict[Any, Any]:
    """Return a plain dict in place of an OrderedDict or a Counter."""
    for argument in arguments:
        for number, key in enumerate(argument if isinstance(argument, dict) else [pair[0] for pair in argument]):
            check_key(key)
            counter.add(key, number)
    return dict(*arguments)


def _set(counter: KeyCounter, items: Iterable[Any] = ()) -> set[Any]:
    items = list(items)
    for number, item in enumerate(items):
        check_key(item)
        counter.add(item, number)
    return set(items)


def _encode(text: Any, encoding: Any) -> bytes:
    """Return what `_codecs.encode` would. Python 3 stores bytes with it in the protocols of Python 2."""
    if not isinstance(text, str) or encoding not in ENCODINGS:
        raise DamagedFileError(f"it encodes a text as {short_repr(encoding)}")
    return text.encode(encoding)


def _plain(parts: Any, name: str) -> Any:
    flat = [value for part in parts for value in (part if isinstance(part, list | tuple) else (part,))]
    if not all(isinstance(value, int | float | str) for value in flat):
        raise DamagedFileError(f"it calls {name} with {short_repr(parts)}")
    return tuple(flat)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Any:
    if not isinstance(data, _TensorStandIn) or not isinstance(requires_grad, bool) or hooks:
        raise DamagedFileError("a parameter is not described as PyTorch does")
    return data


def _rebuild_from_type(calls: Mapping[str, Call]) -> Call:
    """Return a stand-in that builds a tensor of a subclass, or with attributes of its own, as a plain tensor."""

    def rebuild(function: Any, kind: Any, arguments: Any, _: Any) -> Any:
        name = function.name if isinstance(function, PickledName) else ""
        if name.startswith("torch._utils._rebuild_tensor") and name in calls:
            return calls[name](*arguments)
        return InertObject(name, (kind, arguments))

    return rebuild


def _ignore_state(target: Any, state: Any) -> None:
    """Ignore the attributes that a pickle would give to plain values and tensors."""


def _check_state(target: Any, state: Any) -> None:
    """Check the only attributes that may be set: the `_metadata` of a state_dict()."""
    if not isinstance(target, dict) or not isinstance(state, dict) or state.keys() - {"_metadata"}:
        raise DamagedFileError(f"it sets attributes of a {type(target).__name__}")


_STORAGES = {f"{storage.__module__}.{storage.__name__}" for storage in torch._storage_classes}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_NAMES = _STORAGES | _DTYPES.keys()
