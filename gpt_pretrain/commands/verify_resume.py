"""Check on this machine, with your settings, that a killed and resumed run ends like an uninterrupted one.

Usage: gpt-pretrain verify_resume [before=K] [after=M] [setting=value ...]

  before   optimizer steps before the kill (default: 4)
  after    optimizer steps after the kill (default: 4)
  setting  any setting of train.py

The command trains K + M steps twice with the same settings. It kills the second run (SIGKILL) after the checkpoint of step K, and
resumes it. It prints `identical` (exit code 0), or the first step and tensor that differ (exit code 1).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.commands.command_line.arguments import wants_help
from gpt_pretrain.commands.process.failures import EXIT_USER_ERROR
from gpt_pretrain.config.overrides import override_key
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import LAST, checkpoint_dir
from gpt_pretrain.system.checkout import SCRIPTS
from gpt_pretrain.system.terminal import print_escaped
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.summary import find_callback

DEFAULT_COUNT = 4
OF_A_RUN = ("resume", "sweep_resume", "hydra.run.dir", "run_dir")  # settings that choose the folder of a run
OF_LENGTH = ("trainer.max_steps", "trainer.max_epochs", "checkpoint.every_n_steps")  # follow from before and after
COMPARED = ("optimizer_states", "lr_schedulers", "train_losses", "val_losses", "eval_steps", "track_tokens_seen", "tokens_seen")


def verify_resume_command(arguments: list[str]) -> int:
    """Compare a resumed run with an uninterrupted one, and return the exit code.

    Raises:
        UserError: If before or after is invalid, a run or a length is typed, or a training fails without the kill.
    """
    if wants_help(arguments):
        print((__doc__ or "").strip())
        return 0
    overrides = list(arguments)
    before, after = _take_count(overrides, "before"), _take_count(overrides, "after")
    keys = {word: override_key(word).lstrip("-+~") for word in overrides}
    problems = [
        f"{word}: gpt-pretrain verify_resume starts runs of its own in a temporary folder, and touches no other. Leave it out."
        for word in overrides
        if word in ("-m", "--multirun") or keys[word] in OF_A_RUN
    ]
    problems += [
        f"{word}: before= and after= are the steps of gpt-pretrain verify_resume, before and after the kill. Leave it out."
        for word in overrides
        if keys[word] in OF_LENGTH
    ]
    if problems:
        raise UserError(problems)
    with tempfile.TemporaryDirectory(prefix="verify-resume-", ignore_cleanup_errors=True) as folder:
        difference = verify(overrides, before=before, after=after, folder=Path(folder))
    print_escaped("identical" if difference is None else difference)
    return 0 if difference is None else 1


class Fingerprints(Callback):
    """Write the checksum of every parameter after every optimizer step, and kill the own process once.

    Args:
        file: The file to append to, one line per step.
        kill_after: The optimizer step after which to kill the process; None never kills it.
    """

    def __init__(self, file: str, kill_after: int | None = None) -> None:
        self.file = Path(file)
        self.kill_after = kill_after

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not pl_module.ends_step(batch_idx):
            return
        sums = {name: checksum(parameter) for name, parameter in pl_module.model.named_parameters()}
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": trainer.global_step, "sums": sums}) + "\n")
        killed = self.file.with_suffix(".killed")
        if self.kill_after is not None and trainer.global_step > self.kill_after and not killed.exists():
            find_callback(trainer, SaveRun).finish_save()  # otherwise the run might have no checkpoint yet
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def checksum(tensor: torch.Tensor) -> int:
    """Return the CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())


def verify(overrides: list[str], *, before: int, after: int, folder: Path) -> str | None:
    """Train twice in a folder, and return the first difference; None if there is none.

    Raises:
        UserError: If a training fails for another reason than the kill.
    """
    steps = [f"trainer.max_steps={before + after}", "trainer.max_epochs=1000000", f"checkpoint.every_n_steps={before}"]
    common = [*overrides, *steps]
    whole, killed = folder / "whole", folder / "killed"
    _train(whole, [*common, _custom(whole)])
    print(f"trained {before + after} steps without interruption", flush=True)
    _train(killed, [*common, _custom(killed, kill_after=before)], expected=-signal.SIGKILL)
    print(f"trained again, killed after step {before}", flush=True)
    # A checkpoint does not store the user's own callbacks.
    custom = [override for override in overrides if override_key(override).startswith("callbacks.custom")]
    _train(killed, [f"resume={killed}", *custom, _custom(killed, kill_after=before)])
    print("resumed, to the same step", flush=True)
    return find_difference(whole, killed)


def find_difference(whole: Path, killed: Path) -> str | None:
    """Describe the first difference between two runs; None if they are bitwise identical."""
    steps = [_sums(run) for run in (whole, killed)]
    for step in sorted(steps[0].keys() | steps[1].keys()):
        sums, other = (found.get(step) for found in steps)
        if sums is None or other is None:
            return f"step {step}: only one of the runs has it"
        for name, value in sums.items():
            if other.get(name) != value:
                return f"step {step}: the tensor {name} differs"
    contents = [read_checkpoint(checkpoint_dir(run) / LAST, resumable=True) for run in (whole, killed)]
    names = [name for name in COMPARED if not equal_contents(contents[0][name], contents[1][name])]
    return f"after the last step: {', '.join(names)} differ" if names else None


def equal_contents(a: Any, b: Any) -> bool:
    """Return whether two nested containers have equal values. Tensors must be bitwise equal."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal_contents(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(equal_contents, a, b))
    return bool(a == b)


def _custom(run_dir: Path, *, kill_after: int | None = None) -> str:
    fields = f"_target_: {Fingerprints.__module__}.Fingerprints, file: '{run_dir}.jsonl'"
    return f"+callbacks.custom.fingerprints={{{fields}, kill_after: {'null' if kill_after is None else kill_after}}}"


def _sums(run_dir: Path) -> dict[int, dict[str, int]]:
    """Return the checksums of each step of a run. For a repeated step, return the checksums of the repetition."""
    lines = run_dir.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    return {line["step"]: line["sums"] for line in map(json.loads, lines)}


def _train(run_dir: Path, overrides: list[str], *, expected: int = 0) -> None:
    folder = [] if overrides[0].startswith("resume=") else [f"hydra.run.dir={run_dir}"]
    command = [sys.executable, str(SCRIPTS / "train.py"), *overrides, *folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != expected:
        for line in (done.stdout + done.stderr)[-2000:].splitlines():
            print_escaped(line, file=sys.stderr)
        if done.returncode == EXIT_USER_ERROR:  # The last line names the problem.
            raise SystemExit(EXIT_USER_ERROR)
        raise UserError(f"The training ended with exit code {done.returncode} instead of {expected}. Its last lines are above.")


def _take_count(arguments: list[str], name: str) -> int:
    """Remove `name=N` from the arguments and return N, or the default.

    Raises:
        UserError: If N is not a whole number of at least 1.
    """
    count = DEFAULT_COUNT
    for argument in [one for one in arguments if one.startswith(f"{name}=")]:
        arguments.remove(argument)
        text = argument.partition("=")[2]
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"{argument}: must be a whole number of at least 1.")
        count = int(text)
    return count
