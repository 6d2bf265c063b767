"""plan=true, and what a run says of its cost before and after its first steps."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig

from gpt_pretrain.commands import hydra_arguments
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.formatting import format_duration, format_seconds, format_si
from gpt_pretrain.training.callbacks import time_left
from gpt_pretrain.training.callbacks.samples import Samples
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.planning import dry_run
from gpt_pretrain.training.planning.dry_run import Measured, time_shares
from gpt_pretrain.training.planning.plan import make_plan
from tests.conftest import TINY_RUN
from tests.helpers.plans import plan_run

Script = Callable[..., Any]


def test_a_plan_leaves_no_trace(script: Script, tmp_path: Path) -> None:
    done = script("train.py", *TINY_RUN, "plan=true")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    labels = re.findall(r"^(\w+) +", done.stdout, re.MULTILINE)
    assert labels[2:] == ["model", "data", "length", "tokens", "compute", "memory", "disk", "time", "warnings"]
    assert "Ep 1" not in done.stdout
    (total,) = re.findall(r"^time    about ([\d.]+) s from", done.stdout, re.MULTILINE)
    parts = re.findall(r"^ +([\d.]+) s +\d+%  ", done.stdout, re.MULTILINE)
    assert float(total) == pytest.approx(sum(map(float, parts)), abs=0.3)


def test_the_plan_of_several_devices_measures_one(script: Script, tmp_path: Path) -> None:
    done = script("train.py", *TINY_RUN, "plan=true", "trainer=fsdp", "trainer.devices=2", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert re.search(r"^memory .* on each of 2 devices; measured on one device, unshared, with it ", done.stdout, re.MULTILINE)
    assert re.search(r"^sent +[\d.]+ .?B a step by each of 2 devices, FSDP \+ recomputation ", done.stdout, re.MULTILINE)
    assert "if 2 devices take as long as one did, and sending takes no time" in done.stdout


def test_a_run_and_its_weights_can_be_planned_on_and_stay_as_they_are(script: Script, tmp_path: Path) -> None:
    assert script("train.py", *TINY_RUN, "hydra.run.dir=outputs/a", "trainer.max_epochs=1").returncode == 0
    scratch = tmp_path / "outputs" / "a" / "checkpoints" / ".last.ckpt.01234567.tmp"
    scratch.write_bytes(b"being written by the run, which is still going on")

    def files() -> dict[Path, tuple[int, bytes]]:
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    more = script("train.py", "resume=latest", "trainer.max_epochs=4", "plan=True")
    assert more.returncode == 0, more.stderr
    assert "12 optimizer steps, 3 per epoch" in more.stdout
    assert "steps: 9 of" in more.stdout
    other = script("train.py", *TINY_RUN, "init_from=outputs/a", "plan=true", "hydra.run.dir=it's (a) place")
    assert other.returncode == 0, other.stderr
    assert "free in ." in other.stdout
    taken = script("train.py", *TINY_RUN, "plan=true", "hydra.run.dir=outputs/a")
    assert taken.returncode == 2
    assert "outputs/a already holds a run" in taken.stderr
    assert files() == before
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_what_is_wrong_with_a_plan_is_told_like_that_of_a_run(script: Script, tmp_path: Path) -> None:
    wrong = script("train.py", "plan=true", "optimizer.lr=-1")
    assert wrong.returncode == 2
    assert "optimizer.lr=-1.0: must be above 0" in wrong.stderr
    sweep = script("train.py", "-m", "plan=true", "seed=1,2")
    assert sweep.returncode == 2
    assert "plan=true describes a single run and cannot be combined with a sweep (-m)." in sweep.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_a_plan_that_is_wanted_changes_the_command_line() -> None:
    assert hydra_arguments.apply_dry_run(["seed=1", "plan=false"]) == ["seed=1", "plan=false"]
    assert hydra_arguments.apply_dry_run(["plan=true", "plan=false", "-m"]) == ["plan=true", "plan=false", "-m"]
    assert hydra_arguments.apply_dry_run(["plan=1", "hydra.run.dir=a", "hydra.run.dir=b"])[-1] == "run_dir=b"
    with pytest.raises(UserError, match="sweep"):
        hydra_arguments.apply_dry_run(["--multirun", "++plan=yes"])


def test_the_counts_are_those_of_the_run(
    train: Callable[..., float], compose_train: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = SimpleNamespace(steps=0, losses=0, samples=0, saves=0)

    def count(kind: type, name: str, what: str) -> None:
        function = getattr(kind, name)

        def counting(self: Any, *args: Any, **arguments: Any) -> Any:
            setattr(counted, what, getattr(counted, what) + 1)
            return function(self, *args, **arguments)

        monkeypatch.setattr(kind, name, counting)

    count(GPTLitModule, "optimizer_step", "steps")
    count(GPTLitModule, "mean_loss", "losses")
    count(Samples, "on_train_epoch_end", "samples")
    count(SaveRun, "save", "saves")
    for words in (
        ["trainer.max_epochs=3", "data.stride=100", "checkpoint.every_n_steps=4", "eval_freq=3", "checkpoint.keep=1"],
        ["trainer.max_steps=13", "data.stride=100", "checkpoint.every_n_steps=11", "eval_freq=13", "export=true"],
    ):
        counted.__dict__.update(steps=0, losses=0, samples=0, saves=0)
        train(*words, run_dir=None if words[0].endswith("=3") else Path(str(compose_train().run_dir) + "-2"))
        settings = to_settings(compose_train(*TINY_RUN, *words), TrainSettings)
        plan = plan_run(settings)[2]
        between = plan.validations - plan.epoch_ends
        assert plan.steps == counted.steps
        assert 2 * plan.loss_lines + between == counted.losses
        assert (plan.epoch_ends, plan.validations) == (counted.samples, counted.saves)


def test_a_resumed_run_s_plan_is_of_what_is_left(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train(*TINY_RUN, "trainer.max_epochs=4", "checkpoint.every_n_steps=2"), TrainSettings)
    data, config, whole = plan_run(settings)
    rest = make_plan(settings, data, config, first_step=5)  # of 12, 3 an epoch
    assert (whole.steps, whole.epoch_ends, whole.loss_lines, whole.validations) == (12, 4, 7, 8)
    assert (rest.steps, rest.epoch_ends, rest.loss_lines) == (7, 3, 3)
    assert rest.tokens == 7 * 16 * 32
    assert rest.total_steps == 12


def test_a_run_s_time_is_the_sum_of_its_parts(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train(*TINY_RUN), TrainSettings)
    plan = plan_run(settings)[2]  # 6 steps in 2 epochs; 4 loss lines of 2 batches
    measured = Measured(first_step=10, step=1, eval_batch=0.5, sample=3, save=2, copy=0.25, peak_bytes=None)
    assert time_shares(plan, measured, settings) == pytest.approx(
        {"steps": 15, "loss lines": 4, "validation": 0.5 * 2 * plan.val_batches, "samples": 6, "checkpoints": 4.5}
    )
    settings.checkpoint.every_n_minutes = 0.1  # 6 s
    settings.checkpoint.keep = 1
    assert time_shares(plan, measured, settings)["checkpoints"] == pytest.approx(int((26 + plan.val_batches) / 6) * 2.5)


def test_max_time_that_is_too_short_is_told(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train(*TINY_RUN, "trainer.max_time=00:00:01:00"), TrainSettings)
    assert dry_run._out_of_time(settings, 59) is None
    assert "trainer.max_time=00:00:01:00: the run would take about 2 min 1 s" in str(dry_run._out_of_time(settings, 121))


def test_the_disk_is_left_as_it_was(tmp_path: Path) -> None:
    save, copy = dry_run.disk_seconds(tmp_path / "not" / "there", 10_000)
    assert save > 0
    assert copy > 0
    assert list(tmp_path.iterdir()) == []


def test_every_run_says_what_it_costs(train: Callable[..., float], printed: Callable[[], list[str]]) -> None:
    train()
    (told,) = [line for line in printed() if line.startswith("plan ")]
    assert re.fullmatch(
        r"plan    3,072 tokens, 1,536 an epoch; [\d.]+ MFLOP of training; [\d.]+ MB of memory .*; up to [\d.]+ MB of disk .*",
        told,
    )
    assert any(line.startswith("warning data: ") for line in printed())
    assert not any("left: " in line for line in printed()), "too short a run to say how long it takes"


def test_the_time_left_is_told_once(
    train: Callable[..., float], printed: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_left, "SECONDS", 0.0)
    monkeypatch.setattr(time_left, "WORTH_SAYING", 0.0)
    train("trainer.max_epochs=4", "trainer.accumulate_grad_batches=1")
    (told,) = [line for line in printed() if "left: " in line]
    first, measured = time_left.FIRST_STEPS, time_left.STEPS
    assert f"left: {12 - first - measured} steps of " in told
    assert ", 2 evaluations of " in told


@pytest.mark.parametrize(
    ("number", "told"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_960, "10 kB"), (999_499, "999 kB"), (999_600, "1.0 MB"), (1.5e13, "15 TB")],
)
def test_numbers_have_two_or_three_digits(number: float, told: str) -> None:
    assert format_si(number, "B") == told


def test_times_are_told_in_two_units() -> None:
    assert [format_duration(seconds) for seconds in (4.26, 61, 3_661, 90_000)] == ["4.3 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]
    assert [format_seconds(seconds) for seconds in (0.01234, 0.5, 2.345)] == ["12.3 ms", "500 ms", "2.35 s"]
