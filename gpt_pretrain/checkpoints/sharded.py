"""Write and read sharded checkpoints: a file for each rank with its rows of the large tensors, and an index with all the rest.

The index is a checkpoint like any other, except that a reference replaces each sharded tensor. Its "shards" entry holds the name
of the folder and, for each file, its name, its SHA-256 and the rows (first, last + 1) of each tensor that it contains.

`torch.distributed.checkpoint` is not used, because it gives weaker guarantees (PyTorch 2.13): it loads a file with a flipped bit
without an error, it unpickles its .metadata file without restrictions, and if a save over an older checkpoint is killed midway,
it later loads a mixture of both without an error. Its safetensors storage avoids the pickle, but has no checksums and stores
tensors only.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from gpt_pretrain.checkpoints.serialization.opened_safetensors import OpenedSafetensors
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.files import open_emptied, sync_file, sync_folder
from gpt_pretrain.system.reading import open_regular
from gpt_pretrain.system.shown_values import short_repr

REMEDY = "Copy it again with its folder of shards, or use another checkpoint of the run."
REFERENCE_KEY = "elsewhere"  # marks the dict that replaces a sharded tensor in the index
SHARD_FOLDER = "shards-{:08d}-{}"  # the optimizer step, and a random suffix

RowRanges = dict[str, list[int]]  # for each tensor, the first row and the last + 1


def map_leaves(content: Any, change: Callable[[str, Any], Any], prefix: str = "") -> Any:
    """Apply a function to the path and the value of every leaf of nested dicts and lists."""
    if isinstance(content, dict):
        return {key: map_leaves(value, change, f"{prefix}/{key}") for key, value in content.items()}
    if isinstance(content, list):
        return [map_leaves(value, change, f"{prefix}/{index}") for index, value in enumerate(content)]
    return change(prefix, content)


def write_rank_file(folder: Path, rank: int, tensors: Mapping[str, Tensor]) -> str:
    """Write one rank's rows to its file, and return the SHA-256 of the file.

    Raises:
        OSError: If the file cannot be written.
    """
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    folder.mkdir(parents=True, exist_ok=True)
    with open_emptied(folder / rank_file_name(rank)) as stream:
        stream.write(data)
        sync_file(stream)
    sync_folder(folder)
    return hashlib.sha256(data).hexdigest()


def rank_file_name(rank: int) -> str:
    """Return the name of a rank's file in the folder of shards."""
    return f"rank-{rank:05d}.safetensors"


class ShardReader:
    """Reads rows of the tensors in the files that an index names.

    Args:
        path: The index.
        content: The content of the index.
        check: Compare each file with its SHA-256.

    Raises:
        UserError: If a file is missing or damaged.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], *, check: bool = True) -> None:
        self.path = path
        folder, self.files = _read_index(path, content["shards"])
        self.folder = path.parent / folder
        self._opened: dict[str, OpenedSafetensors] = {}
        self._holders = defaultdict[str, list[tuple[dict[str, Any], int, int]]](list)  # the files with rows of each tensor
        for file in self.files:
            for name, (begin, end) in file["rows"].items():
                self._holders[name].append((file, begin, end))
        if check:
            for file in self.files:
                self._check(self._path_of(file), file["sha256"])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read rows start to stop (exclusive) of a tensor.

        Raises:
            UserError: If no file holds them.
        """
        held = []  # files with some of the rows, each with the first of them in the file and the last + 1
        for file, begin, end in self._holders.get(name, ()):
            first, last = max(start, begin), min(stop, end)
            # Even a rank without rows needs an empty tensor of the right shape and dtype.
            if first < last or (start == stop == begin < end):
                held.append((file, first - begin, max(first, last) - begin))
        # This is checked before anything is read, since an index may list rows twice.
        if sum(last - first for _, first, last in held) != stop - start:
            raise UserError(f"{self.path} is incomplete: rows {start} to {stop} of {name} are missing. {REMEDY}")
        parts = [self._read(file, name, first, last) for file, first, last in held]
        try:
            found = torch.cat(parts) if parts else torch.empty(0)
        except RuntimeError as error:  # The rows have different widths.
            raise UserError(f"{self.path} is damaged: the rows of {name} do not fit together. {REMEDY}") from error
        if len(found) != stop - start:
            raise UserError(f"{self.path} is incomplete: rows {start} to {stop} of {name} are missing. {REMEDY}")
        return found

    def _path_of(self, file: Mapping[str, Any]) -> Path:
        return self.folder / str(file["name"])

    def _read(self, file: Mapping[str, Any], name: str, first: int, last: int) -> Tensor:
        try:
            opened = self._opened.setdefault(file["name"], OpenedSafetensors(self._path_of(file)))
            return opened.read_rows(name, first, last)
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise UserError(f"{self.path} is damaged: {name} cannot be read ({error}). {REMEDY}") from error

    def _check(self, file: Path, sha256: str) -> None:
        try:
            with open_regular(file, within=self.path.parent) as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(
                f"{self.path} is incomplete: its shard {file.name} cannot be read ({error.strerror}). {REMEDY}"
            ) from error
        if found != sha256:
            raise UserError(f"{self.path} is damaged: the checksum of its shard {file.name} does not match. {REMEDY}")


def assemble_shards(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the content of a sharded checkpoint as if it had been written to one file.

    Raises:
        UserError: If a shard is missing or damaged.
    """
    shards, seen = ShardReader(path, content), set[str]()

    def resolve(node: Any) -> Any:
        if isinstance(node, dict) and REFERENCE_KEY in node:
            name, rows = node[REFERENCE_KEY], node.get("rows")
            # If an index could name the same rows twice, a small one could fill the memory.
            if not isinstance(name, str) or name in seen or not isinstance(rows, int) or not _is_row(rows):
                raise UserError(f"{path} is damaged: it holds the invalid reference {short_repr(node)}.")
            seen.add(name)
            return shards.rows(name, 0, rows)
        if isinstance(node, dict):
            return {key: resolve(value) for key, value in node.items()}
        return [resolve(value) for value in node] if isinstance(node, list) else node

    return {key: resolve(value) for key, value in content.items() if key != "shards"}


def _read_index(path: Path, shards: Any) -> tuple[str, list[dict[str, Any]]]:
    """Return the name of the folder of shards, and for each of its files the name, the SHA-256 and the rows.

    Raises:
        UserError: If the entry does not have this form.
    """
    files = shards.get("files") if isinstance(shards, dict) else None
    if not isinstance(files, list) or not _is_name(shards.get("folder")):
        raise UserError(f"{path} is damaged: it does not list its shards.")
    # Only the last part of each stored name counts, so that an index cannot lead out of its own folder.
    folder, found = Path(shards["folder"]).name, list[dict[str, Any]]()
    for file in files:
        rows = file.get("rows") if isinstance(file, dict) else None
        if not isinstance(rows, dict) or not _is_name(file.get("name")) or not isinstance(file.get("sha256"), str):
            raise UserError(f"{path} is damaged: it describes a shard as {short_repr(file)}.")
        if not all(isinstance(span, list | tuple) and len(span) == 2 and all(map(_is_row, span)) for span in rows.values()):
            raise UserError(f"{path} is damaged: it lists invalid rows of its shard {short_repr(file['name'])}.")
        found.append({"name": Path(file["name"]).name, "sha256": file["sha256"], "rows": rows})
    if len({file["name"] for file in found}) < len(found):
        raise UserError(f"{path} is damaged: it lists a shard twice.")
    return folder, found


def _is_name(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and Path(value).name not in ("", "..")


def _is_row(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
