"""Start the processes of one training on this machine, and let all processes of a training agree on the run's folder.

torch's own launcher (`torch.distributed.launcher.api.elastic_launch`, tried in torch 2.13 with two ranks) cannot replace this
module:

- It imports torch in the parent.
- As soon as one rank fails, it sends SIGTERM to the others. They then count as interrupted before they can report their own
  errors.
- It sets TORCHELASTIC_RUN_ID. `requeue` recognizes torchrun's jobs by this variable.
- It prints a report of its own.
"""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from gpt_pretrain.config.overrides import full_form, override_key, quote_value
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import OUTPUTS
from gpt_pretrain.runs.metadata import RUNNING, read_metadata, update_metadata
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.interrupts import stop_signals
from gpt_pretrain.system.resources import cores
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.rendezvous import LOOPBACK, STORE_SOCKET, listen_on_loopback

LAUNCH_INFO = "GPT_PRETRAIN_STARTED"  # environment variable: how the run was started, as JSON, for the ranks of `run_ranks`
GRACE_SECONDS = 10.0  # time for the other ranks to end by themselves after one has failed
USER_ERROR_GRACE_SECONDS = 0.5  # the same if the failed rank has explained its error to the user
POLL_SECONDS = 0.1
MACHINE_VARIABLES = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
SHARED_KEYS = {"hydra.run.dir", "hydra.output_subdir", "hydra/job_logging", "run_dir", "resume"}  # rank 0 may add these
QUIET = ["hydra.output_subdir=null", "hydra/job_logging=terminal"]  # overrides for ranks that write nothing


def run_ranks(script: Path, overrides: Sequence[str], *, devices: int, run_dir: Path, launch_info: dict[str, Any]) -> None:
    """Run a script in one process per device, and wait until all processes have ended.

    When one process fails, the others are ended too. Signals that ask a run to stop are forwarded to all processes.

    Args:
        script: The entry script. It may differ from this process's own, which may be a worker of a sweep.
        overrides: The job's settings, as Hydra reads them.
        devices: Processes on this machine. NODE_RANK, MASTER_ADDR and MASTER_PORT describe the other machines.
        run_dir: The run's folder.
        launch_info: How the run was started, for the run metadata, and the number of machines as `num_nodes`.

    Raises:
        SystemExit: If a process fails, with the exit code of the first failure.
    """
    node = node_rank()
    # Opened here and inherited by rank 0, so that no other program can take the port in between.
    listener = listen_on_loopback(int(os.environ.get("MASTER_PORT") or 0)) if launch_info["num_nodes"] == 1 else None
    environment = _rank_environment(devices, node=node, launch_info=launch_info, listener=listener)
    folder = f"hydra.run.dir={quote_value(str(run_dir))}"
    command = [sys.executable, str(script), *overrides, folder, "hydra.output_subdir=null"]
    processes: list[subprocess.Popen[bytes]] = []
    with _forwarding_signals(processes) as received:
        for local_rank in range(devices):
            rank = {"LOCAL_RANK": str(local_rank), "RANK": str(node * devices + local_rank)}
            processes.append(_start_rank(command, environment | rank, listener=None if local_rank else listener))
        if listener is not None:
            listener.close()
        code, failure = _wait(processes)
    if code and node == 0:
        _record_failure(run_dir, failure, interrupted=code - 128 in received)
    if code:
        sys.exit(code)


@contextmanager
def _forwarding_signals(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[set[int]]:
    """Forward the signals that ask a run to stop to all processes during the block, and end the processes after it.

    Yields:
        The signals received so far.
    """
    received: set[int] = set()

    def forward(signum: int, _: FrameType | None) -> None:
        received.add(signum)
        for process in processes:
            process.send_signal(signum)

    previous_handlers = {signum: signal.signal(signum, forward) for signum in stop_signals()}
    try:
        yield received
    finally:
        for process in processes:
            process.kill()
        for signum, handler in previous_handlers.items():
            signal.signal(signum, handler)


def _start_rank(
    command: Sequence[str], environment: Mapping[str, str], *, listener: socket.socket | None
) -> subprocess.Popen[bytes]:
    """Start the process of one rank.

    Args:
        listener: The socket of the store. Only rank 0 inherits it.
    """
    inherited = [] if listener is None else [listener.fileno()]
    variables = {} if listener is None else {STORE_SOCKET: str(listener.fileno())}
    # A session of its own keeps the terminal's Ctrl-C from reaching a rank twice: directly and through the parent process.
    return subprocess.Popen(command, env={**environment, **variables}, pass_fds=inherited, start_new_session=True)


def devices_to_start(devices: int | str, *, accelerator: str, num_nodes: int) -> int:
    """Return the number of processes to start on this machine; 0 if this process trains alone or is already one of several."""
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
    """Check that this machine knows its number and the first machine's address. torchrun and srun always provide them.

    Raises:
        UserError: If it does not know them.
    """
    if ranks.is_distributed():
        return
    if node_rank() >= max(1, num_nodes):
        raise UserError(f"NODE_RANK={node_rank()} must be below trainer.num_nodes={num_nodes}: machines are counted from 0.")
    if num_nodes > 1 and (missing := [name for name in MACHINE_VARIABLES if name not in os.environ]):
        raise UserError(
            f"trainer.num_nodes={num_nodes} needs {', '.join(missing)} in the environment of each machine: NODE_RANK is the "
            "machine's number, counted from 0; MASTER_ADDR is the first machine's address, and MASTER_PORT a free port on it. "
            "torchrun and srun set them by themselves."
        )


def node_rank() -> int:
    """Return the number of this machine in the training, counted from 0.

    Raises:
        UserError: If NODE_RANK is not a number.
    """
    text = os.environ.get("NODE_RANK", "0")
    if not text.isdecimal():
        raise UserError(f"NODE_RANK={text} must be this machine's number, counted from 0.")
    return int(text)


def launch_info() -> dict[str, Any] | None:
    """Return the launch_info from `run_ranks`; None if `run_ranks` has not started this process."""
    text = os.environ.get(LAUNCH_INFO)
    info: dict[str, Any] | None = None if text is None else json.loads(text)
    return info


def end_with_parent(parent: int) -> None:
    """Make the kernel end this process when its parent is killed. End it now if the parent no longer exists.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(128 + signal.SIGTERM)


def agree_on_overrides(make_overrides: Callable[[], list[str]], *, earlier_run: Callable[[], Path | None]) -> list[str]:
    """Return rank 0's arguments on all ranks. They include the run's folder, so that all ranks share it.

    Args:
        make_overrides: Converts this process's arguments for Hydra. Only rank 0 calls it.
        earlier_run: Returns the folder of this job's run if the job has been restarted.

    Raises:
        UserError: If rank 0 rejects the arguments, or its arguments differ from this process's.
        SystemExit: On the other ranks if rank 0 rejects the arguments. They print nothing.
    """
    info = launch_info()
    if info is not None:
        end_with_parent(info["by"])
    ranks.join_process_group()
    if info is not None:  # The launcher has already made the overrides for all ranks of its machine.
        overrides = sys.argv[1:] if info["num_nodes"] == 1 else ranks.broadcast(sys.argv[1:])
    else:
        overrides, problems = _overrides_of_main(make_overrides, earlier_run)
        if problems:
            if ranks.is_main():
                raise UserError(problems)
            sys.exit(ranks.USER_ERROR_CODE)
    if ranks.is_main():
        return overrides
    _check_received(overrides, own=sys.argv[1:])
    quiet_keys = {override_key(override) for override in QUIET}
    return [*(override for override in overrides if override_key(override) not in quiet_keys), *QUIET]


def _check_received(overrides: Sequence[str], *, own: Sequence[str]) -> None:
    """Check that rank 0's arguments add only the run's folder to this process's own.

    A stranger may have taken rank 0's place, and overrides can name any function.

    Raises:
        UserError: If they add anything else.
    """
    own = [full_form(argument, script="train") for argument in own]
    keys = {override_key(argument) for argument in own}
    pairs = [argument.partition("=") for argument in own]
    known = {*own, *(f"{key}={quote_value(value)}" for key, _, value in pairs)}  # rank 0 quotes texts for Hydra
    known = {argument.lstrip("+") for argument in known}  # and begins those of its own mappings with ++
    for override in overrides:
        plain = "=" in override and not override.startswith("-") and "_target_" not in override and "${" not in override
        if override.lstrip("+") not in known and not (plain and override_key(override) in keys | SHARED_KEYS):
            raise UserError(
                f"The first process of this training has sent the argument {override!r:.200}, which this process was not started "
                "with. Start all processes of a training with the same arguments."
            )


def _rank_environment(devices: int, *, node: int, launch_info: dict[str, Any], listener: socket.socket | None) -> dict[str, str]:
    """Return the environment of all ranks on this machine. With several machines, the user provides rank 0's address."""
    store = {} if listener is None else {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(listener.getsockname()[1])}
    return (
        os.environ
        | store
        | {
            "LOCAL_WORLD_SIZE": str(devices),
            "WORLD_SIZE": str(devices * launch_info["num_nodes"]),
            "GROUP_RANK": str(node),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // devices))),
            LAUNCH_INFO: json.dumps(launch_info | {"by": os.getpid()}),
        }
    )


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, str]:
    """Wait for all processes. Once one has failed, wait no longer than the grace period.

    Returns:
        The exit code and the description of the first failure; 0 and "" if all succeed.
    """
    exit_code, failure, deadline = 0, "", float("inf")
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if not exit_code and (failed := [(code, number) for number, code in enumerate(codes) if code]):
            code, number = failed[0]
            exit_code = code if code > 0 else 128 - code
            ending = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
            failure = f"process {number} of {len(processes)} {ending}"
            if code < 0:  # A killed process cannot report its own end.
                print(f"error: {failure}.", file=sys.stderr)
            grace = USER_ERROR_GRACE_SECONDS if exit_code == ranks.USER_ERROR_CODE else GRACE_SECONDS
            deadline = time.monotonic() + grace
        if None not in codes:
            break
        time.sleep(POLL_SECONDS)
    return exit_code, failure


def _record_failure(run_dir: Path, failure: str, *, interrupted: bool) -> None:
    """Add the failed process to the run metadata, if rank 0 has recorded no cause, or only that it lost a rank."""
    metadata = read_metadata(run_dir)
    if metadata.get("state") == RUNNING:
        update_metadata(run_dir, state="interrupted" if interrupted else "failed", error=None if interrupted else failure)
    elif metadata.get("error") and not failure.startswith("process 0"):
        update_metadata(run_dir, error=f"{failure}: {metadata['error']}")


def _overrides_of_main(
    make_overrides: Callable[[], list[str]], earlier_run: Callable[[], Path | None]
) -> tuple[list[str], list[str]]:
    """Return rank 0's overrides and the problems with them, on all ranks."""
    overrides, problems = list[str](), list[str]()
    if ranks.is_main():
        try:
            overrides = make_overrides()
            if {"-m", "--multirun"} & set(overrides):
                command = f"{script_command('train.py')} -m ... trainer.devices=N"
                raise UserError(f"A sweep starts the processes of each job itself: {command}")
            if "hydra.run.dir" not in {override_key(override) for override in overrides}:
                folder = earlier_run() or OUTPUTS / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(3)}"
                overrides = [*overrides, f"hydra.run.dir={quote_value(str(folder))}"]
        except UserError as error:
            problems = error.problems
    overrides, problems = ranks.broadcast([overrides, problems])
    return overrides, problems
