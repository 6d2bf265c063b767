"""Writing checkpoints so that a whole one always exists, and reading them without running anything in them."""

from __future__ import annotations

import logging
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch

from gpt_pretrain.checkpoints.sharded import assembled
from gpt_pretrain.checkpoints.tensor_files import add_checksum, has_checksum, read_torch_file
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.files import replacing

Result = TypeVar("Result")

RESUME_FIELDS = {
    "loops": dict,
    "optimizer_states": list,
    "global_step": int,
    "tokens_seen": int,
    "train_losses": list,
    "config": dict,
    "callbacks": dict,
    "lr_schedulers": list,
    "lr_scale": float,
    "skipped": list,
    "text_sha256": str,
}

log = logging.getLogger(__name__)


def write_checkpoint(content: dict[str, Any], target: Path) -> None:
    """Write a checkpoint beside its target, read it back, flush it to disk, and only then rename it over the target.

    Raises:
        OSError: when any of that fails; the target is then as it was.
        UserError: when the content could not be loaded again.
    """
    with replacing(target) as scratch:
        _save(content, scratch)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Make target a file of its own with source's content, as safely as `write_checkpoint`."""
    with replacing(target) as scratch:
        shutil.copyfile(source, scratch)


def first_whole(paths: Iterable[Path], read: Callable[[Path], Result]) -> Result:
    """What `read` makes of the first file that it can; files that it refuses are reported.

    Raises:
        UserError: what was wrong with the first, when all are refused.
    """
    refused: list[UserError] = []
    for path in paths:
        try:
            result = read(path)
        except UserError as error:
            refused.append(error)
            continue
        for problem in refused:
            log.warning("%s The newest whole checkpoint is %s.", problem, path)
        return result
    raise refused[0]


def read_checkpoint(path: Path, *, resumable: bool = False, assemble: bool = True) -> dict[str, Any]:
    """A checkpoint's content, its tensors mapped from the file into memory.

    Only plain containers and tensors are read; a file that would need anything else is refused and runs nothing.

    Args:
        resumable: whether the state of the training must be there, beside the weights.
        assemble: whether the tensors of a checkpoint in pieces are to be read from its other files.

    Raises:
        UserError: when the file is missing, damaged, hostile or no checkpoint of a GPTModel.
    """
    content = read_torch_file(path)
    if not has_checksum(path):
        raise UserError(f"{path} is damaged, or was not written by this program: it has no checksum.")
    wanted = {"state_dict": dict, "architecture": dict, "tokenizer": str} | (RESUME_FIELDS if resumable else {})
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of this program: it holds a {type(content).__name__}.")
    lacking = [name for name, kind in wanted.items() if not isinstance(content.get(name), kind)]
    if lacking:
        raise UserError(f"{path} is no checkpoint of this program, or not a whole one: it lacks {', '.join(lacking)}.")
    return assembled(content, path) if "shards" in content and assemble else content


def _save(content: dict[str, Any], path: Path) -> None:
    """Write content, compare what the disk holds with PyTorch's checksums of it, and add one of the whole file."""
    try:
        torch.save(content, path)
    except RuntimeError as error:  # PyTorch's word for a write that failed
        raise OSError("PyTorch could not write all of it; the disk may be full") from error
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise OSError(f"what was written cannot be read back ({error})") from error
    if damaged is not None:
        raise OSError(f"what was written cannot be read back ({damaged} differs)")
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            "The checkpoint would hold more than tensors and plain data, and could never be loaded. The state_dict() of your own "
            f"callbacks must give numbers, texts, lists and dicts only ({str(error).strip().splitlines()[-1][:200]})."
        ) from error
    add_checksum(path)
