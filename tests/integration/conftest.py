"""Fixtures that start the processes of a training."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.fork_server import ForkedCommand, ForkServer
from tests.helpers.launched import Start, variables


@pytest.fixture
def start(tmp_path: Path, cache_dir: Path, fork_server: ForkServer) -> Iterator[Start]:
    """Start train.py in forked processes with the environment given, and kill those that remain at the end of the test."""
    processes: list[ForkedCommand] = []

    def start_process(*overrides: str, ranks: int = 2, **environment: str) -> ForkedCommand:
        command = ["train.py", *overrides]
        processes.append(fork_server.start(command, cwd=tmp_path, environment=variables(cache_dir, **environment), ranks=ranks))
        return processes[-1]

    yield start_process
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def start_python(tmp_path: Path, cache_dir: Path) -> Iterator[Start]:
    """Start Python in new processes, which run train.py by default; kill those that remain at the end of the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_process(*overrides: str, script: str = str(ROOT / "train.py"), **environment: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, *script.split(" ", 1), *overrides],
                cwd=tmp_path,
                env=variables(cache_dir, **environment),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return processes[-1]

    yield start_process
    for process in processes:
        process.kill()
        process.communicate()
