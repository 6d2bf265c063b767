"""Run command lines in processes that are forked from one that has imported everything.

A forked process is a process of its own, with its own output and exit code, but starts in a tenth of the time. Use it where a new
interpreter is not the point of the test.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


class ForkServer:
    """A process that forks one child for each command line."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fork-server-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float = 200.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS`, where the first is a script, relative to the checkout, or `-m` before a module.

        Args:
            timeout: Seconds.

        Raises:
            subprocess.TimeoutExpired: If the command takes longer; it is killed then.
        """
        files = {name: Path(self._folder.name) / name for name in ("stdin", "stdout", "stderr")}
        files["stdin"].write_text(stdin or "", encoding="utf-8")
        request = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": dict(os.environ if environment is None else environment),
            "files": {name: str(path) for name, path in files.items()},
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        child = self._answer(timeout)
        try:
            code = self._answer(timeout)
        except TimeoutError as error:
            os.kill(child, signal.SIGKILL)
            self._answer(timeout)
            raise subprocess.TimeoutExpired(list(arguments), timeout) from error
        output, errors = (files[name].read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(list(arguments), code, output, errors)

    def _answer(self, timeout: float) -> int:
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], timeout)[0]:
            raise TimeoutError
        return int(stream.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._folder.cleanup()


def serve() -> None:
    """Read one request per line from standard input, and answer each with the exit code of its child."""
    import gpt_pretrain.commands.generate
    import gpt_pretrain.commands.script
    import gpt_pretrain.commands.train
    import gpt_pretrain.training.fit  # noqa: F401

    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            _run(json.loads(line))
        os.write(1, f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _run(request: dict[str, object]) -> None:
    """Run a request in this process, which ends with it."""
    arguments, files = list(map(str, request["arguments"])), dict(request["files"])  # type: ignore[call-overload]
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(files[name], flags, 0o644), number)
    if "OMP_NUM_THREADS" in os.environ:  # which the library has read long ago
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
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
    """Run what the Python interpreter would run with these arguments."""
    sys.orig_argv = ["python", *arguments]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        script = arguments[0] if os.path.isabs(arguments[0]) else str(ROOT / arguments[0])
        sys.argv = [script, *arguments[1:]]
        sys.orig_argv[1] = script
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    serve()
