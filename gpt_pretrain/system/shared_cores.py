"""Keep waiting threads of PyTorch from holding a core that other programs need.

A thread that reaches the end of a parallel operation waits for the others. In libgomp, the OpenMP library in PyTorch's packages
for Linux, it spins for 300,000 rounds, about 7 ms, before it sleeps. Beside another program, the awaited thread often needs the
same core. Two trainings with two threads each on two cores took 14 times as long as one alone.

If a process has more OpenMP threads than cores, libgomp spins for only 100 rounds. Idle threads are enough for that, and they
change no result.

Source: libgomp/env.c and libgomp/config/linux/wait.h of GCC 14, gomp_throttled_spin_count_var.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gpt_pretrain.system.resources import cores, usable_cpus

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables for the number of computing threads
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # environment variables for the way in which threads wait
LOOK_SECONDS = 0.5  # between two readings of the computing thread's waiting time for a core
PROBE_SECONDS = 0.1  # of a probe: threads spin again, to see whether a core is free for each of them
FIRST_PAUSE, LONGEST_PAUSE = 4.0, 60.0  # seconds between two probes; each pause is twice as long as the previous one
BUSY_SHARE = 0.1  # of a thread's time; if it waits longer for a core, it shares the core with other programs
MAPS, TASKS, OWN_USAGE = Path("/proc/self/maps"), Path("/proc/self/task"), Path("/proc/thread-self/schedstat")
SOFT_PAUSE = 1  # value of OpenMP's omp_pause_resource_t
_started = threading.Lock()  # held once the watching thread has started

Usage = tuple[int, int]  # a thread's time on a core, and its waiting time for one, in nanoseconds


def use_own_cores() -> None:
    """Limit PyTorch's threads to the cores in its container's quota of processor time.

    More threads would use up the quota by waiting for each other. A number of threads in the environment takes precedence.
    """
    import torch

    if not any(name in os.environ for name in THREAD_SETTINGS) and cores() < torch.get_num_threads():
        torch.set_num_threads(cores())


def share_cores() -> None:
    """Make PyTorch's threads sleep while they wait for each other, whenever other programs need the cores.

    Call this from the computing thread. A second thread checks twice a second whether the first waits for a core. Environment
    variables for the way in which threads wait take precedence.
    """
    import torch

    if any(name in os.environ for name in WAIT_SETTINGS) or torch.get_num_threads() == 1 or sys.platform != "linux":
        return
    read = usage_reader(threading.get_native_id())
    library = load_libgomp()
    if read is not None and library is not None and _started.acquire(blocking=False):
        arguments = (IdleThreads(library), read, time.sleep)
        threading.Thread(target=watch_cores, args=arguments, name="share_cores", daemon=True).start()


class IdleThreads:
    """OpenMP threads that do nothing, one more than there are cores. They belong to the thread that starts them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def start(self) -> None:
        function = ctypes.cast(self._library.omp_get_thread_num, ctypes.c_void_p)  # any function without arguments or effects
        self._library.GOMP_parallel(function, None, ctypes.c_uint(usable_cpus() + 1), ctypes.c_uint(0))

    def stop(self) -> None:
        self._library.omp_pause_resource(SOFT_PAUSE, self._library.omp_get_initial_device())


def watch_cores(idle: IdleThreads, read: Callable[[], Usage], wait: Callable[[float], object]) -> None:
    """Start the idle threads whenever the cores are shared, and stop them when they are not, until the process ends.

    If threads spin beside other programs, the computing thread holds Python's interpreter lock for long. Each check therefore
    needs the lock only twice.
    """
    is_sharing = _is_busy((0, 0), read())
    while True:
        if not is_sharing:
            is_sharing = _look(LOOK_SECONDS, read, wait)
            continue
        pause = FIRST_PAUSE
        while is_sharing:
            idle.start()
            wait(pause)
            idle.stop()
            is_sharing = _look(PROBE_SECONDS, read, wait)
            pause = min(2 * pause, LONGEST_PAUSE)


def _look(seconds: float, read: Callable[[], Usage], wait: Callable[[float], object]) -> bool:
    before = read()
    wait(seconds)
    return _is_busy(before, read())


def _is_busy(before: Usage, after: Usage) -> bool:
    ran, waited = after[0] - before[0], after[1] - before[1]
    return waited > BUSY_SHARE * (ran + waited)


def usage_reader(thread: int) -> Callable[[], Usage] | None:
    """Return a function that reads a thread's running and waiting time; None if the system does not show them.

    Source: the kernel's documentation, scheduler/sched-stats.
    """
    try:
        file = os.open(TASKS / str(thread) / "schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None

    def read() -> Usage:
        ran, waited, _ = os.pread(file, 100, 0).split()
        return int(ran), int(waited)

    return read


def thread_usage() -> Usage:
    """Return the calling thread's running time, and its waiting time for a core.

    If the system does not show the latter, all time without running counts as waiting.
    """
    try:
        ran, waited, _ = map(int, OWN_USAGE.read_bytes().split())
    except (OSError, ValueError):
        ran = 0
    if not ran:
        ran = time.thread_time_ns()
        waited = time.monotonic_ns() - ran
    return ran, waited


def load_libgomp() -> ctypes.CDLL | None:
    """Return PyTorch's libgomp; None if PyTorch uses another OpenMP library.

    Other packages, such as sentencepiece, bring their own libgomp. PyTorch's libgomp does not count its threads.
    """
    try:
        maps = MAPS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    torch_file = re.search(r"^\S+ \S*x\S* .*?(/\S.*/libtorch_cpu\.so)$", maps, re.MULTILINE)
    if torch_file is None:
        return None
    found = ctypes.CDLL(torch_file[1])  # also finds functions of its linked libraries
    if not hasattr(found, "GOMP_parallel") or not hasattr(found, "omp_pause_resource"):
        return None
    return found if "libgomp" in _file_of(ctypes.cast(found.GOMP_parallel, ctypes.c_void_p).value or 0, maps) else None


def _file_of(address: int, maps: str) -> str:
    """Return the name of the file that is mapped at an address; empty if there is none."""
    for line in maps.rstrip("\n").split("\n"):  # splitlines would also split at other characters in names
        start, _, end = line.split(maxsplit=1)[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return Path(line.split(maxsplit=5)[-1]).name
    return ""
