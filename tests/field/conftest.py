"""Fixtures of the field trials."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel

from tests.conftest import ROOT
from tests.helpers.fork_server import ForkServer
from tests.helpers.mistakes import write_mistaken_files
from tests.helpers.other_models import hugging_face
from tests.helpers.training_runs import Train
from tests.helpers.user_machine import PRELUDE, Run
from tests.helpers.vocabularies import KINDS, gpt2_files


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder with a vocabulary of each kind."""
    folder = tmp_path_factory.mktemp("vocabularies")
    made = {name: make(folder / name) for name, make in KINDS.items()}
    return made | {"gpt2_files": gpt2_files(folder / "gpt2_files", added={"<|user|>": 401, "<pad>": 402})}


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    """Return a small GPT-2 of transformers, which tests must not change."""
    return hugging_face()


@pytest.fixture
def run_after(tmp_path: Path, fork_server: ForkServer, cache_dir: Path) -> Run:
    """Run an entry script as a process after some lines of Python, which stand for a user's machine."""

    def ran(
        before: str, name: str, *arguments: str, stdin: str | None = None, cwd: Path = tmp_path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        prelude = tmp_path / "prelude.py"
        prelude.write_text(PRELUDE.format(before=before), encoding="utf-8")
        kept = {**os.environ, "XDG_CACHE_HOME": str(cache_dir), **environment}
        command = [str(prelude), str(ROOT / name), *arguments]
        return fork_server.run(command, cwd=cwd, environment=kept, stdin=stdin, timeout=100)

    return ran


@pytest.fixture
def trained(train: Train, tmp_path: Path) -> Path:
    """Return the folder of a finished run."""
    train("trainer.max_epochs=1", "callbacks=minimal", "logger=none")
    return tmp_path / "run"


@pytest.fixture
def files(tmp_path: Path) -> None:
    """Write the files that the commands name."""
    write_mistaken_files(tmp_path)
