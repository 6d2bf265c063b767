"""The dry run (plan=true), and the costs that every run prints before and after its first steps."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig

from gpt_pretrain.commands.command_line import hydra_arguments
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.system.formatting import format_duration, format_seconds, format_short, format_si
from gpt_pretrain.training.callbacks import time_left
from gpt_pretrain.training.callbacks.samples import Samples
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.planning import dry_run
from gpt_pretrain.training.planning.dry_run import estimate_times
from gpt_pretrain.training.planning.measurements import Measurements, disk_seconds
from gpt_pretrain.training.planning.plan import make_plan
from tests.conftest import TINY_RUN
from tests.helpers.plans import plan_run

Script = Callable[..., Any]


def test_a_dry_run_leaves_no_trace(script: Script, tmp_path: Path) -> None:
    done = script("train.py", *TINY_RUN, "plan=true")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    labels = re.findall(r"^(\w+) +", done.stdout, re.MULTILINE)
    assert labels[2:] == ["model", "data", "length", "tokens", "compute", "memory", "disk", "time", "warnings"]
    assert "Ep 1" not in done.stdout
    (total,) = re.findall(r"^time    about ([\d.]+) s from", done.stdout, re.MULTILINE)
    parts = re.findall(r"^ +([\d.]+) s +\d+%  ", done.stdout, re.MULTILINE)
    assert float(total) == pytest.approx(sum(map(float, parts)), abs=0.3)


def test_a_dry_run_for_several_devices_measures_one(script: Script, tmp_path: Path) -> None:
    done = script("train.py", *TINY_RUN, "plan=true", "trainer=fsdp", "trainer.devices=2", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert re.search(
        r"^memory .* on each of 2 devices by formula, .*; measured on one device with the whole model: ",
        done.stdout,
        re.MULTILINE,
    )
    assert re.search(
        r"^traffic +[\d.]+ .?B sent per step by each of 2 devices, FSDP \+ recomputation ", done.stdout, re.MULTILINE
    )
    assert "if all 2 devices are as fast as the measured one and sending takes no time" in done.stdout


def test_a_dry_run_for_several_machines_needs_only_one(script: Script) -> None:
    done = script("train.py", *TINY_RUN, "plan=true", "trainer.num_nodes=2", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    assert "if all 2 devices are as fast as the measured one" in done.stdout


def test_a_dry_run_of_a_resumed_run_or_of_loaded_weights_changes_no_file(script: Script, tmp_path: Path) -> None:
    assert script("train.py", *TINY_RUN, "hydra.run.dir=outputs/a", "trainer.max_epochs=1").returncode == 0
    scratch = tmp_path / "outputs" / "a" / "checkpoints" / ".last.ckpt.01234567.tmp"
    scratch.write_bytes(b"being written by a run in progress")

    def files() -> dict[Path, tuple[int, bytes]]:
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    resumed = script("train.py", "resume=latest", "trainer.max_epochs=4", "plan=True")
    assert resumed.returncode == 0, resumed.stderr
    assert "12 optimizer steps, 3 per epoch" in resumed.stdout
    assert "steps: 9 of" in resumed.stdout
    other = script("train.py", *TINY_RUN, "init_from=outputs/a", "plan=true", "hydra.run.dir=it's (a) place")
    assert other.returncode == 0, other.stderr
    assert "free in ." in other.stdout
    taken = script("train.py", *TINY_RUN, "plan=true", "hydra.run.dir=outputs/a")
    assert taken.returncode == 2
    assert "outputs/a already holds a run" in taken.stderr
    assert files() == before
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_a_dry_run_reports_errors_as_a_run_does(script: Script, tmp_path: Path) -> None:
    wrong = script("train.py", "plan=true", "optimizer.lr=-1")
    assert wrong.returncode == 2
    assert "optimizer.lr=-1.0: must be a finite number above 0" in wrong.stderr
    sweep = script("train.py", "-m", "plan=true", "seed=1,2")
    assert sweep.returncode == 2
    assert "plan=true describes a single run and cannot be combined with a sweep (-m)." in sweep.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_plan_true_changes_the_overrides() -> None:
    assert hydra_arguments.apply_dry_run(["seed=1", "plan=false"]) == ["seed=1", "plan=false"]
    assert hydra_arguments.apply_dry_run(["plan=true", "plan=false", "-m"]) == ["plan=true", "plan=false", "-m"]
    assert hydra_arguments.apply_dry_run(["plan=1", "hydra.run.dir=a", "hydra.run.dir=b"])[-1] == "run_dir=b"
    with pytest.raises(UserError, match="sweep"):
        hydra_arguments.apply_dry_run(["--multirun", "++plan=yes"])


def test_the_plan_counts_what_the_run_does(
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
    for number, overrides in enumerate(
        (
            ["trainer.max_epochs=3", "data.stride=100", "checkpoint.every_n_steps=4", "eval_freq=3", "checkpoint.keep=1"],
            ["trainer.max_steps=13", "data.stride=100", "checkpoint.every_n_steps=11", "eval_freq=13", "export=true"],
            ["trainer.max_epochs=2", "data.stride=100", "checkpoint.every_n_steps=4", "eval_freq=3", "ema_decay=0.9"],
        )
    ):
        counted.__dict__.update(steps=0, losses=0, samples=0, saves=0)
        train(*overrides, run_dir=Path(f"{compose_train().run_dir}-{number}"))
        settings = to_settings(compose_train(*TINY_RUN, *overrides), TrainSettings)
        plan = plan_run(settings)[2]
        between = plan.validations - plan.epoch_ends
        assert plan.steps == counted.steps
        of_averages = plan.validations if "ema_decay=0.9" in overrides else 0
        assert 2 * plan.evaluations + between + of_averages == counted.losses
        assert (plan.epoch_ends, plan.validations) == (counted.samples, counted.saves)


def test_the_plan_of_a_resumed_run_counts_what_remains(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train(*TINY_RUN, "trainer.max_epochs=4", "checkpoint.every_n_steps=2"), TrainSettings)
    data, config, whole = plan_run(settings)
    rest = make_plan(settings, data, config, first_step=5)  # of 12, 3 per epoch
    assert (whole.steps, whole.epoch_ends, whole.evaluations, whole.validations) == (12, 4, 7, 8)
    assert (rest.steps, rest.epoch_ends, rest.evaluations) == (7, 3, 3)
    assert rest.tokens == 7 * 16 * 32
    assert rest.total_steps == 12


def test_the_repeats_of_a_resumed_run_are_those_of_the_whole_run(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(
        compose_train(*TINY_RUN, "trainer.max_epochs=4", "data.batch_size=7", "trainer.accumulate_grad_batches=2"), TrainSettings
    )
    data, config, whole = plan_run(settings)
    rests = [make_plan(settings, data, config, first_step=step) for step in range(whole.total_steps + 1)]
    sizes = {before.tokens - after.tokens for before, after in pairwise(rests)}
    assert len(sizes) == 2  # the last step of an epoch is smaller
    assert {rest.repeats for rest in rests} == {whole.repeats}


def test_the_estimated_time_is_the_sum_of_the_parts(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train(*TINY_RUN), TrainSettings)
    plan = plan_run(settings)[2]  # 6 steps in 2 epochs; 4 evaluations of 2 batches
    measured = Measurements(first_step=10, step=1, eval_batch=0.5, sample=3, save=2, copy=0.25, peak_bytes=None)
    assert estimate_times(plan, measured, settings) == pytest.approx(
        {"steps": 15, "evaluations": 4, "validation": 0.5 * 2 * plan.val_batches, "samples": 6, "checkpoints": 4.5}
    )
    settings.checkpoint.every_n_minutes = 0.1  # 6 s
    settings.checkpoint.keep = 1
    assert estimate_times(plan, measured, settings)["checkpoints"] == pytest.approx(int((26 + plan.val_batches) / 6) * 2.5)


def test_a_too_short_max_time_gives_a_warning(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train(*TINY_RUN, "trainer.max_time=00:00:01:00"), TrainSettings)
    assert dry_run._exceeds_max_time(settings, 59) is None
    assert "it would take about 2 min 1 s. Allow more time" in str(dry_run._exceeds_max_time(settings, 121))


def test_measuring_the_disk_leaves_no_file(tmp_path: Path) -> None:
    save, copy = disk_seconds(tmp_path / "not" / "there", 10_000)
    assert save > 0
    assert copy > 0
    assert list(tmp_path.iterdir()) == []


def test_every_run_prints_its_costs(train: Callable[..., float], printed: Callable[[], list[str]]) -> None:
    train()
    (line,) = [one for one in printed() if one.startswith("plan ")]
    assert re.fullmatch(
        r"plan    3,072 tokens \(1,536 per epoch\); [\d.]+ MFLOP; [\d.]+ MB of memory .*; up to [\d.]+ MB of disk .*",
        line,
    )
    assert any(line.startswith("warning data: ") for line in printed())
    assert not any("left: " in line for line in printed()), "a run this short prints no remaining time"


def test_the_remaining_time_is_printed_once(
    train: Callable[..., float], printed: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_left, "SECONDS", 0.0)
    monkeypatch.setattr(time_left, "WORTH_SAYING", 0.0)
    train("trainer.max_epochs=4", "trainer.accumulate_grad_batches=1")
    (line,) = [one for one in printed() if "left: " in one]
    first, measured = time_left.FIRST_STEPS, time_left.STEPS
    assert f"left: {12 - first - measured} steps of " in line
    assert ", 2 evaluations of " in line


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_960, "10 kB"), (999_499, "999 kB"), (999_600, "1.0 MB"), (1.5e13, "15 TB")],
)
def test_numbers_have_two_or_three_digits(number: float, text: str) -> None:
    assert format_si(number, "B") == text


def test_amounts_are_short() -> None:
    amounts = [format_short(number, "tokens") for number in (12, 360_448, 1_800_000, 2e9)]
    assert amounts == ["12 tokens", "360k tokens", "1.8M tokens", "2.0B tokens"]


def test_durations_have_two_units() -> None:
    assert [format_duration(seconds) for seconds in (4.26, 61, 3_661, 90_000)] == ["4.3 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]
    assert [format_seconds(seconds) for seconds in (0.01234, 0.5, 2.345)] == ["12.3 ms", "500 ms", "2.35 s"]


def test_a_large_embedding_is_named_with_what_helps() -> None:
    sizes = {"context_length": 16, "emb_dim": 32, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}
    large = GPTConfig(vocab_size=50257, tie_embeddings=False, **sizes)
    (line,) = dry_run._embedding_lines(2 * 50257 * 32 + 10_000, large, typed=True)
    assert "of 50,257 tokens take 100% of the parameters; tokenizer=bpe trains a smaller vocabulary" in line
    assert "tokenizer=bpe" not in dry_run._embedding_lines(2 * 50257 * 32 + 10_000, large, typed=False)[0]
    assert dry_run._embedding_lines(50257 * 32 * 4, GPTConfig(vocab_size=50257, **sizes), typed=True) == []
