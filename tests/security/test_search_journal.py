"""The journal of a search, which a resumed sweep reads: its trials choose values, and nothing else."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import read_metadata, stored_overrides
from gpt_pretrain.sweeps.search import NumberRange, Search, _storage
from tests.helpers.hostile_files import SMALL, hostile_sweep


def test_a_trial_in_a_journal_adds_no_override(tmp_path: Path, script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    search = ["hparams_search=random", "hydra.sweeper.n_trials=1", "optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    sweep = hostile_sweep(tmp_path / "sweep", task=[*SMALL, *search])
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(sweep / "study.journal"))), study_name="sweep")
    added = {"+hydra.job.env_set": "{A:b}", "+callbacks.custom.x": "{_target_:torch.hub.load,repo_or_dir:sweep,source:local}"}
    trial = create_trial(
        state=TrialState.WAITING,
        params={"optimizer.lr": 0.005, **added},
        distributions={
            "optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True),
            **{key: CategoricalDistribution([value]) for key, value in added.items()},
        },
        system_attrs={"fixed_params": {}},
    )
    study.add_trial(trial)
    done = script("train.py", "sweep_resume=sweep")
    assert done.returncode == 0, done.stderr
    (run,) = (file.parent for file in sweep.glob("*/run.json"))
    overrides = stored_overrides(read_metadata(run))
    assert "optimizer.lr=0.005" in overrides
    assert not [override for override in overrides if "hydra" in override or "custom" in override]
    assert "custom" not in (run / ".hydra" / "overrides.yaml").read_text()
    assert "env_set: {}" in (run / ".hydra" / "hydra.yaml").read_text()


SPACES = {"optimizer.lr": NumberRange(1e-4, 1e-2, log=True)}


def open_search(folder: Path) -> Search:
    """Open a search over the learning rate."""
    return Search.open(folder, dict(SPACES), sampler="random", seed=1, pruning=False, pruning_after=1)


@pytest.mark.parametrize("attributes", [{}, {"fixed_params": []}, {"fixed_params": "x"}, {"fixed_params": {"optimizer.lr": "x"}}])
def test_a_waiting_trial_without_values_is_drawn_or_refused(tmp_path: Path, attributes: dict[str, Any]) -> None:
    study = optuna.create_study(storage=_storage(tmp_path), study_name="sweep")
    study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=attributes))
    try:
        (trial,) = open_search(tmp_path).ask(1)
    except UserError as error:
        assert attributes and "is damaged" in str(error)
    else:
        assert 1e-4 <= trial.params["optimizer.lr"] <= 1e-2


@pytest.mark.parametrize("days", [-1, 1, 0])
def test_a_lock_that_nobody_holds_is_removed(tmp_path: Path, days: int) -> None:
    lock_file, now = tmp_path / "study.journal.lock", time.time() + 86_400 * days
    lock_file.symlink_to("/elsewhere/study.journal")
    os.utime(lock_file, (now, now), follow_symlinks=False)
    start = time.monotonic()
    open_search(tmp_path)
    assert time.monotonic() - start < (5 if days else 12)
    assert not lock_file.is_symlink()


def test_a_folder_in_place_of_a_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.journal.lock").mkdir()
    os.utime(tmp_path / "study.journal.lock", (1, 1))
    with pytest.raises(UserError, match=r"study\.journal\.lock has no owner"):
        open_search(tmp_path)
