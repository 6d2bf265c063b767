"""Run command lines in processes that are forked from one that has imported everything.

A forked process is a process of its own, with its own output, signals and exit code, but starts in a tenth of the time. Use it where a
new interpreter is not the point of the test.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("HYDRA_FULL_ERROR", "PYTEST_CURRENT_TEST")


class ForkServer:
    """A process that forks one child for each command line."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fork-server-")
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._commands: dict[int, ForkedCommand] = {}
        self._started: int | None = None
        self._count = 0

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        stdin: str | None = None,
        ranks: int = 0,
    ) -> ForkedCommand:
        """Start `python ARGUMENTS`, where the first is a script, relative to the checkout, or `-m` before a module.

        Args:
            environment: All environment variables; None stands for those of this process.
            ranks: Rank processes that the command may start without a new interpreter.
        """
        self._count += 1
        files = {name: Path(self._folder.name) / f"{self._count}.{name}" for name in ("stdin", "stdout", "stderr")}
        for name, path in files.items():
            path.write_text((stdin or "") if name == "stdin" else "", encoding="utf-8")
        kept = os.environ if environment is None else environment
        request = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": {name: value for name, value in kept.items() if name not in LEFT_OUT},
            "files": {name: str(path) for name, path in files.items()},
            "ranks": ranks,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        while self._started is None:
            self._read_reports(timeout=None)
        pid, self._started = self._started, None
        self._commands[pid] = ForkedCommand(self, pid, list(arguments), files)
        return self._commands[pid]

    def run(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        stdin: str | None = None,
        ranks: int = 0,
        timeout: float = 200.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, as `start` describes, and wait until it ends.

        Args:
            timeout: Seconds.

        Raises:
            subprocess.TimeoutExpired: If the command takes longer; it is killed then.
        """
        command = self.start(arguments, cwd=cwd, environment=environment, stdin=stdin, ranks=ranks)
        try:
            output, errors = command.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            command.kill()
            command.communicate(timeout=timeout)
            raise
        assert command.returncode is not None
        return subprocess.CompletedProcess(command.args, command.returncode, output, errors)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def _read_reports(self, *, timeout: float | None) -> None:
        """Read one report of the server, if there is one within the time."""
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], timeout)[0]:
            return
        line = os.read(stream.fileno(), 1)
        while line and not line.endswith(b"\n"):  # a buffering reader would hide later lines from select
            line += os.read(stream.fileno(), 1)
        kind, pid, *code = line.decode().split() or ["gone", "0"]
        if kind == "gone":
            raise RuntimeError("The fork server has ended.")
        if kind == "started":
            self._started = int(pid)
        else:
            self._commands.pop(int(pid)).returncode = int(code[0])


class ForkedCommand:
    """A running command, with the methods of subprocess.Popen that tests use."""

    def __init__(self, server: ForkServer, pid: int, arguments: list[str], files: Mapping[str, Path]) -> None:
        self.pid, self.args, self.files = pid, arguments, files
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """Return the exit code, or None while the command runs."""
        while self.returncode is None:
            before = len(self._server._commands)
            self._server._read_reports(timeout=0)
            if len(self._server._commands) == before:
                break
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            left = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and left is not None and left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._server._read_reports(timeout=left)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return the output and the errors."""
        self.wait(timeout)
        return self.printed("stdout"), self.printed("stderr")

    def printed(self, stream: str) -> str:
        """Return what the command has written to "stdout" or "stderr" so far."""
        return self.files[stream].read_text(encoding="utf-8", errors="replace")

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Kill the command, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def serve() -> None:
    """Read one request per line from standard input; report the start and the end of each child on standard output."""
    import gpt_pretrain.commands.generate
    import gpt_pretrain.commands.script
    import gpt_pretrain.commands.train
    import gpt_pretrain.training.fit
    import gpt_pretrain.training.planning.dry_run  # noqa: F401
    from tests.helpers.error_table import record_messages

    record_messages()
    wake_up, ended = os.pipe()
    os.set_blocking(ended, False)
    os.set_blocking(wake_up, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ended, warn_on_full_buffer=False)
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    running: set[int] = set()
    while True:
        ready = select.select([requests, wake_up], [], [])[0]
        if wake_up in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_up, 1024)
        _report_ended(running)
        if requests in ready:
            line = requests.readline()
            if not line:
                for child in running:  # of a test that has failed
                    os.kill(child, signal.SIGKILL)
                return
            if (child := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _run(json.loads(line))
            running.add(child)
            os.write(1, f"started {child}\n".encode())


def _report_ended(running: set[int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            running.discard(found[0])
            os.write(1, f"ended {found[0]} {os.waitstatus_to_exitcode(found[1])}\n".encode())


def _run(request: dict[str, Any]) -> NoReturn:
    """Run a request in this process, which ends with it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        os.dup2(os.open(request["files"][name], flags, 0o644), number)
    if request["ranks"]:
        ForkedRank.prepare(request["ranks"])
    _run_here(request["arguments"], cwd=request["cwd"], environment=request["environment"])


def _run_here(arguments: list[str], *, cwd: str, environment: dict[str, str]) -> NoReturn:
    """Run what the Python interpreter would run with these arguments, and end this process."""
    import torch

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if "OMP_NUM_THREADS" in os.environ:  # which the library has read long ago
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    code: object = 0
    try:
        _execute(arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))  # type: ignore[call-overload]


def _execute(arguments: list[str]) -> None:
    sys.orig_argv = ["python", *arguments]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        script = arguments[0] if os.path.isabs(arguments[0]) else str(ROOT / arguments[0])
        sys.argv = [script, *arguments[1:]]
        sys.orig_argv[1] = script
        runpy.run_path(script, run_name="__main__")


class ForkedRank:
    """A stand-in for the Popen of a rank, whose process was forked before the launcher ran, when nothing was set up yet.

    It is the launcher's child, as a rank is, and waits for its command on a socket; it ends when the launcher does.
    """

    waiting: ClassVar[list[tuple[int, socket.socket]]] = []  # the process and the socket of each rank that is not in use

    def __init__(self, command: list[str], *, env: dict[str, str], pass_fds: Sequence[int], start_new_session: bool) -> None:
        self.pid, connection = self.waiting.pop(0)
        self.returncode: int | None = None
        request = {"arguments": command[1:], "environment": env, "cwd": os.getcwd()}
        with connection:
            socket.send_fds(connection, [json.dumps(list(pass_fds)).encode()], pass_fds)
            connection.recv(1)  # the rank has them
            connection.sendall(json.dumps(request).encode())

    @classmethod
    def prepare(cls, count: int) -> None:
        """Fork this many ranks, and have the launcher of this process use them."""
        from gpt_pretrain.training.distributed import launch

        for _ in range(count):
            mine, its = socket.socketpair()
            pid = os.fork()
            if pid == 0:
                for _, other in [*cls.waiting, (0, mine)]:
                    other.close()
                cls._become_rank(its)
            its.close()
            cls.waiting.append((pid, mine))
        new_interpreter = subprocess.Popen
        launch.subprocess = SimpleNamespace(  # type: ignore[assignment]
            Popen=lambda *args, **kwargs: (cls if cls.waiting else new_interpreter)(*args, **kwargs)
        )

    @classmethod
    def _become_rank(cls, connection: socket.socket) -> NoReturn:
        """Wait for a command, and run it with the files that it inherits under their numbers."""
        cls.waiting = []
        numbers, files, *_ = socket.recv_fds(connection, 1000, 100)
        if not numbers:
            os._exit(0)
        connection.sendall(b".")
        text = b"".join(iter(lambda: connection.recv(100_000), b""))
        connection.close()
        free = [os.dup(file) for file in files]  # so that no number is overwritten that is still needed
        for number, file in zip(json.loads(numbers), free, strict=True):
            os.dup2(file, number)
        os.setsid()
        _run_here(**json.loads(text))

    def poll(self) -> int | None:
        """Return the exit code, or None while the rank runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless the rank has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Kill the rank, unless it has ended, and wait for its end."""
        self.send_signal(signal.SIGKILL)
        while self.poll() is None:
            time.sleep(0.01)


if __name__ == "__main__":
    serve()
