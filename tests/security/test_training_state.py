"""The training state in a checkpoint: what does not look as this program writes it is refused, and an older checkpoint used."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.config.checkpoint_settings import has_signed_settings, sign_settings
from gpt_pretrain.errors import UserError
from gpt_pretrain.training.start.checkpoint import newest_checkpoint, read_resumable
from tests.helpers.hostile_files import hostile_run

Script = Callable[..., "subprocess.CompletedProcess[str]"]

RANDOM = ("callbacks", "Randomness", "ranks", 0)
OPTIMIZER, SCHEDULE = ("optimizer_states", 0), ("lr_schedulers", 0)
DOCTOR = ("callbacks", "WarningSigns")
STOP = {
    **{"wait_count": 0, "stopped_epoch": 0, "best_score": torch.tensor(1.0), "patience": 3},
    **{"stopping_reason": 0, "stopping_reason_message": None},
}
# Where a checkpoint is changed, and into what.
WRONG_STATES: list[tuple[tuple[Any, ...], Any]] = [
    (("callbacks", "Randomness"), []),
    (("callbacks", "Randomness", "ranks"), {}),
    (("callbacks", "Randomness", "ranks"), []),
    (RANDOM, 1),
    ((*RANDOM, "torch"), torch.zeros(8, dtype=torch.uint8)),
    ((*RANDOM, "torch"), torch.zeros(5056, dtype=torch.uint8)),
    ((*RANDOM, "torch"), torch.zeros(5056)),
    ((*RANDOM, "torch"), "x"),
    ((*RANDOM, "cuda"), torch.zeros(3, dtype=torch.uint8)),
    ((*RANDOM, "python"), (3, (1, 2), None)),
    ((*RANDOM, "python"), (3, (2**40,) * 625, None)),
    ((*RANDOM, "python"), (3, tuple(range(625)), "x")),
    ((*RANDOM, "python"), None),
    (OPTIMIZER, []),
    ((*OPTIMIZER, "param_groups"), {}),
    ((*OPTIMIZER, "param_groups"), [{}, {}]),
    ((*OPTIMIZER, "param_groups", 0), 3),
    ((*OPTIMIZER, "param_groups", 0, "params"), "abc"),
    ((*OPTIMIZER, "param_groups", 0, "params"), [0] * 7),
    ((*OPTIMIZER, "param_groups", 0, 5), 1),
    ((*OPTIMIZER, "param_groups", 0, "lr"), []),
    ((*OPTIMIZER, "state"), []),
    ((*OPTIMIZER, "state", 0), []),
    ((*OPTIMIZER, "state", "a"), {}),
    ((*OPTIMIZER, "state", 99), {}),
    ((*OPTIMIZER, "state", 0, "step"), "x"),
    ((*OPTIMIZER, "state", 0, "step"), torch.zeros(3)),
    ((*OPTIMIZER, "state", 0, "exp_avg"), torch.zeros(3)),
    ((*OPTIMIZER, "state", 0, "exp_avg"), 1.0),
    ((*OPTIMIZER, "state", 0, "other"), torch.zeros(3)),
    ((*SCHEDULE, "step"), 1),
    ((*SCHEDULE, "optimizer"), 1),
    ((*SCHEDULE, "last_epoch"), "x"),
    ((*SCHEDULE, "lr_lambdas"), 3),
    ((*SCHEDULE, "lr_lambdas"), [{"step": 1}, None]),
    ((*SCHEDULE, "base_lrs"), "ab"),
    ((*SCHEDULE, "_step_count"), []),
    (SCHEDULE, []),
    (("lr_schedulers",), []),
    (("callbacks", "TrainMetrics", "nats"), "x"),
    (("callbacks", "TrainMetrics", "tokens"), -1),
    (("lr_schedulers", 0, "_last_lr"), []),
    (("lr_schedulers", 0, "base_lrs", 0), 0.0),
    (("callbacks", "SaveRun", "best_loss"), "x"),
    (("callbacks", "SaveRun", "best_epoch"), None),
    (("callbacks", 3), {}),
    (DOCTOR, 1),
    ((*DOCTOR, "findings"), [{"sign": 1, "step": "x", "text": None}]),
    ((*DOCTOR, "findings"), [{"other": 1}]),
    ((*DOCTOR, "findings"), [{"sign": "spike", "step": 1, "text": "x" * 3000}]),
    ((*DOCTOR, "findings"), [{"sign": "spike", "step": 1, "text": "x"}] * 20_000),
    ((*DOCTOR, "lasting"), [[]]),
    ((*DOCTOR, "numbers"), ["x"] * 6),
    ((*DOCTOR, "lines"), [[1]]),
    ((*DOCTOR, "losses"), ["x"]),
    ((*DOCTOR, "norms"), [None]),
    ((*DOCTOR, "left_out"), "x"),
    (("callbacks", "EarlyStopping"), STOP | {"best_score": "x"}),
    (("callbacks", "EarlyStopping"), STOP | {"stopping_reason": 77}),
    (("callbacks", "EarlyStopping"), STOP | {"stopped_epoch": None}),
    (("callbacks", "HeldOutEvaluation"), [1]),
    (("callbacks", "HeldOutEvaluation"), {"steps": "x"}),
    (("train_losses",), ["x"]),
    (("val_losses",), 1),
    (("track_tokens_seen",), [None]),
    (("eval_steps",), {}),
    (("skipped",), [1]),
    (("skipped",), [["a", 1]]),
    (("lr_scale",), float("nan")),
    (("lr_scale",), -1.0),
    (("global_step",), -1),
    (("tokens_seen",), True),
    (("TextDataModule", "epoch"), "x"),
    (("TextDataModule", "windows"), -4),
    (("loops", "fit_loop", "epoch_loop.batch_progress", "current"), {"processed": "x"}),
    (("loops", "fit_loop", "epoch_loop.batch_progress", "total", "ready"), []),
    (("loops", "fit_loop", "epoch_progress", "total", "ready"), -(10**30)),
    (("loops", "validate_loop"), 1),
    (("pytorch-lightning_version",), 3),
    (("pytorch-lightning_version",), "x"),
    (("MixedPrecision",), {"scale": "x"}),
]


def changed(place: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of one value in a checkpoint."""

    def change(content: dict[str, Any]) -> None:
        reduce(lambda node, name: node[name], place[:-1], content)[place[-1]] = copy.deepcopy(value)  # type: ignore[arg-type,index]

    return change


def test_a_wrong_training_state_is_no_valid_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    accepted = []
    for place, value in WRONG_STATES:
        run = hostile_run(finished_run, tmp_path / "run", changed(place, value))
        try:
            read_resumable(run / "checkpoints" / "last.ckpt")
        except UserError as error:
            assert "last.ckpt" in str(error) and len(str(error)) < 1000, (place, value)
        else:
            accepted.append((place, value))
    assert not accepted


def test_the_training_state_that_this_program_writes_is_valid(finished_run: Path, tmp_path: Path) -> None:
    for change in (lambda _: None, changed(("callbacks", "EarlyStopping{'monitor': 'val/loss', 'mode': 'min'}"), STOP)):
        run = hostile_run(finished_run, tmp_path / "run", change)
        assert read_resumable(run / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_an_older_checkpoint_replaces_one_with_a_wrong_state(finished_run: Path, tmp_path: Path) -> None:
    run = hostile_run(finished_run, tmp_path / "older")
    damaged = hostile_run(finished_run, tmp_path / "run", changed((*RANDOM, "torch"), torch.zeros(8, dtype=torch.uint8)))
    (run / "checkpoints" / "last.ckpt").rename(damaged / "checkpoints" / "best.ckpt")
    path, _ = newest_checkpoint(damaged)
    assert path.name == "best.ckpt"


WRONG_SETTINGS = {"accelerator": "../x", "precision": "x", "max_time": "\x1b[2J", "strategy": "x.y"}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_a_wrong_setting_in_a_checkpoint_ends_with_a_message(
    script: Script, finished_run: Path, tmp_path: Path, name: str
) -> None:
    run = hostile_run(finished_run, tmp_path / "run", changed(("config", "trainer", name), WRONG_SETTINGS[name]))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        re.sub(rf"(?m)^  {name}: .*$", lambda _: f"  {name}: {json.dumps(WRONG_SETTINGS[name])}", config)
    )
    done = script("train.py", f"resume={run}", timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"trainer.{name}=" in done.stderr and "Traceback" not in done.stderr and "\x1b" not in done.stderr


def test_a_checkpoint_that_asks_for_a_profile_is_resumed_without_it(script: Script, finished_run: Path, tmp_path: Path) -> None:
    """PyTorch's profiler keeps each operation in memory, also those of the samples, which takes gigabytes."""
    run = hostile_run(finished_run, tmp_path / "run", changed(("config", "trainer", "profiler"), "pytorch"))
    done = script("train.py", f"resume={run}", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "trainer.profiler=pytorch comes from" in done.stdout + done.stderr
    assert not list(run.glob("*.pt.trace.json"))


def test_a_profile_is_signed(finished_run: Path) -> None:
    content = read_checkpoint(finished_run / "checkpoints" / "last.ckpt")
    config = content["config"]
    profiled = config | {"trainer": config["trainer"] | {"profiler": "pytorch"}}
    older = config | {"trainer": {name: value for name, value in config["trainer"].items() if name != "profiler"}}
    assert sign_settings(older) == sign_settings(config), "as earlier versions have signed it"
    assert not has_signed_settings({"config": profiled, "settings_signature": sign_settings(config)})
    assert has_signed_settings({"config": profiled, "settings_signature": sign_settings(profiled)})


def test_a_checkpoint_that_leaves_out_most_batches_is_refused(script: Script, finished_run: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["config"]["trainer"]["devices"] = 10**9
        content["skipped"] = [[0, 0]]

    run = hostile_run(finished_run, tmp_path / "run", change)
    done = script("train.py", f"resume={run}", timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "its training state is damaged (it leaves out 1,000,000,000 batches)" in done.stderr


@pytest.mark.parametrize("name", ["limit_train_batches", "devices", "max_steps"])
def test_a_missing_value_in_the_settings_is_damage(finished_run: Path, tmp_path: Path, name: str) -> None:
    run = hostile_run(finished_run, tmp_path / "run", changed(("config", "trainer", name), "???"))
    with pytest.raises(UserError, match=r"a value that is missing \(\?\?\?\)"):
        read_resumable(run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("number", [4, 26, 30])
def test_a_wrong_training_state_ends_with_a_message(script: Script, finished_run: Path, tmp_path: Path, number: int) -> None:
    run = hostile_run(finished_run, tmp_path / "run", changed(*WRONG_STATES[number]))
    done = script("train.py", f"resume={run}", timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "last.ckpt" in done.stderr


def test_settings_of_another_model_than_the_tensors_are_refused(finished_run: Path, tmp_path: Path) -> None:
    run = hostile_run(finished_run, tmp_path / "run", lambda content: content["config"]["model"].update(n_layers=7))
    with pytest.raises(UserError, match="its settings describe another model than its tensors"):
        read_resumable(run / "checkpoints" / "last.ckpt")


def test_an_architecture_of_tensors_is_refused(finished_run: Path, tmp_path: Path) -> None:
    odd = {"kind": "modern", "init": "modern", "qkv_bias": torch.zeros(2), "tie_embeddings": torch.zeros(2)}
    run = hostile_run(finished_run, tmp_path / "run", lambda content: content["architecture"].update(odd))
    with pytest.raises(UserError, match="must be true or false"):
        read_resumable(run / "checkpoints" / "last.ckpt")
