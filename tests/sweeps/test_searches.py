"""Searches from the command line: what they draw, prune and resume."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gpt_pretrain.sweeps.results import read_sweep, swept_keys
from gpt_pretrain.system.checkout import CONF
from hydra_plugins.gpt_pretrain_sweepers import SearchSweeper
from tests.conftest import TINY_RUN
from tests.helpers.sweep_files import only_sweep

Script = Callable[..., subprocess.CompletedProcess[str]]


SHORT = [*TINY_RUN, "trainer.max_epochs=1", "callbacks=minimal"]


@pytest.mark.parametrize(
    ("overrides", "swept", "expected"),
    [
        ([], set(), {"optimizer.lr": "5e-3", "optimizer.matrices.weight_decay": "0.0", "optimizer.head.weight_decay": "1.0"}),
        (["model=tiny"], set(), {"optimizer.lr": "1e-4", "optimizer.weight_decay": "0.1"}),
        (["optimizer=adamw_chapter5"], set(), {"optimizer.lr": "1e-4", "optimizer.weight_decay": "0.1"}),
        ([], {"optimizer"}, {}),
        (["optimizer=custom", "optimizer._target_=torch.optim.SGD"], set(), {}),
        (["hydra.sweeper.params=null"], set(), None),
    ],
    ids=["muon", "adamw", "adamw_chapter5", "optimizers_are_searched", "own", "none"],
)
def test_a_search_draws_from_ranges_that_suit_the_optimizer(
    overrides: list[str], swept: set[str], expected: dict[str, str] | None
) -> None:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("train", ["run_dir=x", "hparams_search=optuna", *overrides], return_hydra_config=True)
    fields = OmegaConf.to_container(config.hydra.sweeper)
    del fields["_target_"]
    sweeper = SearchSweeper(**fields)
    sweeper.config = config
    found = sweeper.suitable_params(swept)
    if expected is None:
        assert found == {}
        return
    assert found.keys() == expected.keys() | {"model.drop_rate"}
    assert all(part in str(found[name]) for name, part in expected.items())


@pytest.mark.slow
def test_a_search_prunes_jobs_and_can_be_resumed(script: Script, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    overrides = [*TINY_RUN, "trainer.max_epochs=4", "callbacks=minimal", "logger=none", "hparams_search=optuna"]
    done = script("train.py", "-m", *overrides, "hydra.sweeper.n_trials=6")
    assert done.returncode == 0, done.stderr
    sweep = only_sweep(tmp_path)
    jobs = read_sweep(sweep)
    assert len(jobs) == 6
    assert set(swept_keys(jobs)) == {"optimizer.lr", "optimizer.weight_decay", "model.drop_rate"}
    pruned = [job for job in jobs if job.state == "pruned"]
    assert pruned, "at least one of six jobs is worse than the median after its first epoch"
    assert all(job.result["epochs"] < 4 for job in pruned)
    assert all(1e-4 <= float(job.settings["optimizer.lr"]) <= 3e-3 for job in jobs)
    more = script("train.py", f"sweep_resume={sweep}", "hydra.sweeper.n_trials=8")
    assert more.returncode == 0, more.stderr
    assert len(read_sweep(sweep)) == 8, "two more jobs, and none of the first is repeated"
    other = script("train.py", f"sweep_resume={sweep}", "optimizer.weight_decay=choice(0.0,0.2)")
    assert other.returncode == 2
    assert "optimizer.weight_decay: the values that a search chooses from cannot change" in other.stderr
    assert script("train.py", f"sweep_resume={sweep}").returncode == 0, "rejected settings are not stored"


def test_a_random_search_draws_from_the_typed_ranges(script: Script, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space = ["optimizer.lr=tag(log,interval(1e-4,1e-2))", "data.batch_size=range(4,9)", "seed=choice(5,6)"]
    more = ["hydra.sweeper.n_trials=4", "hydra.sweeper.n_parallel=2", "hydra.sweeper.params=null", "logger=none"]
    done = script("train.py", "-m", "hparams_search=random", *SHORT, *space, *more)
    assert done.returncode == 0, done.stderr
    jobs = read_sweep(only_sweep(tmp_path))
    assert len(jobs) == 4
    for job in jobs:
        assert 1e-4 <= float(job.settings["optimizer.lr"]) <= 1e-2
        assert int(job.settings["data.batch_size"]) in range(4, 9)
        assert job.settings["seed"] in ("5", "6")
