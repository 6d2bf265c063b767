"""Fixtures that start the processes of a training."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.fork_server import ForkedCommand, ForkServer
from tests.helpers.launched import Start, variables
from tests.helpers.rank_runs import RUN, SPY, RunRanks, environment


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


@pytest.fixture(scope="module")
def ranks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder in which the fixture `run` runs train.py for a module's tests."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def run(ranks_folder: Path, cache_dir: Path, fork_server: ForkServer) -> RunRanks:
    """Run train.py with these overrides in a folder of this module; `before` precedes the script on the command line."""
    (ranks_folder / "spy.py").write_text(SPY)

    def run_script(*overrides: str, before: tuple[str, ...] = (), cwd: Path = ranks_folder) -> subprocess.CompletedProcess[str]:
        command = [*before, str(ROOT / "train.py"), *overrides, f"data.cache_dir='{cache_dir}'"]
        variables = environment() | {"PYTHONPATH": str(ranks_folder)}
        if not before:
            return fork_server.run(command, cwd=cwd, environment=variables, ranks=4)
        return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=200, check=False)

    return run_script


@pytest.fixture(scope="module")
def alone(run: RunRanks, ranks_folder: Path) -> Path:
    """Run one process that accumulates two batches per step, for comparison with the other runs."""
    done = run(
        *RUN,
        "trainer.accumulate_grad_batches=2",
        "hydra.run.dir=alone",
        f"+callbacks.custom.spy={{_target_: spy.Spy, file: '{ranks_folder}/alone.txt'}}",
    )
    assert done.returncode == 0, done.stderr
    return ranks_folder / "alone"
