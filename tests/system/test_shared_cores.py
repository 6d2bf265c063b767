"""Threads do not hold cores that others need, and no more threads compute than a container may use."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gpt_pretrain.system import resources, shared_cores

ROOT = Path(__file__).parents[2]
# The processor time of a second thread that waits while the first one sleeps, in seconds.
WAITING = """
import ctypes, shutil, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from gpt_pretrain.system.shared_cores import IdleThreads, load_libgomp

torch.set_num_threads(2)
numbers = torch.zeros(1 << 17)

def spent():
    before = time.process_time()
    for _ in range(5):
        numbers.add_(1)
        time.sleep(0.02)
    return time.process_time() - before

if len(sys.argv) == 2:  # another package's libgomp, as sentencepiece has one
    for file in Path(torch.__file__).parent.glob("lib/libgomp*"):
        ctypes.CDLL(shutil.copy(file, Path(sys.argv[1], "libgomp-of-another.so.1")))
library = load_libgomp()
if library is None:
    print("none")
else:
    idle = IdleThreads(library)
    other = ThreadPoolExecutor(1)
    spent()
    print(spent())
    other.submit(idle.start).result()
    print(spent())
    other.submit(idle.stop).result()
    print(spent())
"""


@pytest.mark.skipif(resources.usable_cpus() < 2, reason="on one core, libgomp's threads do not spin while they wait")
@pytest.mark.parametrize("has_another", [False, True])
def test_threads_wait_asleep_while_there_are_idle_threads(has_another: bool, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", WAITING, *([str(tmp_path)] if has_another else [])]
    done = subprocess.run(command, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    if done.stdout.split() == ["none"]:
        pytest.skip("PyTorch uses another library than libgomp here")
    active, asleep, active_again = map(float, done.stdout.split())

    assert asleep < active / 3
    assert asleep < active_again / 3


class Idle:
    """Notes when idle threads are started and stopped."""

    def __init__(self, events: list[object]) -> None:
        self.events = events

    def start(self) -> None:
        self.events.append("start")

    def stop(self) -> None:
        self.events.append("stop")


class Cores:
    """Answers how long the computing thread has waited for a core, by a list of shares of its time, one for each look."""

    def __init__(self, shares: list[float], events: list[object]) -> None:
        self.shares, self.events = shares, events
        self.usage = (10**9, 0)

    def read(self) -> shared_cores.Usage:
        return self.usage

    def wait(self, seconds: float) -> None:
        self.events.append(seconds)
        if seconds in (shared_cores.LOOK_SECONDS, shared_cores.PROBE_SECONDS):
            if not self.shares:
                raise InterruptedError
            waited = int(self.shares.pop(0) * seconds * 1e9)
            self.usage = (self.usage[0] + int(seconds * 1e9) - waited, self.usage[1] + waited)


def watched(shares: list[float], *, at_start: float = 0.0) -> list[object]:
    """Return what the watching thread does while the computing thread waits for a core for these shares of its looks."""
    events: list[object] = []
    cores = Cores(shares, events)
    cores.usage = (int((1 - at_start) * 1e9), int(at_start * 1e9))
    with pytest.raises(InterruptedError):
        shared_cores.watch_cores(Idle(events), cores.read, cores.wait)  # type: ignore[arg-type]
    return events


def test_alone_nothing_changes() -> None:
    assert watched([0.0, 0.09, 0.02]) == [0.5] * 4


def test_idle_threads_last_while_the_cores_are_shared() -> None:
    events = watched([0.0, 0.9, 0.5, 0.5, 0.01, 0.0])

    probes = ["start", 4.0, "stop", 0.1, "start", 8.0, "stop", 0.1, "start", 16.0, "stop", 0.1]
    assert events == [0.5, 0.5, *probes, 0.5, 0.5]


def test_a_process_that_starts_beside_others_shares_at_once() -> None:
    assert watched([0.0], at_start=0.5) == ["start", 4.0, "stop", 0.1, 0.5]


def test_probes_become_rare_but_do_not_end() -> None:
    pauses = [event for event in watched([1.0] * 8) if isinstance(event, float) and event > 0.5]

    assert pauses == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]


def test_waiting_for_a_core_is_counted() -> None:
    read = shared_cores.usage_reader(threading.get_native_id())
    if read is None:
        pytest.skip("this system does not tell how long threads wait")
    before = read()
    until = time.thread_time() + 0.02
    while time.thread_time() < until:
        pass

    assert read()[0] > before[0]
    assert read()[1] >= before[1]
    assert shared_cores.usage_reader(2**30) is None


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_the_environment_takes_precedence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0")
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(shared_cores, "load_libgomp", lambda: pytest.fail("threads were changed"))

    shared_cores.share_cores()


def control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str]) -> None:
    """Put control groups in place of the system's."""
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="ascii")
    (tmp_path / "own").write_text(own, encoding="ascii")
    monkeypatch.setattr(resources, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resources, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(resources, "usable_cpus", lambda: 8)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/\n", {}, 8),
        ("0::/user.slice/run.scope\n", {"user.slice/cpu.max": "300000 100000", "user.slice/run.scope/cpu.max": "max 100000"}, 3),
        ("4:cpu,cpuacct:/docker/ab\n1:name=systemd:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "100000\n"}, 8),
        (
            "4:cpu,cpuacct:/docker/ab\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/cpu.cfs_period_us": "50000\n"},
            2,
        ),
        ("4:cpu:/job\n0::/\n", {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, 8),
        ("damaged\n0:x\n", {"cpu.max": "100000 0\n"}, 8),
    ],
)
def test_cores_follow_the_quota(
    own: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_groups(tmp_path, monkeypatch, own, files)

    assert resources.cores() == expected


@pytest.mark.parametrize(("variable", "expected"), [(None, [3]), ("OMP_NUM_THREADS", []), ("MKL_NUM_THREADS", [])])
def test_threads_follow_the_quota(
    variable: str | None, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_groups(tmp_path, monkeypatch, "0::/\n", {"cpu.max": "300000 100000\n"})
    for name in shared_cores.THREAD_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, "8")
    chosen: list[int] = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr("torch.set_num_threads", chosen.append)

    shared_cores.use_own_cores()

    assert chosen == expected


def test_a_file_that_is_only_read_is_not_loaded_as_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = "7f0000000000-7f0000001000 r--s 00000000 fe:00 1                          /weights/libtorch_cpu.so\n"
    (maps := tmp_path / "maps").write_text(weights)
    monkeypatch.setattr(shared_cores, "MAPS", maps)
    assert shared_cores.load_libgomp() is None


def test_the_time_that_a_thread_has_run_is_known_on_every_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file in (shared_cores.OWN_USAGE, tmp_path / "missing", tmp_path / "unknown"):
        (tmp_path / "unknown").write_text("0 0 0\n")
        monkeypatch.setattr(shared_cores, "OWN_USAGE", file)
        ran, waited = shared_cores.thread_usage()
        until = time.thread_time() + 0.02  # the kernel counts a running thread's time every few milliseconds
        while time.thread_time() < until:
            pass
        later, still = shared_cores.thread_usage()
        assert later > ran > 0 and still >= waited - 1e6 >= -1e6  # the two clocks are not read at the same time
