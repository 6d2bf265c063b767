"""Runs of the tiny model: settings, interruptions and failures at a chosen step, and readers for the files a run leaves."""

import csv
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint
from gpt_pretrain.training.lit_module import GPTLitModule

Train = Callable[..., float]
Printed = Callable[[], list[str]]

# Five optimizer steps in an epoch of nine batches, with dropout; each train/loss is a mean over three steps.
SETTINGS = [
    *("data.stride=100", "data.batch_size=8", "trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=9"),
    *("trainer.log_every_n_steps=3", "scheduler=warmup_cosine", "scheduler.warmup_steps=3"),
    *("callbacks.loss_curve=false", "logger=csv"),
]


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    """Read a run's checkpoint."""
    content: dict[str, Any] = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content


def with_stored(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the settings inside a run's last checkpoint."""
    content = checkpoint(run_dir)
    change(content["config"])
    write_checkpoint(content, run_dir / "checkpoints" / "last.ckpt")


def same_weights(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return True if two checkpoints hold the same weights, bit for bit."""
    return all(torch.equal(a["state_dict"][name], value) for name, value in b["state_dict"].items())


def rows(run_dir: Path) -> list[dict[str, str]]:
    """Read a run's metrics.csv."""
    with open(run_dir / "metrics.csv", newline="") as stream:
        return list(csv.DictReader(stream))


@contextmanager
def machine_going_away(*, at_step: int) -> Iterator[None]:
    """Make training fail with an exception after this number of optimizer steps."""
    real = GPTLitModule.training_step

    def failing(module: GPTLitModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if module.trainer.global_step == at_step:
            raise RuntimeError("the machine went away")
        return real(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="went away"):
        patch.setattr(GPTLitModule, "training_step", failing)
        yield


@contextmanager
def signalled(signum: int, *, at_step: int, validating: bool = False) -> Iterator[None]:
    """Send this process a signal while it computes an optimizer step, or the validation after it."""
    name = "validation_step" if validating else "training_step"
    real = getattr(GPTLitModule, name)

    def sending(module: GPTLitModule, batch: Any, batch_idx: int) -> Any:
        if module.trainer.global_step == at_step:
            os.kill(os.getpid(), signum)
        return real(module, batch, batch_idx)

    before = signal.getsignal(signum)
    if before is signal.SIG_IGN:  # the tests run under nohup
        signal.signal(signum, signal.SIG_DFL)
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
            patch.setattr(GPTLitModule, name, sending)
            yield
    finally:
        signal.signal(signum, before)
    assert caught.value.code == 128 + signum
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the signal handlers are restored"


@contextmanager
def spoilt(*, steps: set[int], what: str = "loss") -> Iterator[None]:
    """Make the loss, or the gradients, of the first batch of these optimizer steps NaN, every time they are computed."""
    real = GPTLitModule.training_step

    def spoiling(module: GPTLitModule, batch: Any, batch_idx: int) -> Any:
        here = module.trainer.global_step in steps and batch_idx % 2 == 0
        if here and what == "loss":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "gpt_pretrain.training.lit_module.next_token_loss",
                    lambda model, inputs, ids, **kwargs: model(inputs).mean() * torch.nan,
                )
                return real(module, batch, batch_idx)
        loss = real(module, batch, batch_idx)
        if here and loss is not None:
            loss = loss + (loss * 0).sqrt()  # zero, with an infinite slope
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTLitModule, "training_step", spoiling)
        yield
