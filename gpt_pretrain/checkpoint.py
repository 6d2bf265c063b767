"""Writing checkpoints so that a whole one always exists, and reading them without running anything in them."""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gpt_pretrain.config import GPTConfig
from gpt_pretrain.errors import UserError
from gpt_pretrain.model import GPTModel

RESUME_FIELDS = {
    "loops": dict,
    "optimizer_states": list,
    "global_step": int,
    "tokens_seen": int,
    "train_losses": list,
    "config": dict,
}
MODEL_PREFIX = "model."  # of the model's tensors in a LightningModule's state dict


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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such checkpoint.") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors and plain data, or is no PyTorch file; it was not loaded.") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or no checkpoint ({type(error).__name__}: {str(error).splitlines()[0]}).") from error
    wanted = {"state_dict": dict, "architecture": dict, "tokenizer": str} | (RESUME_FIELDS if resumable else {})
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of this program: it holds a {type(content).__name__}.")
    lacking = [name for name, kind in wanted.items() if not isinstance(content.get(name), kind)]
    if lacking:
        raise UserError(f"{path} is no checkpoint of this program, or not a whole one: it lacks {', '.join(lacking)}.")
    return content


def load_model(path: Path) -> tuple[GPTModel, str]:
    """Rebuild a checkpoint's model unaided.

    Returns:
        The model in fp32, on the CPU, in eval mode, and its tokenizer's name.

    Raises:
        UserError: as `read_checkpoint`, and when the tensors do not fit the stored architecture.
    """
    content = read_checkpoint(path)
    try:
        config = GPTConfig.from_dict(content["architecture"])
    except UserError as error:
        raise UserError(f"{path}: {problem}" for problem in error.problems) from error
    with torch.device("meta"):
        model = GPTModel(config)
    assign_weights(model, content["state_dict"], source=path)
    return model.eval(), str(content["tokenizer"])


def assign_weights(model: GPTModel, state_dict: Mapping[str, Any], *, source: Path) -> None:
    """Give a model, meta device included, the weights of a LightningModule's state dict, in fp32.

    Raises:
        UserError: naming all missing, unexpected and misshapen tensors; then nothing was loaded.
    """
    found = {name.removeprefix(MODEL_PREFIX): value for name, value in state_dict.items()}
    wanted = model.state_dict()
    problems = [f"{source}: the tensor {name} is missing." for name in wanted.keys() - found.keys()]
    problems += [f"{source}: the tensor {name} is not one of this model's." for name in found.keys() - wanted.keys()]
    problems += [
        f"{source}: the tensor {name} has shape {_shape(found[name])}, the model needs {_shape(value)}."
        for name, value in wanted.items()
        if name in found and _shape(found[name]) != _shape(value)
    ]
    if problems:
        raise UserError(sorted(problems))
    model.load_state_dict({name: value.float() for name, value in found.items()}, assign=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
