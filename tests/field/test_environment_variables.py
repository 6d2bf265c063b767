"""Environment variables that a shell has kept from another program, or that are mistyped."""

import importlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.commands.process.failures import as_user_error
from gpt_pretrain.errors import UserError
from gpt_pretrain.training.distributed.ranks import check_rank_variables
from tests.helpers.training_runs import SETTINGS, Train

Script = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("model=tiny", "tokenizer=byte", "trainer.accelerator=cpu", "trainer.max_steps=1")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x: this environment variable must be a whole number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: this environment variable must be a whole number"),
        ({"RANK": "1", "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1: this environment variable must be a whole number"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: this environment variable must be a whole number"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3: this environment variable says that there are other processes, and WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 must be below WORLD_SIZE=2"),
    ],
)
def test_variables_of_another_training_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as raised:
        check_rank_variables()
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(("name", "value"), [("LOCAL_RANK", "3"), ("WORLD_SIZE", "two")])
def test_a_script_refuses_variables_of_another_training(
    script: Script, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    done = script("train.py", *SHORT)
    assert done.stderr.startswith(f"error: {name}={value}: ") and done.returncode == 2, done.stderr


@pytest.mark.parametrize("name", ["MPLBACKEND", "TORCH_LOGS", "SOURCE_DATE_EPOCH"])
def test_a_variable_that_a_library_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "a_library.py").write_text(f"import os\nraise ValueError('Invalid value: ' + os.environ['{name}'])\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(name, "nonsense")
    with pytest.raises(ValueError, match="Invalid value") as raised:
        importlib.import_module("a_library")
    reported = as_user_error(raised.value)
    assert reported is not None
    assert str(reported) == (
        f"{name}=nonsense: a library refuses this environment variable (Invalid value: nonsense). To do without it: unset {name}"
    )
    assert as_user_error(ValueError("Invalid value: nonsense")) is None, "no library was being loaded"


def test_a_slurm_job_of_several_tasks_trains_in_a_script_that_srun_has_not_started(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    check_rank_variables()
    train(*SETTINGS, "trainer.max_steps=2", run_dir=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
