"""Settings that a file brings: which are taken, which are asked for again, and which never come from a file."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.helpers.hostile_files import hostile_run

Script = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_run_without_a_signature_is_resumed(script: Script, finished_run: Path, tmp_path: Path) -> None:
    run = hostile_run(finished_run, tmp_path / "run")
    done = script("train.py", f"resume={run}")
    assert done.returncode == 0, done.stderr
