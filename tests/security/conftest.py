"""Fixtures for the tests with files from strangers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt_pretrain.data.remote.fetching import stop_fetching
from tests.helpers.fork_server import ForkServer
from tests.helpers.hostile_files import SMALL
from tests.helpers.hostile_server import Stranger


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer, cache_dir: Path) -> Path:
    """Return the folder of a run of four optimizer steps, to copy from; no test may change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    environment = os.environ | {"XDG_CACHE_HOME": str(cache_dir)}
    done = fork_server.run(["train.py", *SMALL, f"hydra.run.dir={folder}"], cwd=folder.parent, environment=environment)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    server = Stranger()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _stop_fetching() -> Iterator[None]:
    yield
    stop_fetching()
