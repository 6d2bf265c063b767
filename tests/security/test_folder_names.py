"""A folder's name is a name: Hydra replaces nothing in it, so that no file goes to another folder; and `latest` is no name to take."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.runs.folder import find_run
from gpt_pretrain.sweeps.folder import find_sweep
from tests.helpers.fork_server import ForkServer
from tests.helpers.hostile_files import SMALL, hostile_run, hostile_sweep

Script = Callable[..., "subprocess.CompletedProcess[str]"]
NAMES = ["their${oc.env:N,}", "${oc.env:N,..}", "${hydra:runtime.cwd}", "x${"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("latest", [False, True])
def test_a_run_in_a_folder_with_an_interpolation_is_not_resumed(
    script: Script, finished_run: Path, tmp_path: Path, name: str, latest: bool
) -> None:
    hostile_run(finished_run, tmp_path / "outputs" / name)
    (tmp_path / "report.html").write_text("MY THESIS")
    before = files(tmp_path)
    done = script("train.py", "resume=latest" if latest else f"resume=outputs/{name}")
    assert done.returncode == 2
    assert "the path contains ${, which Hydra would replace. Rename the folder." in done.stderr
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["train", "latest", "generate"])
def test_a_sweep_in_a_folder_with_an_interpolation_is_not_resumed(script: Script, tmp_path: Path, name: str, which: str) -> None:
    folder = tmp_path / "outputs" / "multirun" / name
    task = ["seed=1,2"] if which == "generate" else [*SMALL, "seed=1,2"]
    hostile_sweep(folder, task=task, script="generate" if which == "generate" else "train")
    target = tmp_path / "outputs" / "multirun" / "their" / "seed=1" / ".hydra"
    target.mkdir(parents=True)
    (tmp_path / "rc").write_text("# mine")
    (target / "config.yaml").symlink_to(tmp_path / "rc")
    before = files(tmp_path)
    sweep = "latest" if which == "latest" else f"outputs/multirun/{name}"
    done = script("generate.py" if which == "generate" else "train.py", f"sweep_resume={sweep}")
    assert done.returncode == 2
    assert "the path contains ${" in done.stderr
    assert files(tmp_path) == before


@pytest.mark.parametrize("arguments", [[], ["-m", "seed=1,2"]])
def test_a_working_directory_with_an_interpolation_is_refused(
    fork_server: ForkServer, tmp_path: Path, arguments: list[str]
) -> None:
    folder = tmp_path / "w${oc.env:NOPE,..}"
    folder.mkdir()
    done = fork_server.run(["train.py", *arguments, *SMALL], cwd=folder, environment=os.environ)
    assert done.returncode == 2
    assert "the path contains ${" in done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_typed_folder_may_hold_one(script: Script, tmp_path: Path) -> None:
    done = script("train.py", *SMALL, "seed=7", "hydra.run.dir=runs/${seed}", "data.cache_dir=cache")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "7" / "checkpoints" / "last.ckpt").exists()


def test_a_modification_time_in_the_future_makes_nothing_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("theirs", "mine"):
        run, sweep = tmp_path / "outputs" / name / "checkpoints", tmp_path / "outputs" / "multirun" / name
        run.mkdir(parents=True)
        (run / "last.ckpt").write_bytes(b"")
        hostile_sweep(sweep, task=["seed=1,2"])
        if name == "theirs":  # as an archive sets it
            for file in (run / "last.ckpt", sweep / "multirun.yaml"):
                os.utime(file, (2**32, 2**32))
            time.sleep(0.05)  # longer than the steps of the file system's clock
    assert find_run("latest") == Path("outputs/mine")
    assert find_sweep("latest", script="train") == Path("outputs/multirun/mine")
