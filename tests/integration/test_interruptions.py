"""Runs that are stopped by a signal, a time limit or a kill, and then resumed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt_pretrain.commands.verify_resume import equal_contents, find_difference, verify_resume_command
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.sampling import generate_stream
from gpt_pretrain.runs.samples import read_samples
from gpt_pretrain.training import clock
from gpt_pretrain.training.callbacks import samples
from gpt_pretrain.training.distributed import requeue
from gpt_pretrain.training.lit_module import GPTLitModule
from tests.conftest import ROOT, TINY_RUN, without
from tests.helpers.crash_harness import differences
from tests.helpers.training_runs import SETTINGS, Printed, Train, checkpoint, same_weights, signalled


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_at_any_step_and_resumed_ends_like_an_uninterrupted_one(train: Train, tmp_path: Path, workers: int) -> None:
    overrides = [*SETTINGS, f"data.num_workers={workers}"]
    train(*overrides, run_dir=tmp_path / "whole")
    parts = tmp_path / "parts"
    again: list[str] = []
    for step in range(10) if workers == 0 else (1, 4, 6, 9):  # 4 and 9 are the last of their epochs
        with signalled(signal.SIGTERM, at_step=step):
            train(*overrides, *again, run_dir=parts)
        again = [f"resume='{parts}'"]
        assert checkpoint(parts)["global_step"] == step + 1
    train(*overrides, *again, run_dir=parts)  # the last signal came in the last step, so that only the validation is left
    assert differences(tmp_path / "whole", parts) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU])
def test_a_run_stopped_during_validation_ends_like_an_uninterrupted_one(train: Train, tmp_path: Path, signum: int) -> None:
    train(*SETTINGS, "data.batch_size=2", "trainer.max_epochs=3", run_dir=tmp_path / "whole")
    parts = tmp_path / "parts"
    for step, again in ((5, []), (10, [f"resume='{parts}'"])):
        with signalled(signum, at_step=step, validating=True):
            train(*SETTINGS, "data.batch_size=2", "trainer.max_epochs=3", *again, run_dir=parts)
    train(*SETTINGS, "data.batch_size=2", "trainer.max_epochs=3", f"resume='{parts}'", run_dir=parts)
    assert differences(tmp_path / "whole", parts) == []


def test_a_run_under_nohup_goes_on_when_its_terminal_is_closed(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GPTLitModule.training_step

    def closing(module: GPTLitModule, batch: Any, batch_idx: int) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        return real(module, batch, batch_idx)

    monkeypatch.setattr(GPTLitModule, "training_step", closing)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(*SETTINGS, "trainer.max_steps=2", run_dir=tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert checkpoint(tmp_path / "run")["global_step"] == 2


@pytest.mark.parametrize("grid", [False, True])
def test_a_signal_ends_a_long_sample_and_the_run_resumes_exactly(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Printed, grid: bool
) -> None:
    overrides = [*SETTINGS, "callbacks.samples=true", "sampler.max_new_tokens=30"]
    overrides += ["callbacks=grid", "callbacks.grid.temperatures=[0,1]", "callbacks.grid.top_ks=[3]"] if grid else []
    train(*overrides, run_dir=tmp_path / "whole")
    parts, generated = tmp_path / "parts", []

    def sending(*args: Any, **kwargs: Any) -> Iterator[torch.Tensor]:
        for token in generate_stream(*args, **kwargs):
            generated.append(token)
            if len(generated) == (35 if grid else 3):
                os.kill(os.getpid(), signal.SIGTERM)
            yield token

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(samples, "generate_stream", sending)
        patch.setattr(clock, "STOP_GRACE_SECONDS", 0.0)
        train(*overrides, run_dir=parts)
    assert caught.value.code == 128 + signal.SIGTERM
    assert len(generated) == (35 if grid else 3)
    assert checkpoint(parts)["global_step"] == 5
    assert "The sample of epoch 1 is left out until the run resumes, because the run was asked to stop." in printed()
    train(*overrides, f"resume='{parts}'", run_dir=parts)
    assert differences(tmp_path / "whole", parts) == []
    assert [sample.epoch for sample in read_samples(parts / "samples.txt") if sample.sampler is None] == [1, 2]


def test_the_first_of_several_ranks_waits_for_no_other_to_make_a_missing_sample(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*SETTINGS, "callbacks.samples=true", "sampler.max_new_tokens=3"]
    train(*overrides, "trainer.max_epochs=1")
    (tmp_path / "run" / "samples.txt").write_text("")
    # The other ranks do not have this callback, so it asks them for nothing.
    monkeypatch.setattr(samples, "ranks", SimpleNamespace(is_main=lambda: True))
    train(*overrides, "trainer.max_epochs=2", f"resume='{tmp_path / 'run'}'")
    assert [sample.epoch for sample in read_samples(tmp_path / "run" / "samples.txt")] == [1, 2]


def test_checkpoints_at_a_time_interval_do_not_change_the_training(train: Train, tmp_path: Path) -> None:
    train(*SETTINGS, run_dir=tmp_path / "a")
    train(*SETTINGS, "checkpoint.every_n_minutes=1e-9", "checkpoint.keep=3", run_dir=tmp_path / "b")
    assert differences(tmp_path / "a", tmp_path / "b") == []
    names = sorted(path.name for path in (tmp_path / "b" / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "step-00000008.ckpt", "step-00000009.ckpt", "step-00000010.ckpt"]
    assert [checkpoint(tmp_path / "b", name.removesuffix(".ckpt"))["global_step"] for name in names] == [10, 10, 8, 9, 10]


def test_a_run_ended_by_max_time_resumes_exactly(train: Train, tmp_path: Path) -> None:
    train(*SETTINGS, "trainer.max_epochs=4", run_dir=tmp_path / "whole")
    real = GPTLitModule.training_step

    def slow(module: GPTLitModule, batch: Any, batch_idx: int) -> Any:
        time.sleep(0.1)
        return real(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTLitModule, "training_step", slow)
        train(*SETTINGS, "trainer.max_epochs=4", "trainer.max_time=00:00:00:01", run_dir=tmp_path / "parts")
    assert 0 < checkpoint(tmp_path / "parts")["global_step"] < 20
    resume = f"resume='{tmp_path / 'parts'}'"
    train(*SETTINGS, "trainer.max_epochs=4", "trainer.max_time=00:01:00:00", resume, run_dir=tmp_path / "parts")
    a, b = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    for key in ("state_dict", "optimizer_states", "train_losses", "val_losses", "tokens_seen"):
        assert equal_contents(a[key], b[key]), key


def test_a_slurm_job_is_requeued_and_resumes_its_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert requeue.interrupted_run([]) is None
    monkeypatch.setattr(sys, "argv", ["train.py", "model=tiny"])
    with signalled(signal.SIGUSR1, at_step=3):
        train(*SETTINGS, run_dir=tmp_path / "run")
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert any("SLURM job 4711 is queued again" in line for line in printed())
    assert requeue.interrupted_run(["model=tiny"]) is None, "only a restarted job resumes"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeue.interrupted_run(["model=tiny"]) == tmp_path / "run"
    assert requeue.interrupted_run(["model=chapter5"]) is None, "another command of the job"
    from gpt_pretrain.commands.command_line.hydra_arguments import apply_resume

    assert apply_resume(["model=tiny"], typed=["model=tiny"])[-1] == f"resume='{tmp_path / 'run'}'"
    assert apply_resume(["model=tiny", "resume=null"], typed=[]) == ["model=tiny", "resume=null"]
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert requeue.job_name() == "9_2"


@pytest.mark.slow
def test_runs_killed_at_25_random_moments_end_like_an_uninterrupted_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.helpers.crash_harness", "--kills", "25", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=230)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"25 kills, [1-9]\d* of them while a checkpoint was being written", done.stdout)


@pytest.mark.slow
def test_verify_resume_reports_identical_runs(tmp_path: Path) -> None:
    overrides = [*without(TINY_RUN, "trainer.max_epochs"), "data.num_workers=2", "before=2", "after=2", "callbacks=minimal"]
    done = subprocess.run(
        [sys.executable, "-m", "gpt_pretrain", "verify_resume", *overrides],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "identical"), done.stdout + done.stderr
    wrong = subprocess.run(
        [sys.executable, "-m", "gpt_pretrain", "verify_resume", "before=x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (wrong.returncode, wrong.stderr) == (2, "error: before=x: must be a whole number of at least 1.\n")


def test_verify_resume_reports_a_wrong_setting_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verify_resume_command(["nosuch=1"])
    assert (ended.value.code, capfd.readouterr().err) == (
        2,
        "error: nosuch=1: there is no such setting. --cfg job shows all settings.\n",
    )


def test_verify_resume_names_the_first_step_and_tensor_that_differ(train: Train, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        fields = f"{{_target_: gpt_pretrain.commands.verify_resume.Fingerprints, file: '{tmp_path / name}.jsonl'}}"
        seed = "seed=5" if name == "c" else "seed=4"
        train(*SETTINGS, "callbacks=default", f"+callbacks.custom.prints={fields}", seed, run_dir=tmp_path / name)
    assert find_difference(tmp_path / "a", tmp_path / "b") is None
    assert find_difference(tmp_path / "a", tmp_path / "c") == "step 1: the tensor tok_emb.weight differs"
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    lines[6] = re.sub(r'("trf_blocks\.1\.norm2\.bias": )\d+', r"\g<1>1", lines[6])
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    assert find_difference(tmp_path / "a", tmp_path / "b") == "step 7: the tensor trf_blocks.1.norm2.bias differs"


def test_the_crash_harness_notices_differences(train: Train, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        train(*SETTINGS, f"seed={seed}", run_dir=tmp_path / name)
    found = differences(tmp_path / "a", tmp_path / "b")
    assert {"b: state_dict differs", "b: optimizer_states differs", "b: train_losses differs", "b: metrics.csv differs"} <= set(
        found
    )
    assert not same_weights(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))


@pytest.mark.parametrize("word", ["resume=run", "sweep_resume=latest", "hydra.run.dir=run", "--resume=run", "-m"])
def test_verify_resume_touches_no_run_of_the_user(word: str) -> None:
    with pytest.raises(UserError, match=rf"^{word}: gpt-pretrain verify_resume starts runs of its own in a temporary folder"):
        verify_resume_command([word, "model=tiny"])
