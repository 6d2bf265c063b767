"""The cores, memory and disk space of this machine, and the memory that this process uses."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROCESSES_PER_CORE = 4  # More processes would only wait for each other.
BYTES_PER_PROCESS = 500_000_000  # of this machine's memory; a process of a training needs 400 MB before its first step
CPU_INFO = Path("/proc/cpuinfo")
CLEAR_REFS, STATUS, STATM = Path("/proc/self/clear_refs"), Path("/proc/self/status"), Path("/proc/self/statm")
STACK = 1 << 23  # Bytes that a thread reserves.
MEMINFO, CGROUP_USE = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.current")
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # memory limit of a container; "max" if it has none


def usable_cpus() -> int:
    """Return the number of CPU cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cores() -> int:
    """Return the number of CPU cores that this process may use. A container's quota may lower it."""
    quota = cpu_quota()
    return usable_cpus() if quota is None else min(usable_cpus(), max(1, math.ceil(quota)))


def cpu_quota() -> float | None:
    """Return the processor time in cores that this process's control groups allow, such as 1.5; None without a limit.

    Source: cgroups(7); the kernel's documentation of cgroup v2, cpu.max, and of CFS bandwidth control for v1.
    """
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    quotas = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):  # Limits of parents count. A container sees its own group at the root.
            if folder.is_relative_to(root) and (quota := _group_quota(folder)) is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _group_quota(folder: Path) -> float | None:
    """Return the cores that one control group may use; None without a limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such file
        return None
    return cores if cores > 0 else None  # -1 means no limit in v1


def cpu_name() -> str:
    """Return the product name of the CPU, or its architecture; empty if the system does not show it."""
    return _cpu_info("model name") or platform.processor()


def cpu_features() -> str:
    """Return the system's list of the CPU's instruction sets; empty if there is none."""
    return _cpu_info("flags", "Features")


def _cpu_info(*names: str) -> str:
    """Return the first value with one of these names in the system's description of the CPU; empty if there is none."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def max_processes() -> int:
    """Return the most processes of one training on this machine.

    This is PROCESSES_PER_CORE for each core, or fewer where the memory is small, but at least one for each core or GPU.
    """
    per_cores, memory = PROCESSES_PER_CORE * cores(), machine_memory()
    if memory is not None:
        per_cores = min(per_cores, max(cores(), memory // BYTES_PER_PROCESS))
    if not shutil.which("nvidia-smi") and not shutil.which("rocm-smi"):  # importing torch takes seconds
        return per_cores
    import torch

    return max(per_cores, torch.cuda.device_count())


def device_name(device: torch.device) -> str:
    """Return the product name of a GPU, or the type of another device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_limit(device: torch.device) -> int | None:
    """Return the bytes that training may use: a GPU's free memory, or the memory of machine or container; None if unknown."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return machine_memory() if device.type == "cpu" else None


def machine_memory() -> int | None:
    """Return the bytes of memory of this machine or container; None if unknown."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(limit, int(CGROUP_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return limit


def available_memory() -> int | None:
    """Return the bytes of memory that this machine or container can still give to programs; None if unknown.

    A container's cached files count as used, although they could be dropped.

    Source: proc_meminfo(5), MemAvailable; the kernel's documentation of cgroup v2.
    """
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    available = int(found[1]) * 1024
    try:
        limit, use = (int(file.read_text(encoding="ascii")) for file in (CGROUP_LIMIT, CGROUP_USE))
    except (OSError, ValueError):  # "max", or no container
        return available
    return max(0, min(available, limit - use))


def swap_space() -> int | None:
    """Return the bytes of this machine's swap space; None if unknown.

    Source: proc_meminfo(5), SwapTotal.
    """
    try:
        found = re.search(r"^SwapTotal:\s*(\d+) kB$", MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return None if found is None else int(found[1]) * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of `peak_memory`, if the system allows it.

    Source: proc(5), clear_refs.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        CLEAR_REFS.write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes: of this process's tensors on a GPU, or of the whole process on a CPU; None if unknown.

    Source: proc(5), VmHWM. Systems without it use getrusage(2), which counts from the start of the process.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_memory() -> int | None:
    """Return the bytes of RAM that this process uses now; None if the system does not show it.

    Source: proc(5), statm.
    """
    try:
        return int(STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def private_memory() -> int | None:
    """Return the bytes of RAM that belong to this process alone, without mapped files; None if the system does not show it.

    Source: proc(5), statm.
    """
    try:
        resident, shared = map(int, STATM.read_bytes().split()[1:3])
    except (OSError, ValueError):
        return None
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def bounded_memory(n_bytes: int) -> Iterator[None]:
    """Make the block fail if it needs more than this much additional memory, if the system has such limits.

    Raises:
        MemoryError: If it needs more. A library may raise another error instead.

    Source: setrlimit(2), RLIMIT_DATA, on Linux. Unlike RLIMIT_AS, it does not count address space that is only reserved.
    """
    try:
        before = int(STATM.read_bytes().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    threads = cores() * STACK  # a library may start these threads
    limits = [before + n_bytes + threads, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def return_freed_memory() -> None:
    """Make glibc return freed memory to the system. Otherwise it may keep the memory for this process.

    Source: malloc_trim(3).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def free_disk(path: Path) -> int:
    """Return the free bytes on the file system of a path. The path need not exist."""
    return shutil.disk_usage(nearest_folder(path)).free


def nearest_folder(path: Path) -> Path:
    """Return the path if it is a folder, otherwise the nearest existing parent folder."""
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def process_start(pid: int | None = None) -> float:
    """Return the start time of a process, by default this one, on the clock of time.monotonic.

    Only Linux shows it. On other systems, it is estimated by this process's work so far.

    Source: proc(5), stat, field 22.
    """
    try:
        fields = Path(f"/proc/{pid or os.getpid()}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        age = time.process_time()
    return time.monotonic() - max(age, 0.0)
