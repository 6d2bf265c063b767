"""Runs that end before they train: by a signal, at a limit of processor time, or because another run has their folder."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from gpt_pretrain.commands.process.run_context import run_context
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.runs.metadata import read_metadata, track_run
from gpt_pretrain.system.interrupts import exit_on_signals, leave_time_to_stop
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.callbacks.stop import StopOnSignal
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.planning.measurements import fit_for_measuring
from tests.conftest import TINY_RUN
from tests.helpers.training_runs import Printed, Train

Script = Callable[..., "subprocess.CompletedProcess[str]"]
LIMIT = resource.RLIMIT_CPU


@pytest.fixture
def default_handlers() -> Iterator[None]:
    """Have the signals kill this process, as they do outside of nohup."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("default_handlers")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_run_that_a_signal_ends_while_its_budget_is_planned_says_so(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], signum: signal.Signals
) -> None:
    monkeypatch.setattr("gpt_pretrain.training.preflight.plan_budget", lambda *_, **__: os.kill(os.getpid(), signum))
    with pytest.raises(SystemExit) as ended:
        train("data=sample", "budget=5m", base=["trainer.accelerator=cpu"])
    assert ended.value.code == 128 + signum
    metadata = read_metadata(tmp_path / "run")
    assert (metadata["state"], metadata["error"]) == ("interrupted", f"stopped by {signum.name}")
    assert f"Stopped by {signum.name}." in capfd.readouterr().err
    assert signal.getsignal(signum) is signal.SIG_DFL


@pytest.mark.usefixtures("default_handlers")
def test_a_run_that_a_signal_ends_within_lightning_does_not_speak_of_ctrl_c(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextDataModule, "setup", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        train()
    assert ended.value.code == 128 + signal.SIGTERM
    assert read_metadata(tmp_path / "run")["error"] == "stopped by SIGTERM"


@pytest.mark.parametrize(("code", "raised"), [(1, KeyboardInterrupt), (128 + signal.SIGTERM, SystemExit)])
def test_a_measurement_that_is_ended_tells_ctrl_c_from_other_signals(code: int, raised: type[BaseException]) -> None:
    def fit(*_: object, **__: object) -> None:
        sys.exit(code)

    trainer, data = SimpleNamespace(fit=fit, interrupted=True), SimpleNamespace(stop_workers=lambda: None)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as ended:
        fit_for_measuring(trainer, None, data, advice="")  # type: ignore[arg-type]
    assert ended.type is raised


@pytest.mark.usefixtures("default_handlers")
def test_a_process_of_the_run_that_is_ended_leaves_the_run_alone(tmp_path: Path) -> None:
    with run_context(tmp_path, script="train.py", writes=True):
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
        assert read_metadata(tmp_path)["state"] == "running"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((600, 600), (540, 600)),
        ((resource.RLIM_INFINITY, 600), (540, 600)),
        ((1, 1), (1, 1)),
        ((300, 600), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_a_limit_of_processor_time_leaves_some_to_save(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: tuple[int, int] | None
) -> None:
    chosen = list[tuple[int, tuple[int, int]]]()
    monkeypatch.setattr(resource, "getrlimit", lambda limit: before)
    monkeypatch.setattr(resource, "setrlimit", lambda limit, pair: chosen.append((limit, pair)))
    leave_time_to_stop()
    assert chosen == ([] if after is None else [(LIMIT, after)])


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the limits of processor time that have been set, the first of them from outside."""
    found = [(600, 600)]
    monkeypatch.setattr(resource, "getrlimit", lambda limit: found[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda limit, pair: found.append(pair))
    return found


@pytest.mark.usefixtures("default_handlers")
def test_the_results_of_a_training_are_written_with_all_the_processor_time(limits: list[tuple[int, int]]) -> None:
    """From its limit on, the system asks a process each second, which would end it while it writes its report."""
    stop = StopOnSignal(mock.Mock())
    stop.on_train_start(mock.Mock(), mock.Mock())
    assert limits[1:] == [(540, 600)]
    stop.on_train_end(mock.Mock(), mock.Mock())
    assert limits[2:] == [(600, 600)]


@pytest.mark.usefixtures("default_handlers")
@pytest.mark.parametrize(("received", "after"), [(None, []), (signal.SIGXCPU, [(600, 600)])])
def test_a_limit_that_the_user_has_set_is_kept_unless_it_has_stopped_the_run(
    limits: list[tuple[int, int]], received: int | None, after: list[tuple[int, int]]
) -> None:
    limits[0] = (300, 600)
    stop = StopOnSignal(mock.Mock())
    stop.on_train_start(mock.Mock(), mock.Mock())
    stop.received = received
    stop.on_train_end(mock.Mock(), mock.Mock())
    assert limits[1:] == after


@pytest.mark.usefixtures("default_handlers")
@pytest.mark.parametrize(("signum", "after"), [(signal.SIGXCPU, [(600, 600)]), (signal.SIGTERM, [])])
def test_a_process_at_its_limit_of_processor_time_is_asked_once(
    limits: list[tuple[int, int]], signum: signal.Signals, after: list[tuple[int, int]]
) -> None:
    limits[0] = (300, 600)
    with pytest.raises(SystemExit), exit_on_signals():
        os.kill(os.getpid(), signum)
    assert limits[1:] == after


@pytest.mark.parametrize("logging", ["run", "none"])
def test_a_second_run_in_a_folder_is_refused_before_it_changes_anything_there(
    script: Script, tmp_path: Path, logging: str
) -> None:
    with track_run(tmp_path / "r", command="python train.py", overrides=[]):
        before = sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "r").rglob("*") if file.is_file())
        second = script("train.py", *TINY_RUN, "hydra.run.dir=r", f"hydra/job_logging={logging}")
        after = sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "r").rglob("*") if file.is_file())
    assert second.returncode == 2
    assert second.stderr == "error: r: another process is running this job. Wait until it ends, or stop it.\n"
    assert second.stdout == ""
    assert [(name, time) for name, time in after if name.name != ".lock"] == [one for one in before if one[0].name != ".lock"]


@pytest.mark.parametrize("way", ["deleted", "renamed"])
def test_a_run_says_that_its_folder_was_deleted_or_renamed(train: Train, tmp_path: Path, printed: Printed, way: str) -> None:
    run, real = tmp_path / "run", GPTLitModule.training_step

    def moving(module: GPTLitModule, batch: Any, batch_idx: int) -> Any:
        if module.trainer.global_step == 2 and (run / "config.yaml").exists():
            shutil.rmtree(run, ignore_errors=True) if way == "deleted" else run.rename(tmp_path / "other")
        return real(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTLitModule, "training_step", moving)
        train("logger=csv", "callbacks=minimal", "checkpoint.every_n_steps=1")
    assert [line for line in printed() if "deleted or renamed" in line] == [
        f"{run} was deleted or renamed during the run: its config.yaml is missing. The run continues in a new folder of this "
        "name, which lacks the earlier part of the log and of the metrics."
    ]
    assert (run / "checkpoints" / "last.ckpt").exists()


def test_a_drive_that_does_not_answer_is_left_to_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save = SaveRun(mock.Mock(), folder=tmp_path / "checkpoints", settings=mock.Mock(), tokenizer=ByteTokenizer(), config={})
    monkeypatch.setattr(Path, "exists", mock.Mock(side_effect=OSError(errno.ESTALE, "Stale file handle")))
    save._check_folder()
    assert caplog.messages == []
    monkeypatch.setattr(os, "listdir", mock.Mock(side_effect=OSError(errno.ESTALE, "Stale file handle")))
    save._warn_not_written(2, "Stale file handle")
    assert "(Stale file handle). The previous one is kept, and training continues." in caplog.text
