"""Make runs and sweeps as a stranger may send them: valid in form, with changed content and a correct checksum."""

from __future__ import annotations

import copy
import io
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint
from gpt_pretrain.checkpoints.serialization.checksum import LENGTH, PREFIX
from gpt_pretrain.system.pickles import read_pickle

RUN_FILES = ("config.yaml", "run.json", "metrics.csv", "samples.txt", "train.log")
LONGER = 8  # optimizer steps: twice those of `finished_run`, so that there is something left to train

# Settings of a model that trains four steps in a second.
SMALL = [
    *("model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16", "tokenizer=byte"),
    *("data.stride=350", "trainer.max_steps=4", "trainer.accelerator=cpu", "trainer.precision=32-true", "compile=false"),
    *("eval_iter=1", "data.num_workers=0", "logger=csv", "sampler.max_new_tokens=5", "callbacks.loss_curve=false"),
]


def no_change(content: dict[str, Any]) -> None:
    """Leave a checkpoint as it is."""


def hostile_run(base: Path, out: Path, change: Callable[[dict[str, Any]], object] = no_change) -> Path:
    """Copy a run, and change what its last checkpoint holds. Like a stranger's run, it has no signature that is valid here.

    Args:
        base: The run to copy, such as the fixture `finished_run`.
        out: The new folder; one that exists is replaced.
        change: Changes the content of the checkpoint in place. Its settings already ask for LONGER steps.
    """
    if out.exists():
        shutil.rmtree(out)
    (out / "checkpoints").mkdir(parents=True)
    for name in RUN_FILES:
        if (base / name).exists():
            shutil.copy(base / name, out / name)
    content = copy.deepcopy(torch.load(base / "checkpoints" / "last.ckpt", weights_only=True))
    content["config"]["trainer"]["max_steps"] = LONGER
    content.pop("settings_signature", None)
    change(content)
    write_checkpoint(content, out / "checkpoints" / "last.ckpt")
    return out


def hostile_sweep(out: Path, *, task: Sequence[str], hydra: Sequence[str] = (), script: str = "train") -> Path:
    """Make the folder of a sweep that has not begun, whose settings hold these overrides.

    Args:
        task: The overrides of the script's own settings.
        hydra: The overrides of Hydra's settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {"hydra": {"job": {"name": script}, "overrides": {"hydra": list(hydra), "task": list(task)}}}
    (out / "multirun.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return out


def shared_list(depth: int = 60) -> list[Any]:
    """Return lists that stand for 2**depth values."""
    value: list[Any] = [0]
    for _ in range(depth):
        value = [value, value]
    return value


def save_with_checksum(content: Any, path: Path) -> Path:
    """Write a checkpoint as this program does, without its own checks of the content."""
    torch.save(content, path)
    add_checksum(path)
    return path


def add_checksum(path: Path) -> None:
    """Add a checksum to a zip archive that has no comment, as `SummedStream` does while it writes."""
    content = path.read_bytes()
    assert content.endswith(b"\0\0"), f"{path} has a comment already"
    content = content[:-2] + LENGTH.to_bytes(2, "little")
    path.write_bytes(content + PREFIX + f"{zlib.crc32(content):08x}".encode())


def read_plain_pickle(content: bytes) -> Any:
    """Read a pickle of plain values, lists, tuples and dicts."""
    return read_pickle(io.BytesIO(content), size=len(content))
