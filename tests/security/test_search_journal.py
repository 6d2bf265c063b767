"""The journal of a search, which a resumed sweep reads: its trials choose values, and nothing else."""

import json
import math
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState, create_trial

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import read_metadata, stored_overrides
from gpt_pretrain.sweeps.folder import STUDY
from gpt_pretrain.sweeps.journal import open_journal
from gpt_pretrain.sweeps.search import NumberRange, Search, ValueList
from gpt_pretrain.system import reading_cost
from tests.helpers.hostile_files import SMALL, hostile_run, hostile_sweep


def make_study(folder: Path) -> optuna.Study:
    with open_journal(folder) as storage:
        return optuna.create_study(storage=storage, study_name="sweep")


def test_a_trial_in_a_journal_adds_no_override(tmp_path: Path, script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    search = ["hparams_search=random", "hydra.sweeper.n_trials=1", "optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    sweep = hostile_sweep(tmp_path / "sweep", task=[*SMALL, *search])
    study = make_study(sweep)
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


def test_waiting_trials_out_of_range_are_not_passed_over_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_study(tmp_path)
    trial = {"op_code": 4, "worker_id": "w", "study_id": 0, "datetime_start": "2026-01-01T00:00:00", "state": 4}
    line = json.dumps(trial | {"system_attrs": {"fixed_params": {"optimizer.lr": 1.0}}})
    with open(tmp_path / STUDY, "a") as journal:
        journal.write(f"{line}\n" * 500)
    search = open_search(tmp_path)
    monkeypatch.setattr(reading_cost, "SECONDS", 0.05)
    monkeypatch.setattr(reading_cost, "SECONDS_PER_MB", 0.0)
    monkeypatch.setattr(reading_cost, "TICK", 0.01)
    with pytest.raises(UserError, match=r"study\.journal: reading it took .* seconds of processor time"):
        search.ask(1)


@pytest.mark.parametrize("attributes", [{}, {"fixed_params": []}, {"fixed_params": "x"}, {"fixed_params": {"optimizer.lr": "x"}}])
def test_a_waiting_trial_without_values_is_drawn_or_refused(tmp_path: Path, attributes: dict[str, Any]) -> None:
    study = make_study(tmp_path)
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
    with pytest.raises(UserError, match=r"study\.journal\.lock is an abandoned lock"):
        open_search(tmp_path)


def write_trial(folder: Path, state: TrialState, params: dict[str, Any], distributions: dict[str, BaseDistribution]) -> None:
    """Append a trial to a journal as it is, without the checks with which Optuna writes one."""
    entry = {"op_code": 4, "worker_id": "x", "study_id": 0, "datetime_start": None, "state": int(state)}
    described = {key: distribution_to_json(distribution) for key, distribution in distributions.items()}
    ended = {"value": 1.0} if state == TrialState.COMPLETE else {}
    with open(folder / "study.journal", "a") as journal:
        journal.write(json.dumps({**entry, **ended, "params": params, "distributions": described}) + "\n")


STATES = [TrialState.WAITING, TrialState.RUNNING, TrialState.FAIL]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("value", ["${oc.env:HF_TOKEN}", "0.005", True, math.inf, [0.005]])
def test_a_text_in_place_of_a_drawn_number_is_damage(tmp_path: Path, state: TrialState, value: Any) -> None:
    make_study(tmp_path)
    write_trial(tmp_path, state, {"optimizer.lr": value}, {"optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True)})
    with pytest.raises(UserError, match=r"study\.journal is damaged"):
        open_search(tmp_path).ask(1)


@pytest.mark.parametrize("state", STATES)
def test_a_drawn_number_is_in_its_range(tmp_path: Path, state: TrialState) -> None:
    make_study(tmp_path)
    write_trial(tmp_path, state, {"optimizer.lr": 24.0}, {"optimizer.lr": FloatDistribution(1e-4, 100, log=True)})
    search = open_search(tmp_path)
    drawn = [trial.params["optimizer.lr"] for trial in search.ask(2)]
    assert all(1e-4 <= value <= 1e-2 for value in drawn)
    assert search.count_ended() == 0, "no job has run with the other number"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("listed", [["${oc.env:HF_TOKEN}", "relu"], ["gelu", "${oc.env:HF_TOKEN}"], ["gelu"], [1, 2]])
def test_a_value_is_one_of_its_list(tmp_path: Path, state: TrialState, listed: list[Any]) -> None:
    make_study(tmp_path)
    for index in range(len(listed)):
        write_trial(tmp_path, state, {"model.mlp": index}, {"model.mlp": CategoricalDistribution(listed)})
    spaces = {"model.mlp": ValueList(["gelu", "relu"])}
    with pytest.raises(UserError, match=r"study\.journal is damaged|cannot change after its start"):
        Search.open(tmp_path, dict(spaces), sampler="random", seed=1, pruning=False, pruning_after=1).ask(2)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["24", 0.5, None])
def test_a_whole_number_is_drawn(tmp_path: Path, value: Any) -> None:
    make_study(tmp_path)
    write_trial(tmp_path, TrialState.WAITING, {"seed": value}, {"seed": IntDistribution(1, 100)})
    spaces = {"seed": NumberRange(1, 3, integer=True)}
    try:
        (trial,) = Search.open(tmp_path, dict(spaces), sampler="random", seed=1, pruning=False, pruning_after=1).ask(1)
    except UserError as error:
        assert "is damaged" in str(error)
    else:
        assert trial.params["seed"] in (1, 2, 3)


def test_a_sweep_resolves_nothing_of_a_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    search = [
        "hparams_search=random",
        "hydra.sweeper.n_trials=1",
        "start_context=interval(0.5,1)",
        "data.num_workers=interval(0,1)",
    ]
    sweep = hostile_sweep(tmp_path / "sweep", task=[*SMALL, *search])
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETTOKEN")
    for values in ({"start_context": "${oc.env:HF_TOKEN}"}, {"data.num_workers": 24}, {"optimizer.lr": "${oc.env:HF_TOKEN}"}):
        (sweep / "study.journal").unlink(missing_ok=True)
        make_study(sweep)
        write_trial(sweep, TrialState.WAITING, values, {key: FloatDistribution(0.5, 1) for key in values})
        done = script("train.py", "sweep_resume=sweep")
        written = [file.read_text(errors="replace") for file in sweep.rglob("*") if file.is_file()]
        assert not any("hf_SECRETTOKEN" in text or "num_workers=24" in text for text in [*written, done.stdout, done.stderr])


def test_a_run_is_resumed_beside_a_journal_that_is_none(
    tmp_path: Path, finished_run: Path, script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    hostile_run(finished_run, tmp_path / "theirs" / "run")
    with open(tmp_path / "theirs" / "study.journal", "wb") as journal:
        journal.truncate(3 << 30)
    done = script("train.py", "resume=theirs/run", timeout=60)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "theirs" / "study.journal.lock").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_journal_that_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "study.journal") if kind == "pipe" else (tmp_path / "study.journal").mkdir()
    with pytest.raises(UserError, match=r"study\.journal is damaged \(it is a (pipe|folder), not a regular file"):
        make_study(tmp_path)
