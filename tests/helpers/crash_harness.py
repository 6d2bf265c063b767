"""Kill training repeatedly, at random moments, and compare its result with an uninterrupted run.

Each attempt is a process that is killed with SIGKILL. It is forked from a process that has imported everything, so that it starts
to train within a fraction of a second. Writing a checkpoint is slowed down, so that kills hit it.

    python -m tests.helpers.crash_harness --kills 200
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

# Imported before the first fork, since importing takes seconds.
import gpt_pretrain.training.fit  # noqa: E402
import gpt_pretrain.training.preflight  # noqa: E402, F401
from gpt_pretrain.checkpoints import checkpoint_file  # noqa: E402
from gpt_pretrain.commands.verify_resume import equal_contents  # noqa: E402

OVERRIDES = [
    *("model=tiny", "tokenizer=byte", "model.emb_dim=32", "model.n_layers=2", "model.n_heads=2", "model.context_length=32"),
    *("data.batch_size=4", "data.stride=100", "trainer.accelerator=cpu", "trainer.precision=32-true", "model.drop_rate=0.2"),
    *("trainer.max_epochs=2", "trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=3", "eval_freq=4", "eval_iter=1"),
    *("sampler.max_new_tokens=4", "checkpoint.every_n_steps=3", "checkpoint.keep=2", "callbacks.loss_curve=false"),
    *("scheduler=warmup_cosine", "scheduler.warmup_steps=4", "optimizer.lr=3e-3"),
]
COLUMNS = ("step", "epoch", "tokens_seen", "train/loss", "val/loss", "eval/train_loss", "eval/val_loss", "lr", "grad_norm")


@dataclass
class Outcome:
    """The outcome of a series of kills.

    Attributes:
        kills: The number of kills.
        in_writing: The number of kills while a checkpoint was being written.
        runs: The number of runs that were trained to their end.
        problems: All damaged checkpoints and differences between runs.
    """

    kills: int = 0
    in_writing: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)


def disturb(folder: Path, *, kills: int, seed: int, overrides: Sequence[str] = ()) -> Outcome:
    """Train in a folder until this many kills have happened and every run has been trained to its end."""
    chance, outcome = random.Random(seed), Outcome()
    start = time.monotonic()
    _finish(folder / "uninterrupted", overrides)
    seconds = time.monotonic() - start
    while outcome.kills < kills or outcome.runs == 0:
        run_dir = folder / f"run{outcome.runs}"
        while outcome.kills < kills and not _is_done(run_dir):
            child = _begin(run_dir, overrides, slow_writing=True)
            if _killed(child, after=chance.uniform(0.2, 1.2) * seconds):
                outcome.kills += 1
                outcome.in_writing += bool(list(run_dir.rglob(".*.ckpt.*.tmp")))
                outcome.problems += _check_whole(run_dir)
            elif not _is_done(run_dir):
                text = run_dir.with_suffix(".log").read_text(encoding="utf-8")
                raise RuntimeError(f"an attempt failed without a kill: {text[-3000:]}")
        if not _is_done(run_dir):
            _finish(run_dir, overrides)
        outcome.runs += 1
        outcome.problems += differences(folder / "uninterrupted", run_dir)
    return outcome


def differences(a: Path, b: Path) -> list[str]:
    """List the differences between the state, losses and logs of two runs, compared bit for bit."""
    one, other = (checkpoint_file.read_checkpoint(run / "checkpoints" / "last.ckpt", resumable=True) for run in (a, b))
    problems = [
        f"{b.name}: {key} differs"
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "train_losses", "val_losses", "eval_steps", "tokens_seen")
        if not equal_contents(one[key], other[key])
    ]
    problems += [
        f"{b.name}: the {name} of the callbacks differs"
        for name in ("SaveRun", "Randomness")
        if not equal_contents(one["callbacks"][name], other["callbacks"][name])
    ]
    logs = [[[row[column] for column in COLUMNS] for row in _rows(run)] for run in (a, b)]
    problems += [f"{b.name}: metrics.csv differs"] if logs[0] != logs[1] else []
    texts = [(run / "samples.txt").read_text(encoding="utf-8") for run in (a, b)]
    return problems + ([f"{b.name}: samples.txt differs"] if texts[0] != texts[1] else [])


def _begin(run_dir: Path, overrides: Sequence[str], *, slow_writing: bool = False) -> int:
    """Start or resume a run in a new process."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(run_dir.with_suffix(".log"), "ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        torch.set_num_threads(1)
        if slow_writing:
            _slow_down(checkpoint_file.torch, "save")
            _slow_down(os, "replace")
        started = any((run_dir / "checkpoints").glob("*.ckpt"))
        folder = f"resume={run_dir}" if started else f"hydra.run.dir={run_dir}"
        sys.argv = [str(ROOT / "train.py"), *([] if started else [*OVERRIDES, *overrides]), folder]
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(status)


def _slow_down(module: Any, name: str) -> None:
    real = getattr(module, name)

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.01)
        result = real(*args, **kwargs)
        time.sleep(0.01)
        return result

    setattr(module, name, slow)


def _finish(run_dir: Path, overrides: Sequence[str]) -> None:
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    _, status = os.waitpid(_begin(run_dir, overrides), 0)
    if status and not _is_done(run_dir):  # the last kill may have come between the last checkpoint and the last message
        raise RuntimeError(f"an uninterrupted run failed: {run_dir.with_suffix('.log').read_text()[-3000:]}")


def _killed(child: int, *, after: float) -> bool:
    """Kill a process after this many seconds, and return False if it has ended before."""
    end = time.monotonic() + after
    while time.monotonic() < end:
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _is_done(run_dir: Path) -> bool:
    log, output = run_dir / "train.log", run_dir.with_suffix(".log")
    if log.exists() and re.search(r"^\s*Done: ", log.read_text(encoding="utf-8"), re.MULTILINE):
        return True
    # A run that is killed between its last checkpoint and its last message is complete when it is resumed.
    return output.exists() and " is complete: " in output.read_text(encoding="utf-8")


def _check_whole(run_dir: Path) -> list[str]:
    """List the checkpoints that cannot be resumed."""
    problems = []
    for path in (run_dir / "checkpoints").glob("*.ckpt"):
        try:
            checkpoint_file.read_checkpoint(path, resumable=True)
        except Exception as error:
            problems.append(f"{path.name} after a kill: {error}")
    return problems


def _rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        outcome = disturb(Path(folder), kills=arguments.kills, seed=arguments.seed)
    print(
        f"{outcome.kills} kills, {outcome.in_writing} of them while a checkpoint was being written, over {outcome.runs} runs in "
        f"{time.monotonic() - start:.0f} s: "
        + ("all ended like the uninterrupted one" if not outcome.problems else "NOT identical")
    )
    print("\n".join(outcome.problems))
    return bool(outcome.problems)


if __name__ == "__main__":
    sys.exit(main())
