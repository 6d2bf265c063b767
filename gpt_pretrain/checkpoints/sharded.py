"""A checkpoint in pieces: each rank's rows of the large tensors in a file of its own, and all the rest in one index.

The index is a checkpoint like any other, but for the tensors that are elsewhere: in their place stands where. Under "shards" it
has the folder's name, and of each file its name, its SHA-256 and which rows (first, last + 1) of which tensors it holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.files import sync_file, sync_folder

ELSEWHERE = "elsewhere"  # the key of what stands in a tensor's place
FOLDER = "shards-{:08d}-{}"  # by step, and a name of its own

Rows = dict[str, list[int]]


def map_leaves(content: Any, change: Callable[[str, Any], Any], prefix: str = "") -> Any:
    """Nested dicts and lists with every leaf changed, each told by its path."""
    if isinstance(content, dict):
        return {key: map_leaves(value, change, f"{prefix}/{key}") for key, value in content.items()}
    if isinstance(content, list):
        return [map_leaves(value, change, f"{prefix}/{number}") for number, value in enumerate(content)]
    return change(prefix, content)


def write_rank_file(folder: Path, rank: int, tensors: Mapping[str, Tensor]) -> str:
    """Write one rank's rows, and return the SHA-256 of the file.

    Raises:
        OSError: when that fails.
    """
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / file_name(rank), "wb") as stream:
        stream.write(data)
        sync_file(stream)
    sync_folder(folder)
    return hashlib.sha256(data).hexdigest()


def file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


class Shards:
    """The pieces that an index names, read a few rows at a time.

    Args:
        path: the index.
        content: what it holds.

    Raises:
        UserError: when a file is missing or damaged.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], *, check: bool = True) -> None:
        self.path = path
        self.folder = path.parent / Path(str(content["shards"]["folder"])).name
        self.files: list[dict[str, Any]] = content["shards"]["files"]
        if check:
            for file in self.files:
                self._check(self.folder / Path(file["name"]).name, file["sha256"])

    def _check(self, file: Path, sha256: str) -> None:
        try:
            with open(file, "rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{self.path} is not whole: its part {file.name} cannot be read ({error.strerror}).") from error
        if found != sha256:
            raise UserError(f"{self.path} is damaged: its part {file.name} has another checksum.")

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start to stop (without it) of a tensor.

        Raises:
            UserError: when no file has them.
        """
        parts = []
        for file in self.files:
            begin, end = file["rows"].get(name, (0, 0))
            first, last = max(start, begin), min(stop, end)
            if first < last or (start == stop == begin < end):
                try:
                    with safe_open(self.folder / Path(file["name"]).name, framework="pt") as stored:
                        parts.append(stored.get_slice(name)[first - begin : max(first, last) - begin])
                except (SafetensorError, OSError) as error:
                    raise UserError(f"{self.path} is damaged: {name} cannot be read ({error}).") from error
        found = torch.cat(parts) if parts else torch.empty(0)
        if len(found) != stop - start:
            raise UserError(f"{self.path} is not whole: it lacks rows of {name}.")
        return found


def assembled(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint as it would be in one file.

    Raises:
        UserError: when a part of it is missing or damaged.
    """
    shards = Shards(path, content)

    def replaced(node: Any) -> Any:
        if isinstance(node, dict) and ELSEWHERE in node:
            return shards.rows(node[ELSEWHERE], 0, int(node["rows"]))
        if isinstance(node, dict):
            return {key: replaced(value) for key, value in node.items()}
        return [replaced(value) for value in node] if isinstance(node, list) else node

    return {key: replaced(value) for key, value in content.items() if key != "shards"}
