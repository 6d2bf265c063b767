"""Starting the processes of one training on this machine, and having those that others have started agree on its folder."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from gpt_pretrain.config.overrides import override_key, quote_value
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import OUTPUTS
from gpt_pretrain.runs.metadata import RUNNING, read_metadata, update_metadata
from gpt_pretrain.system.resources import cores
from gpt_pretrain.training.distributed import ranks

STARTED = "GPT_PRETRAIN_STARTED"  # what was typed, for the ranks that this module has started
GRACE_SECONDS = 10.0  # for the others to end by themselves when one has failed
TOLD_SECONDS = 0.5  # when it has told the user what to mend
POLL_SECONDS = 0.1
OF_MACHINES = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
FORWARDED = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
QUIET = ["hydra.output_subdir=null", "hydra/job_logging=terminal"]  # for ranks that write nothing


def run_ranks(script: Path, words: Sequence[str], *, devices: int, run_dir: Path, launch_info: dict[str, Any]) -> None:
    """Run a script once for each device, with these words, and wait for the end.

    When one process fails, the others are ended; signals that this one gets are passed on to all.

    Args:
        script: which; not always what this process runs, which may be a worker of a sweep.
        words: the job's settings, as Hydra takes them.
        devices: processes on this machine; NODE_RANK, MASTER_ADDR and MASTER_PORT tell of other machines, if there are any.
        run_dir: the run's folder.
        started: what the run's record says about how it was started, and what was typed.

    Raises:
        SystemExit: when one has failed, with the exit code of the first.
    """
    node = node_rank()
    environment = os.environ | {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
        "LOCAL_WORLD_SIZE": str(devices),
        "WORLD_SIZE": str(devices * launch_info["num_nodes"]),
        "GROUP_RANK": str(node),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // devices))),
        STARTED: json.dumps(launch_info | {"by": os.getpid()}),
    }
    command = [sys.executable, str(script), *words, f"hydra.run.dir={quote_value(str(run_dir))}", "hydra.output_subdir=null"]
    ranks: list[subprocess.Popen[bytes]] = []

    forwarded: set[int] = set()

    def forward(signum: int, _: FrameType | None) -> None:
        forwarded.add(signum)
        for process in ranks:
            process.send_signal(signum)

    before = {signum: signal.signal(signum, forward) for signum in FORWARDED}
    try:
        for local in range(devices):
            own = {"LOCAL_RANK": str(local), "RANK": str(node * devices + local)}
            # Apart from the terminal, whose Ctrl-C comes by way of this process, once for each.
            ranks.append(subprocess.Popen(command, env=environment | own, start_new_session=True))
        code, what = _wait(ranks)
    finally:
        for process in ranks:
            process.kill()
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if code and node == 0:
        _note_failure(run_dir, what, interrupted=code - 128 in forwarded)
    if code:
        sys.exit(code)


def _note_failure(run_dir: Path, what: str, *, interrupted: bool) -> None:
    """Have the run's record tell which process failed, where the first one has not come to that or can only tell of its loss."""
    record = read_metadata(run_dir)
    if record.get("state") == RUNNING:
        update_metadata(run_dir, state="interrupted" if interrupted else "failed", error=None if interrupted else what)
    elif record.get("error") and not what.startswith("process 0"):
        update_metadata(run_dir, error=f"{what}: {record['error']}")


def devices_to_start(devices: int | str, *, accelerator: str, num_nodes: int) -> int:
    """How many processes this one has to start on this machine: none where one is enough, or where it is one of them."""
    if ranks.is_distributed():
        return 0
    if devices == "auto":
        devices = 1
        if accelerator in ("auto", "gpu", "cuda"):
            import torch

            devices = max(1, torch.cuda.device_count())
    several = isinstance(devices, int) and devices >= 1 and devices * num_nodes > 1
    return int(devices) if several else 0


def check_machines(num_nodes: int) -> None:
    """Make sure that this machine knows its number, and where the others are, unless whoever has started this process does.

    Raises:
        UserError: otherwise.
    """
    if ranks.is_distributed():
        return
    if node_rank() >= max(1, num_nodes):
        raise UserError(f"NODE_RANK={node_rank()}: must be below trainer.num_nodes={num_nodes}, as machines are counted from 0.")
    if num_nodes > 1 and (missing := [name for name in OF_MACHINES if name not in os.environ]):
        raise UserError(
            f"trainer.num_nodes={num_nodes}: {', '.join(missing)} must be set, so that the machines find each other: on each its "
            "number from 0 as NODE_RANK, and on all the first one's address as MASTER_ADDR and a free port of it as MASTER_PORT. "
            "torchrun and srun do that by themselves."
        )


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> tuple[int, str]:
    """Wait for all processes, and no longer than GRACE_SECONDS after one has failed.

    Returns:
        The first failure's exit code, and what failed, in words; 0 where nothing did.
    """
    failed, what, deadline = 0, "", float("inf")
    while time.monotonic() < deadline:
        codes = [process.poll() for process in ranks]
        if not failed and (bad := [(code, number) for number, code in enumerate(codes) if code]):
            code, number = bad[0]
            failed = code if code > 0 else 128 - code
            how = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
            what = f"process {number} of {len(ranks)} {how}"
            if code < 0:  # which cannot say so itself
                print(f"error: {what}.", file=sys.stderr)
            deadline = time.monotonic() + (TOLD_SECONDS if failed == 2 else GRACE_SECONDS)
        if None not in codes:
            break
        time.sleep(POLL_SECONDS)
    return failed, what


def node_rank() -> int:
    """Which of several machines this is, from 0, as whoever starts the training on each has told it.

    Raises:
        UserError: when that is no number.
    """
    text = os.environ.get("NODE_RANK", "0")
    if not text.isdecimal():
        raise UserError(f"NODE_RANK={text}: must be this machine's number, from 0.")
    return int(text)


def launch_info() -> dict[str, Any] | None:
    """What `run_ranks` was told, in a process that it has started; None in others."""
    text = os.environ.get(STARTED)
    found: dict[str, Any] | None = None if text is None else json.loads(text)
    return found


def end_with_parent(parent: int) -> None:
    """Have the system stop this process when the one that started it is killed; at once, where that has happened.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(128 + signal.SIGTERM)


def agree_on_overrides(make_words: Callable[[], list[str]], *, earlier_run: Callable[[], Path | None]) -> list[str]:
    """Rank 0's command line for all ranks, with the run's folder in it, so that there is but one.

    Args:
        make_words: makes it from this process's own.
        earlier_run: the folder that this job has begun in before, if it is one that is started again.

    Raises:
        UserError: when rank 0 finds something wrong with it.
        SystemExit: in the other ranks then, which say nothing.
    """
    if (told := launch_info()) is not None:
        end_with_parent(told["by"])
    ranks.join_process_group()
    if told is not None:  # the words are made already
        words = ranks.broadcast(sys.argv[1:])
    else:
        words, problems = _words_of_main(make_words, earlier_run)
        if problems:
            if ranks.is_main():
                raise UserError(problems)
            sys.exit(2)
    return words if ranks.is_main() else [*(word for word in words if override_key(word) not in map(override_key, QUIET)), *QUIET]


def _words_of_main(make_words: Callable[[], list[str]], earlier_run: Callable[[], Path | None]) -> tuple[list[str], list[str]]:
    words, problems = list[str](), list[str]()
    if ranks.is_main():
        try:
            words = make_words()
            if {"-m", "--multirun"} & set(words):
                raise UserError("A sweep starts the processes of each job itself: python train.py -m ... trainer.devices=N.")
            if "hydra.run.dir" not in {override_key(word) for word in words}:
                folder = earlier_run() or OUTPUTS / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(3)}"
                words = [*words, f"hydra.run.dir={quote_value(str(folder))}"]
        except UserError as error:
            problems = error.problems
    return ranks.broadcast((words, problems))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
