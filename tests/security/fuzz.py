"""Change real files at random, and check that each reader ends soon, with little memory, and with a message for the user.

Usage: python -m tests.security.fuzz [--cases 10000] [--reader NAME ...] [--seed 0] [--first 0]

Every case is determined by the reader, the seed and its number, so that `--first NUMBER --cases 1` repeats one. Ctrl-C or
`kill` ends it with the results so far.
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError
from tests.security.fuzz_readers import READERS
from tests.security.fuzzed_reader import FuzzedReader
from tests.security.mutations import change_bytes

SECONDS = 5.0  # Of the processor, for one case.
WAITING_SECONDS = 60.0  # Of the clock, in which a case may wait for something or for a busy machine.
MEGABYTES = 200  # That a reader may take beyond EXPECTED times the size of the changed files.
EXPECTED = 4
ADDRESS_SPACE = 4 << 30  # Bytes beyond what the process has before the case; more would end it with a MemoryError.
ALLOWED = (UserError, OSError, DamagedFileError)
STATE = struct.Struct("<qd")  # The number of the present case, and the processor time at which it began.


@dataclass
class FuzzResult:
    """The results of the cases of one reader.

    Args:
        cases: Number of cases.
        accepted: Cases in which the changed files could be read.
        findings: A description of each case that went wrong.
        peak_megabytes: The most memory that a case took in addition to the process itself.
        longest_seconds: The most time of the processor that a case took.
        is_interrupted: Whether the user has ended it.
    """

    cases: int = 0
    accepted: int = 0
    findings: list[str] = field(default_factory=list)
    peak_megabytes: float = 0.0
    longest_seconds: float = 0.0
    is_interrupted: bool = False


def fuzz(name: str, *, cases: int, seed: int = 0, first: int = 0) -> FuzzResult:
    """Run cases of one reader in forked processes; one that hangs or crashes is replaced by a new one.

    If it is interrupted, it returns the result of the cases so far.
    """
    result, number = FuzzResult(), first
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        original = Path(folder) / "original"
        original.mkdir()
        READERS[name].make(original)
        try:
            while number < first + cases:
                number = _run_worker(name, original, Path(folder) / "case", range(number, first + cases), seed, result)
        except KeyboardInterrupt:
            result.is_interrupted = True
    return result


def _run_worker(name: str, original: Path, folder: Path, numbers: range, seed: int, result: FuzzResult) -> int:
    """Run cases in one process until it ends, and return the number of the next case."""
    state = mmap.mmap(-1, STATE.size)
    state[:] = STATE.pack(numbers.start - 1, 0.0)
    results = folder.with_name("results")
    results.unlink(missing_ok=True)
    sys.stdout.flush()
    if (worker := os.fork()) == 0:
        _work(name, original, folder, numbers, seed, state, results)
    try:
        status, problem = _watch(worker, numbers, state)
    except KeyboardInterrupt:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        raise
    finally:
        _add_results(results, result)
    case: int = STATE.unpack(state[:])[0]
    if problem is None and status != 0:
        problem = f"ended the process with status {status}"
    if problem:
        result.cases += 1
        result.findings.append(f"{name} {case}: {problem}")
    return case + 1


def _watch(worker: int, numbers: range, state: mmap.mmap) -> tuple[int, str | None]:
    """Wait for the end of a process, end it if a case takes too long, and return its status and the problem."""
    started, current = time.monotonic(), numbers.start - 1
    while (ended := os.waitpid(worker, os.WNOHANG))[0] == 0:
        time.sleep(0.02)
        case, before = STATE.unpack(state[:])
        problem = None
        if case != current:
            started, current = time.monotonic(), case
        elif case >= numbers.start and (spent := _processor_seconds(worker) - before) > SECONDS + 0.5:
            problem = f"took more than {spent:.1f} s"
        elif time.monotonic() - started > WAITING_SECONDS:
            problem = f"waited for more than {WAITING_SECONDS:.0f} s"
        if problem:
            os.kill(worker, signal.SIGKILL)
            return os.waitpid(worker, 0)[1], problem
    return ended[1], None


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _add_results(results: Path, result: FuzzResult) -> None:
    """Add the results that a process has written, but for a last line that is not complete."""
    for line in results.read_text(encoding="utf-8").splitlines(keepends=True) if results.exists() else ():
        if not line.endswith("\n"):
            return
        kind, seconds, megabytes, text = line.removesuffix("\n").split("\t", 3)
        result.cases += 1
        result.accepted += kind == "accepted"
        result.longest_seconds = max(result.longest_seconds, float(seconds))
        result.peak_megabytes = max(result.peak_megabytes, float(megabytes))
        if kind == "finding":
            result.findings.append(text)


def _work(name: str, original: Path, folder: Path, numbers: range, seed: int, state: mmap.mmap, results: Path) -> None:
    """Run cases, one after the other, and never return."""
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, signal.SIG_IGN)  # for the process that waits
    status = 1
    try:
        _silence()
        with open(results, "w", encoding="utf-8", errors="replace", buffering=1) as stream:
            for number in numbers:
                random = Random(f"{name} {seed} {number}")
                state[:] = STATE.pack(number, math.inf)
                pattern, size = _change_files(READERS[name], original, folder, random)
                state[:] = STATE.pack(number, time.process_time())
                kind, seconds, megabytes, text = _read_files(READERS[name], folder, pattern, size)
                text = " | ".join(f"{name} {number}: {text}".splitlines())
                stream.write(f"{kind}\t{seconds:.2f}\t{megabytes:.0f}\t{text}\n")
        status = 0
    finally:
        os._exit(status)


def _silence() -> None:
    """Send what the readers print or warn of nowhere; no test looks at it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")


def _change_files(reader: FuzzedReader, original: Path, folder: Path, random: Random) -> tuple[str, int]:
    """Copy the files, change one of them, and return its pattern and its new size in bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    pattern = random.choice(list(reader.changes))
    path = next(iter(sorted(folder.glob(pattern))))
    data = path.read_bytes()
    for _ in range(random.choice([1, 1, 1, 2])):
        try:
            data = random.choice(reader.changes[pattern])(data, random)
        except Exception:  # a second change may not understand the result of the first
            data = change_bytes(data, random)
    path.write_bytes(data)
    if reader.after is not None:
        reader.after(folder)
    return pattern, len(data)


def _read_files(reader: FuzzedReader, folder: Path, pattern: str, size: int) -> tuple[str, float, float, str]:
    """Read changed files, and return the kind of result, seconds, megabytes and a description."""
    expected = EXPECTED * size / 1e6
    kind, text = "accepted", ""
    before, started = _reset_peak(), time.process_time()
    try:
        with _bounded_memory():
            reader.read(folder / reader.part(pattern))
    except ALLOWED:
        kind = "rejected"
    except BaseException as error:
        kind, text = "finding", "".join(line.replace("^", "") for line in traceback.format_exception(error))[-700:]
    seconds, megabytes = time.process_time() - started, _peak() - before
    if kind != "finding" and megabytes > MEGABYTES + expected:
        kind, text = "finding", f"took {megabytes:.0f} MB for {expected / EXPECTED:.1f} MB in {pattern}"
    if kind != "finding" and seconds > SECONDS:
        kind, text = "finding", f"took {seconds:.1f} s for {pattern}"
    return kind, seconds, megabytes, text


@contextmanager
def _bounded_memory() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESS_SPACE, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _reset_peak() -> float:
    """Forget the peak of this process's memory, and return the present memory in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS") / 1e6


def _peak() -> float:
    return _status("VmHWM") / 1e6


def _status(name: str) -> int:
    """Return a number of bytes from Linux's description of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise ValueError(name)


def main() -> None:
    """Fuzz the named readers, and print a table of the results and all findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--reader", nargs="*", choices=READERS, default=list(READERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = False
    print("| reader | cases | read | findings | most memory (MB) | longest (s) | minutes |\n|---|---|---|---|---|---|---|")
    for name in options.reader:
        started = time.monotonic()
        found = fuzz(name, cases=options.cases, seed=options.seed, first=options.first)
        failed = failed or bool(found.findings)
        minutes = (time.monotonic() - started) / 60
        cells = [
            name,
            f"{found.cases:,}",
            f"{found.accepted:,}",
            len(found.findings),
            f"{found.peak_megabytes:.0f}",
            found.longest_seconds,
            f"{minutes:.1f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |", *found.findings[:20], sep="\n", flush=True)
        if found.is_interrupted:
            break
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
