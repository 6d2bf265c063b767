"""Modules in the working directory, which may be a stranger's folder: no process that a command starts imports them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.system import environment
from gpt_pretrain.system.environment import keep_imports_out_of_working_folder
from tests.helpers.hostile_files import SMALL

Script = Callable[..., "subprocess.CompletedProcess[str]"]
MODULES = ("signal", "struct", "random", "multiprocessing", "json", "sitecustomize", "gpt_pretrain")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put modules into the working directory that leave a mark when they are imported; return the mark."""
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n")
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, "")
    return tmp_path / "imported"


@pytest.mark.parametrize("how", ["-c", "-m"])
def test_processes_of_libraries_import_nothing_from_the_working_directory(planted: Path, how: str) -> None:
    command = [sys.executable, *([how, "import signal, gpt_pretrain"] if how == "-c" else [how, "gpt_pretrain", "--help"])]
    for _ in range(2):
        keep_imports_out_of_working_folder()
    subprocess.run(command, check=True, cwd=planted.parent, timeout=60, capture_output=True)
    assert not planted.exists()
    assert not os.environ["PYTHONPATH"].endswith(os.pathsep), "an empty part would stand for the working directory"


def test_no_key_and_no_code_comes_from_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    # Earlier versions of platformdirs take relative paths from XDG_CACHE_HOME and XDG_DATA_HOME.
    monkeypatch.setattr(environment, "user_cache_path", Path)
    monkeypatch.setattr(environment, "user_data_path", Path)
    for find_folder in (environment.user_cache_folder, environment.user_data_folder):
        with pytest.raises(OSError, match="is a relative path"):
            find_folder()


@pytest.mark.slow
def test_jobs_of_a_launcher_import_nothing_from_the_working_directory(script: Script, planted: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = script("train.py", "-m", *SMALL, "hydra/launcher=joblib", "hydra.sweep.dir=s", "seed=1", timeout=300)
    assert done.returncode == 0, done.stderr
    assert not planted.exists()
