"""Choose the device, and manage its memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.resources import return_freed_memory
from gpt_pretrain.system.shared_cores import share_cores, use_own_cores


def prepare_computing() -> None:
    """Set up this process's memory and threads for computing on a CPU. Call this once, from the computing thread."""
    keep_freed_memory()
    use_own_cores()
    share_cores()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step, instead of returning it to the system.

    Otherwise each step requests zeroed pages again, and page faults take a third of a training step on a CPU. Allocator settings
    in the environment take precedence.

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
    """Return unused memory to the system between two trainings in one process."""
    gc.collect()  # a Trainer and its callbacks are reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return_freed_memory()


def pick_device(name: str) -> torch.device:
    """Return the device with this name. "auto" chooses a GPU if there is one.

    Raises:
        UserError: If this machine has no such device.
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
    """Return the device that Lightning trains on with this accelerator.

    Raises:
        UserError: If this machine has no such accelerator.
    """
    names = {"auto": "auto", "cpu": "cpu", "gpu": "cuda" if torch.cuda.is_available() else "mps", "cuda": "cuda", "mps": "mps"}
    try:
        return pick_device(names[accelerator])
    except KeyError:
        raise UserError(f"trainer.accelerator={accelerator}: must be one of {', '.join(names)}.") from None
    except UserError as error:
        raise UserError(f"trainer.accelerator={accelerator}: this machine has no such device. Choose auto or cpu.") from error
