"""The journal of a search, which a resumed sweep reads: its trials choose values, and nothing else."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from gpt_pretrain.runs.metadata import read_metadata, stored_overrides
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
