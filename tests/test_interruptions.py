"""Runs that are stopped, damaged or starved, and what becomes of them."""

import csv
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY_RUN
from crash_harness import differences
from test_training import checkpoint, rows, same_weights

from gpt_pretrain import slurm
from gpt_pretrain.callbacks.save import SaveRun
from gpt_pretrain.checkpoint import write_checkpoint
from gpt_pretrain.errors import UserError
from gpt_pretrain.lit_module import GPTLitModule
from gpt_pretrain.loggers import MetricsFile
from gpt_pretrain.verify_resume import difference, same

Train = Callable[..., float]
Printed = Callable[[], list[str]]

# 5 steps an epoch of 9 batches, with dropout; the mean of train/loss goes over 3 steps.
SETTINGS = [
    *("data.stride=100", "data.batch_size=8", "trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=9"),
    *(
        "trainer.log_every_n_steps=3",
        "scheduler=warmup_cosine",
        "scheduler.warmup_steps=3",
        "callbacks.loss_curve=false",
        "logger=csv",
    ),
]


@contextmanager
def signalled(signum: int, *, at_step: int, validating: bool = False) -> Iterator[None]:
    """Send this process a signal while that optimizer step is computed, or while the validation after it is."""
    name = "validation_step" if validating else "training_step"
    real = getattr(GPTLitModule, name)

    def sending(module: GPTLitModule, batch: Any, batch_idx: int) -> Any:
        if module.trainer.global_step == at_step:
            os.kill(os.getpid(), signum)
        return real(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(GPTLitModule, name, sending)
        yield
    assert caught.value.code == 128 + signum
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the signals are given back"


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_at_any_step_and_resumed_a_run_ends_like_one_that_never_stopped(
    train: Train, tmp_path: Path, workers: int
) -> None:
    words = [*SETTINGS, f"data.num_workers={workers}"]
    train(*words, run_dir=tmp_path / "whole")
    parts = tmp_path / "parts"
    again: list[str] = []
    for step in range(10) if workers == 0 else (1, 4, 6, 9):  # 4 and 9 are the last of their epochs
        with signalled(signal.SIGTERM, at_step=step):
            train(*words, *again, run_dir=parts)
        again = [f"resume='{parts}'"]
        assert checkpoint(parts)["global_step"] == step + 1
    if workers:  # the last signal came in the last step: only the validation after it is left
        train(*words, *again, run_dir=parts)
    else:
        train(*words, *again, run_dir=parts)
    assert differences(tmp_path / "whole", parts) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_in_the_middle_of_a_validation(train: Train, tmp_path: Path, signum: int) -> None:
    train(*SETTINGS, "data.batch_size=2", "trainer.max_epochs=3", run_dir=tmp_path / "whole")
    parts = tmp_path / "parts"
    for step, again in ((5, []), (10, [f"resume='{parts}'"])):
        with signalled(signum, at_step=step, validating=True):
            train(*SETTINGS, "data.batch_size=2", "trainer.max_epochs=3", *again, run_dir=parts)
    train(*SETTINGS, "data.batch_size=2", "trainer.max_epochs=3", f"resume='{parts}'", run_dir=parts)
    assert differences(tmp_path / "whole", parts) == []


def test_checkpoints_by_the_minute_change_nothing(train: Train, tmp_path: Path) -> None:
    train(*SETTINGS, run_dir=tmp_path / "a")
    train(*SETTINGS, "checkpoint.every_n_minutes=1e-9", "checkpoint.keep=3", run_dir=tmp_path / "b")
    assert differences(tmp_path / "a", tmp_path / "b") == []
    names = sorted(path.name for path in (tmp_path / "b" / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "step-00000008.ckpt", "step-00000009.ckpt", "step-00000010.ckpt"]
    assert [checkpoint(tmp_path / "b", name.removesuffix(".ckpt"))["global_step"] for name in names] == [10, 10, 8, 9, 10]


def test_a_run_goes_on_from_an_older_checkpoint_when_the_last_is_damaged(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*SETTINGS, "checkpoint.every_n_steps=2", "checkpoint.keep=9"]
    train(*words, run_dir=tmp_path / "whole")
    parts = tmp_path / "parts"
    with signalled(signal.SIGTERM, at_step=6):
        train(*words, run_dir=parts)
    for name in ("last", "step-00000007"):
        path = parts / "checkpoints" / f"{name}.ckpt"
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 16
        path.write_bytes(data)
    (parts / "checkpoints" / ".last.ckpt.01234567.tmp").write_bytes(b"half a checkpoint")
    train(*words, f"resume='{parts}'", run_dir=parts)
    assert "last.ckpt is damaged: its checksum is" in caplog.text
    assert re.search(r"The newest whole checkpoint is .*step-00000006\.ckpt", caplog.text)
    assert differences(tmp_path / "whole", parts) == []
    assert not list(parts.rglob("*.tmp"))


@contextmanager
def after_saving(at_step: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something once the checkpoint of that step has been written, or has failed."""
    real = SaveRun.save

    def saving(save: SaveRun, trainer: Any, module: Any, **kwargs: Any) -> None:
        real(save, trainer, module, **kwargs)
        if trainer.global_step == at_step:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SaveRun, "save", saving)
        yield


def test_on_a_full_disk_training_goes_on_and_the_old_checkpoint_stays(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*SETTINGS, "checkpoint.every_n_steps=2"]
    train(*words, run_dir=tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full, room = (lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard)) for size in (2000, soft))
    try:
        with after_saving(2, full), after_saving(4, room):
            train(*words, run_dir=tmp_path / "parts")
    finally:
        room()
    assert "The checkpoint of step 3 could not be written" in caplog.text
    assert caplog.text.count("could not be written") == 1
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            after_saving(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))),
            pytest.raises(SystemExit) as caught,
        ):
            train(*SETTINGS, run_dir=tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == 1
    assert "The last checkpoint could not be written" in caplog.text
    assert checkpoint(tmp_path / "run")["global_step"] == 5, "the one before is whole"
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer
@pytest.mark.parametrize("what", ["checkpoints", "."])
def test_a_folder_that_vanishes_is_made_again(train: Train, tmp_path: Path, what: str) -> None:
    words = [*SETTINGS, "logger=tensorboard", "callbacks.loss_curve=true"]
    with after_saving(5, lambda: shutil.rmtree(tmp_path / "run" / what)):
        train(*words, run_dir=tmp_path / "run")
    assert checkpoint(tmp_path / "run")["global_step"] == 10


def test_a_folder_that_cannot_be_written_is_told(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run" / "checkpoints"

    def blocked() -> None:
        folder.rename(tmp_path / "moved")
        folder.write_text("a file where the folder was")

    with after_saving(5, blocked), pytest.raises(SystemExit):
        train(*SETTINGS, run_dir=tmp_path / "run")
    assert "could not be written to" in caplog.text
    assert (tmp_path / "moved" / "last.ckpt").exists()


CHANGES = {
    "model.emb_dim=64": r"model\.emb_dim was 32, is 64 now",
    "tokenizer.name=r50k_base": r"tokenizer\.name was byte, is r50k_base now",
    "data.batch_size=4": r"data\.batch_size was 8, is 4 now",
    "data.train_ratio=0.8": r"data\.train_ratio was 0\.9, is 0\.8 now",
    "seed=7": r"seed was 123, is 7 now",
    "trainer.precision=bf16-mixed": r"trainer\.precision was 32-true, is bf16-mixed now",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_change_the_meaning_of_the_state_is_refused(train: Train, tmp_path: Path, change: str) -> None:
    train(*SETTINGS, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=CHANGES[change]):
        train(*SETTINGS, change, f"resume='{tmp_path / 'run'}'", run_dir=tmp_path / "run")


def test_changes_are_told_together_and_can_be_forced(
    train: Train, tmp_path: Path, story: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.txt").write_text(story)
    words = [*SETTINGS, f"data.path='{tmp_path / 'text.txt'}'"]
    train(*words, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    (tmp_path / "text.txt").write_text(story + "And more.")
    resume = [f"resume='{tmp_path / 'run'}'", "seed=7"]
    with pytest.raises(UserError, match=r"seed was 123, is 7 now; the text that data names has another content"):
        train(*words, *resume, run_dir=tmp_path / "run")
    train(*words, *resume, "resume_force=true", run_dir=tmp_path / "run")
    assert "as resume_force=true allows: the text that data names has another content" in caplog.text
    assert checkpoint(tmp_path / "run")["global_step"] == 10


def test_what_may_change_is_accepted_told_and_kept(train: Train, tmp_path: Path, printed: Printed) -> None:
    train(*SETTINGS, "trainer.max_epochs=1", "optimizer.lr=1e-3", run_dir=tmp_path / "run")
    changes = ["trainer.max_epochs=2", "eval_freq=3", "optimizer.lr=2e-3", "scheduler=constant", "optimizer.weight_decay=0.3"]
    resume = f"resume='{tmp_path / 'run'}'"
    train(*changes, resume, base=[], run_dir=tmp_path / "run")  # nothing else is typed: the rest is as it was
    told = "\n".join(printed())
    assert "Changed since the checkpoint: trainer.max_epochs was 1, is 2 now" in told
    assert "Changed since the checkpoint: scheduler.name was warmup_cosine, is constant now" in told
    content = checkpoint(tmp_path / "run")
    assert content["config"]["model"]["emb_dim"] == 32
    assert content["config"]["data"]["batch_size"] == 8
    assert {group["lr"] for group in content["optimizer_states"][0]["param_groups"]} == {2e-3}
    assert [group["weight_decay"] for group in content["optimizer_states"][0]["param_groups"]] == [0.3, 0.0]
    assert [float(row["lr"]) for row in rows(tmp_path / "run") if row["lr"]][-1] == 2e-3


def with_stored(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the settings within a run's last checkpoint."""
    content = checkpoint(run_dir)
    change(content["config"])
    write_checkpoint(content, run_dir / "checkpoints" / "last.ckpt")


def test_nothing_that_a_checkpoint_s_settings_name_is_built(train: Train, tmp_path: Path) -> None:
    train(*SETTINGS, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    resume = f"resume='{tmp_path / 'run'}'"
    hostile = {"_target_": "os.system", "command": f"touch '{tmp_path / 'marker'}'"}
    for change in (
        lambda config: config["callbacks"].update(custom={"bad": hostile}),
        lambda config: config["optimizer"].update(deep=[{"er": hostile}]),
        lambda config: config.update(itself=config),
    ):
        whole = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
        with_stored(tmp_path / "run", change)
        with pytest.raises(UserError, match=r"hold a _target_|far too many parts"):
            train(*SETTINGS, resume, run_dir=tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(whole)
    assert not (tmp_path / "marker").exists()
    with_stored(tmp_path / "run", lambda config: config.update(start_context="${oc.env:HOME} ${x}", unknown=3))
    train("trainer.max_epochs=2", resume, base=[], run_dir=tmp_path / "run")
    assert checkpoint(tmp_path / "run")["config"]["start_context"] == "${oc.env:HOME} ${x}", "a text, and nothing but a text"


def test_callbacks_of_the_user_s_own_are_named_again(train: Train, tmp_path: Path) -> None:
    words = [*SETTINGS, "+callbacks.custom.watch={_target_: lightning.pytorch.callbacks.LearningRateMonitor}"]
    train(*words, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    resume = f"resume='{tmp_path / 'run'}'"
    with pytest.raises(
        UserError, match=r"callbacks\.custom\.watch \(lightning\.pytorch\.callbacks\.LearningRateMonitor\) was there"
    ):
        train(*SETTINGS, resume, run_dir=tmp_path / "run")
    train(*words, resume, run_dir=tmp_path / "run")


def test_a_run_that_its_time_ended_goes_on_exactly(train: Train, tmp_path: Path) -> None:
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
        assert same(a[key], b[key]), key


@contextmanager
def spoilt(*, steps: set[int], what: str = "loss") -> Iterator[None]:
    """The loss, or the gradients, of the first batch of these optimizer steps are NaN, whenever they come."""
    real = GPTLitModule.training_step

    def spoiling(module: GPTLitModule, batch: Any, batch_idx: int) -> Any:
        here = module.trainer.global_step in steps and batch_idx % 2 == 0
        if here and what == "loss":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("gpt_pretrain.lit_module.next_token_loss", lambda logits, ids: logits.mean() * torch.nan)
                return real(module, batch, batch_idx)
        loss = real(module, batch, batch_idx)
        if here and loss is not None:
            loss = loss + (loss * 0).sqrt()  # zero, with an infinite slope
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTLitModule, "training_step", spoiling)
        yield


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run_before_it_spoils_the_weights(
    train: Train, tmp_path: Path, what: str
) -> None:
    words = [*SETTINGS, "checkpoint.every_n_minutes=1e-9", "trainer.max_epochs=1"]
    with spoilt(steps={3}, what=what), pytest.raises(UserError) as caught:
        train(*words, run_dir=tmp_path / "run")
    batch = 6 if what == "loss" else 7
    assert re.search(
        rf"Step 000003: the {what} of batch {batch} in epoch 1 is nan\. The weights were not touched; the last good checkpoint, "
        r".*last\.ckpt, is that of step 2\.",
        str(caught.value),
    )
    assert checkpoint(tmp_path / "run")["global_step"] == 3
    train(*words, run_dir=tmp_path / "whole")
    train(*words, f"resume='{tmp_path / 'run'}'", run_dir=tmp_path / "run")
    assert differences(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_batch_that_gives_no_number_can_be_left_out(
    train: Train, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    with spoilt(steps={3}, what=what):
        train(*SETTINGS, "on_nonfinite=skip", run_dir=tmp_path / "run")
    assert f"Step 000003: the {what} of batch" in caplog.text
    content = checkpoint(tmp_path / "run")
    assert content["global_step"] == 10
    assert all(value.isfinite().all() for value in content["state_dict"].values())


def test_a_run_can_go_back_and_around_the_batch(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [*SETTINGS, "on_nonfinite=rollback", "checkpoint.every_n_steps=2", "scheduler=constant", "scheduler.warmup_steps=0"]
    with spoilt(steps={3, 7}):
        train(*words, run_dir=tmp_path / "run")
    assert "Going back to step 2, leaving that batch out, with 0.5 of the learning rate" in caplog.text
    assert "Going back to step 6, leaving that batch out, with 0.25 of the learning rate" in caplog.text
    content = checkpoint(tmp_path / "run")
    assert (content["lr_scale"], content["skipped"]) == (0.25, [[0, 6], [1, 4]])
    table = {int(row["step"]): row for row in rows(tmp_path / "run")}
    assert {step: float(row["lr"]) for step, row in table.items() if row["lr"]} == {0: 4e-4, 3: 2e-4, 6: 1e-4, 9: 1e-4}
    assert len(table) == len(rows(tmp_path / "run")), "no step twice"
    with spoilt(steps={1, 2, 3}), pytest.raises(UserError, match="2 rollbacks did not help"):
        train(*words, "max_rollbacks=2", run_dir=tmp_path / "other")


def test_going_back_before_the_first_checkpoint_begins_anew(train: Train, tmp_path: Path) -> None:
    with spoilt(steps={1}):
        train(*SETTINGS, "on_nonfinite=rollback", run_dir=tmp_path / "run")
    content = checkpoint(tmp_path / "run")
    assert (content["global_step"], content["lr_scale"], content["skipped"]) == (10, 0.5, [[0, 2]])


def test_a_job_of_slurm_is_put_back_into_the_queue_and_goes_on(
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
    assert slurm.interrupted_run() is None
    with signalled(signal.SIGUSR1, at_step=3):
        train(*SETTINGS, run_dir=tmp_path / "run")
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert any("SLURM's job 4711 is in the queue again" in line for line in printed())
    assert slurm.interrupted_run() is None, "only a job that is started again goes on"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert slurm.interrupted_run() == tmp_path / "run"
    from gpt_pretrain.cli import with_resume

    assert with_resume(["model=tiny"])[-1] == f"resume='{tmp_path / 'run'}'"
    assert with_resume(["model=tiny", "resume=null"]) == ["model=tiny", "resume=null"]
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm.job() == "9_2"


@pytest.mark.slow
def test_killed_at_25_random_moments_a_run_ends_like_one_that_nobody_disturbed(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "crash_harness.py"), "--kills", "25", "--seed", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=230)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"25 kills, [1-9]\d* of them while a checkpoint was being written", done.stdout)


@pytest.mark.slow
def test_verify_resume_proves_it_with_the_user_s_settings(tmp_path: Path) -> None:
    words = [*TINY_RUN, "data.num_workers=2", "before=2", "after=2", "callbacks=minimal"]
    done = subprocess.run(
        [sys.executable, "-m", "gpt_pretrain.verify_resume", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "identical"), done.stdout + done.stderr
    wrong = subprocess.run(
        [sys.executable, "-m", "gpt_pretrain.verify_resume", "before=x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (wrong.returncode, wrong.stderr) == (2, "error: before=x: must be a whole number of at least 1.\n")


def test_verify_resume_names_the_first_step_and_tensor_that_differ(train: Train, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        fields = f"{{_target_: gpt_pretrain.verify_resume.Fingerprints, file: '{tmp_path / name}.jsonl'}}"
        seed = "seed=5" if name == "c" else "seed=4"
        train(*SETTINGS, "callbacks=default", f"+callbacks.custom.prints={fields}", seed, run_dir=tmp_path / name)
    assert difference(tmp_path / "a", tmp_path / "b") is None
    assert difference(tmp_path / "a", tmp_path / "c") == "step 1: the tensor tok_emb.weight differs"
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    lines[6] = re.sub(r'("trf_blocks\.1\.norm2\.bias": )\d+', r"\g<1>1", lines[6])
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    assert difference(tmp_path / "a", tmp_path / "b") == "step 7: the tensor trf_blocks.1.norm2.bias differs"


def test_the_harness_would_notice(train: Train, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        train(*SETTINGS, f"seed={seed}", run_dir=tmp_path / name)
    found = differences(tmp_path / "a", tmp_path / "b")
    assert {"b: state_dict differs", "b: optimizer_states differs", "b: train_losses differs", "b: metrics.csv differs"} <= set(
        found
    )
    assert not same_weights(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))


def test_a_row_of_metrics_outlives_a_second_kill(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in range(4):
        first.log_metrics({"train/loss": float(step)}, step=step)
    first.flush()
    MetricsFile(path, first_step=3)  # resumed from the checkpoint of step 2, and killed before anything is logged
    again = MetricsFile(path, first_step=3)
    again.log_metrics({"val/loss": 0.5}, step=2)
    again.log_metrics({"train/loss": 9.0}, step=3)
    again.flush()
    with open(path, newline="") as stream:
        table = [(row["step"], row["train/loss"], row["val/loss"]) for row in csv.DictReader(stream)]
    assert table == [("0", "0", ""), ("1", "1", ""), ("2", "2", "0.5"), ("3", "9", "")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]
