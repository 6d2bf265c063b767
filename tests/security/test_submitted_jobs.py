"""Sweeps from strangers whose jobs submitit runs: its folder in the sweep may have been prepared."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.sweeps.submitted_jobs import FOLDER_SETTING, SECONDS_TO_END, _remove_left_folders, private_submission_folder
from gpt_pretrain.system.locks import try_lock
from tests.helpers.hostile_files import SMALL

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

Script = Callable[..., "subprocess.CompletedProcess[str]"]
# Jobs do not start, but have failed at once. A result that is there already stays.
SBATCH = """#!/bin/bash
for script; do :; done
for job in 4711 4711_0; do
    mkdir -p "$(dirname "$script")/$job"
    result="$(dirname "$script")/$job/${job}_0_result.pkl"
    [ -e "$result" ] || printf "(S'error'\\nS'no room'\\nt." > "$result"
done
echo "Submitted batch job 4711"
"""
SACCT = '#!/bin/bash\necho "JobID|State|NodeList"; echo "4711|FAILED|here"; echo "4711_0|FAILED|here"\n'


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.file),)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("sacct", SACCT), ("srun", "#!/bin/bash\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.mark.usefixtures("slurm")
def test_planted_results_of_jobs_are_not_loaded(script: Script, tmp_path: Path) -> None:
    for job in ("4711", "4711_0"):
        folder = tmp_path / "sweep" / ".submitit" / job
        folder.mkdir(parents=True)
        (folder / f"{job}_0_result.pkl").write_bytes(pickle.dumps(Planted(tmp_path / "loaded")))
    done = script("train.py", "-m", *SMALL, "hydra/launcher=submitit_slurm", "hydra.sweep.dir=sweep", "seed=1", timeout=100)
    assert not (tmp_path / "loaded").exists()
    assert "the launcher failed" in done.stdout and "no room" in done.stdout, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "sweep").glob(".submitit*")] == [".submitit"]


@pytest.mark.usefixtures("slurm")
def test_a_link_in_place_of_the_folder_is_not_followed(script: Script, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / ".submitit").symlink_to(tmp_path / "other")
    script("train.py", "-m", *SMALL, "hydra/launcher=submitit_slurm", "hydra.sweep.dir=sweep", "seed=1", timeout=100)
    assert not list((tmp_path / "other").iterdir())


def test_the_folder_is_private_and_deleted_when_no_job_needs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    default = str(tmp_path / ".submitit" / "%j")
    params: dict[str, object] = {FOLDER_SETTING: default}
    with private_submission_folder(tmp_path, params, on_slurm=False):
        folder = Path(str(params[FOLDER_SETTING])).parent
        assert folder.parent == tmp_path and folder.name != ".submitit"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "1").mkdir()
    assert not folder.exists() and params == {FOLDER_SETTING: default}
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), private_submission_folder(tmp_path, params, on_slurm=False):
            raise error
        assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_the_folder_is_kept_while_a_job_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpt_pretrain.sweeps.submitted_jobs.SECONDS_TO_END", 0.2)
    params: dict[str, object] = {FOLDER_SETTING: str(tmp_path / ".submitit" / "%j")}
    with subprocess.Popen(["sleep", "100"]) as job:
        with pytest.raises(KeyboardInterrupt), private_submission_folder(tmp_path, params, on_slurm=False):
            folder = Path(str(params[FOLDER_SETTING])).parent / str(job.pid)
            folder.mkdir()
            (folder / f"{job.pid}_submitted.pkl").touch()
            raise KeyboardInterrupt
        job.kill()
    assert folder.exists()
    assert "Delete it when they have ended" in capsys.readouterr().out


def test_many_folders_of_a_stranger_wait_no_longer_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    clock = iter(range(1000))
    monkeypatch.setattr("gpt_pretrain.sweeps.submitted_jobs._is_running", lambda pid: not asked.append(pid))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))  # a second for each look at it
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for number in range(20):
        folder = tmp_path / f".submitit-{number:016x}" / "1"
        folder.mkdir(parents=True)
        (folder / "1_submitted.pkl").touch()
    _remove_left_folders(tmp_path, n_tasks=1, on_slurm=False)
    assert len(asked) < 20 + 2 * SECONDS_TO_END
    assert len(list(tmp_path.iterdir())) == 20


@pytest.mark.usefixtures("slurm")
def test_slurm_is_asked_once_for_the_jobs_of_a_folder(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    (tmp_path / "bin" / "sacct").write_text(f"{SACCT}echo x >> {calls}\n")
    for job in ("51", "52", "53"):
        folder = tmp_path / "sweep" / f".submitit-{'a' * 16}" / job
        folder.mkdir(parents=True)
        (folder / f"{job}_submitted.pkl").touch()
    _remove_left_folders(tmp_path / "sweep", n_tasks=1, on_slurm=True)
    assert calls.read_text() == "x\n"


def test_a_chosen_folder_is_left_alone(tmp_path: Path) -> None:
    params: dict[str, object] = {FOLDER_SETTING: str(tmp_path / "mine" / "%j")}
    with private_submission_folder(tmp_path, params, on_slurm=False):
        assert params == {FOLDER_SETTING: str(tmp_path / "mine" / "%j")}
    assert not list(tmp_path.iterdir())


def test_folders_that_a_killed_sweep_has_left_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpt_pretrain.sweeps.submitted_jobs.SECONDS_TO_END", 0.0)
    ended, needed, used, link, other = (tmp_path / f".submitit-{letter * 16}" for letter in "abcde")
    (tmp_path / "mine").mkdir()
    with subprocess.Popen(["sleep", "100"]) as job:
        for folder, name in ((ended, "999999999"), (needed, str(job.pid)), (used, "999999999"), (tmp_path / ".submitit-x", "1")):
            (folder / name).mkdir(parents=True)
            (folder / name / f"{name}_submitted.pkl").touch()
        link.symlink_to(tmp_path / "mine")
        (other / ".lock").mkdir(parents=True)
        params: dict[str, object] = {FOLDER_SETTING: str(tmp_path / ".submitit" / "%j")}
        with try_lock(used / ".lock"), private_submission_folder(tmp_path, params, on_slurm=False):
            left = sorted(path.name for path in tmp_path.iterdir() if not (path / ".lock").is_file() or path in (needed, used))
        job.kill()
    assert left == sorted(path.name for path in (needed, used, link, other, tmp_path / ".submitit-x", tmp_path / "mine"))
    said = capsys.readouterr().out
    assert said.count("Jobs may still run") == 2 and needed.name in said and other.name in said
