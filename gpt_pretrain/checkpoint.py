"""Writing checkpoints so that a whole one always exists, and reading them without running anything in them."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.formats.files import read_torch_file

RESUME_FIELDS = {
    "loops": dict,
    "optimizer_states": list,
    "global_step": int,
    "tokens_seen": int,
    "train_losses": list,
    "config": dict,
}


def write_checkpoint(content: dict[str, Any], target: Path) -> None:
    """Write a checkpoint beside its target, flush it to disk and rename it over the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = _beside(target)
    try:
        with open(scratch, "wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def replace_with_copy(source: Path, target: Path) -> None:
    """Make target the same file as source, at once: a second name for it where the file system can, else a copy."""
    scratch = _beside(target)
    try:
        try:
            os.link(source, scratch)
        except OSError:
            shutil.copyfile(source, scratch)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def read_checkpoint(path: Path, *, resumable: bool = False) -> dict[str, Any]:
    """A checkpoint's content, its tensors mapped from the file into memory.

    Only plain containers and tensors are read; a file that would need anything else is refused and runs nothing.

    Args:
        resumable: whether the state of the training must be there, beside the weights.

    Raises:
        UserError: when the file is missing, damaged, hostile or no checkpoint of a GPTModel.
    """
    content = read_torch_file(path)
    wanted = {"state_dict": dict, "architecture": dict, "tokenizer": str} | (RESUME_FIELDS if resumable else {})
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of this program: it holds a {type(content).__name__}.")
    lacking = [name for name, kind in wanted.items() if not isinstance(content.get(name), kind)]
    if lacking:
        raise UserError(f"{path} is no checkpoint of this program, or not a whole one: it lacks {', '.join(lacking)}.")
    return content


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
