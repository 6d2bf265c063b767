"""Choices that depend on the machine, each made once and with its reason."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

import torch

from gpt_pretrain.errors import UserError


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step instead of returning it to the system and asking for zeroed pages again.

    Page faults took a third of a training step on a CPU. Settings of the user's own, in the environment, come first.

    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def release_memory() -> None:
    """Give memory that nothing uses any more back to the system, between two trainings of one process."""
    gc.collect()  # a Trainer and its parts refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one.

    Raises:
        UserError: when there is no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name}: this machine has no such device. Choose auto or cpu.") from error
    return device


def accelerator_device(accelerator: str) -> torch.device:
    """The device that Lightning will train on.

    Raises:
        UserError: when this machine has no such accelerator.
    """
    names = {"auto": "auto", "cpu": "cpu", "gpu": "cuda" if torch.cuda.is_available() else "mps", "cuda": "cuda", "mps": "mps"}
    try:
        return pick_device(names[accelerator])
    except UserError as error:
        raise UserError(f"trainer.accelerator={accelerator}: this machine has none. Choose auto or cpu.") from error
