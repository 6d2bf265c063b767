"""What this machine has, and how much of it is taken: memory and disk."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" where there is none


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """What a device is called: a GPU by its maker's name."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_limit(device: torch.device) -> int | None:
    """Bytes that a training may take on a device: a CPU's or a container's memory, what is free on a GPU; None: unknown."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    names = getattr(os, "sysconf_names", {})
    if device.type != "cpu" or "SC_PHYS_PAGES" not in names:
        return None
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(limit, int(CGROUP_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return limit


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure `peak_memory` anew, where the system lets a process do that.

    Source: proc(5), clear_refs.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        CLEAR_REFS.write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has held so far, on a GPU by its tensors, on a CPU by all of it; None: unknown.

    Source: proc(5), VmHWM; getrusage(2) where there is no such file, which counts from the start of the process.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_disk(path: Path) -> int:
    """Bytes free where a path is, or would be."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """A folder that is there: path, or the nearest above it."""
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
