"""Identify the rank of this process, and exchange values between ranks. Ranks are the processes that train one model together.

The environment variables RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe the ranks. This
holds for ranks started by `launch.py`, torchrun or SLURM's srun. A process that trains alone never imports torch here.

Source: torchrun's documentation for these names; srun(1) for SLURM's.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.amounts import parse_duration
from gpt_pretrain.training.distributed.rendezvous import connect_ranks, on_one_machine, port_in_use, use_loopback

if TYPE_CHECKING:
    from torch import Tensor

RANK_NUMBERS = (
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"),
    *("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)
NUMBER = re.compile(r"[0-9]{1,9}")
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = "GPT_PRETRAIN_TIMEOUT"  # a rank's waiting time for the others, at the start and in each step
TIMEOUT_SECONDS = 1800.0  # the default: longer than any validation or checkpoint
MAX_TIMEOUT = 365 * 86400.0  # seconds
OTHER_VERSION = (
    "Another process of this training has sent data that this program did not write. All processes must run the same "
    "version of gpt-pretrain, and no other program may use their port."
)
USER_ERROR_CODE = 2  # exit code of a rank that refuses settings or files
MAIN_SPEAKS_SECONDS = 5.0  # time that such a rank gives rank 0 to explain the error; the launcher ends it once rank 0 has ended
MAX_MESSAGE_BYTES = 20_000_000  # message of one rank; the states of its random generators take about 20,000


def is_distributed() -> bool:
    """Return whether this process is one of several that train together."""
    return _number("WORLD_SIZE", 1) > 1 or _in_srun()


def rank() -> int:
    """Return the number of this process, counted from 0; 0 if it trains alone."""
    return _number("RANK", _number("SLURM_PROCID") if _in_srun() else 0) if is_distributed() else 0


def is_main() -> bool:
    """Return whether this is rank 0, which prints, logs and writes for all."""
    return rank() == 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return _number("WORLD_SIZE", _number("SLURM_STEP_NUM_TASKS", 1) if _in_srun() else 1)


def local_world_size() -> int:
    """Return the number of processes of this training on this machine."""
    return _number("LOCAL_WORLD_SIZE", world_size()) if is_distributed() else 1


def check_rank_variables() -> None:
    """Check the environment variables that number the processes of a training. A shell may have kept some from another training.

    Raises:
        UserError: If one is not a number, or announces other processes that do not exist.
    """
    given = {name: text for name in RANK_NUMBERS if (text := os.environ.get(name))}
    problems = [
        f"{name}={text}: this environment variable must be a whole number, as torchrun and srun set it. To train with one "
        f"process: unset {name}"
        for name, text in given.items()
        if NUMBER.fullmatch(text) is None
    ]
    if not problems and not is_distributed():
        problems = [
            f"{name}={given[name]}: this environment variable says that there are other processes, and WORLD_SIZE does not. "
            f"Start the processes with torchrun, or type: unset {name}"
            for name in ("RANK", "LOCAL_RANK")
            if _number(name) > 0
        ]
    elif not problems and rank() >= world_size():
        problems = [f"RANK={rank()} must be below WORLD_SIZE={world_size()}: processes are counted from 0. torchrun sets both."]
    if problems:
        raise UserError(problems)


def timeout() -> timedelta:
    """Return the time that a rank waits for the others before it gives up.

    It is set by an environment variable, since the ranks connect before they read any settings.

    Raises:
        UserError: If GPT_PRETRAIN_TIMEOUT is not a duration.
    """
    text = os.environ.get(TIMEOUT, str(TIMEOUT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = parse_duration(text) or math.nan
    if not 1 <= seconds <= MAX_TIMEOUT:
        raise UserError(f"{TIMEOUT}={text}: must be between 1 s and 1 year, such as 900 (seconds) or 15m.")
    return timedelta(seconds=seconds)


def join_process_group() -> None:
    """Connect to the other ranks. Do nothing if there are none, or if they are already connected.

    Raises:
        UserError: If the environment does not fully describe this rank.
    """
    if not is_distributed():
        return
    import torch

    if torch.distributed.is_initialized():
        return
    if _in_srun() and "RANK" not in os.environ:
        os.environ.update(_from_slurm())
    if missing := [name for name in RANK_VARIABLES if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={world_size()} makes this process one of several, but {', '.join(missing)} must be set as well, as "
            "torchrun does. Unset WORLD_SIZE to train alone."
        )
    if on_one_machine():
        use_loopback()
    backend = "gloo"
    if torch.distributed.is_nccl_available() and torch.cuda.device_count() >= local_world_size():  # else they train on the CPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    store = connect_ranks(rank(), world_size(), timeout=timeout())
    torch.distributed.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout())


@contextmanager
def exit_without_teardown() -> Iterator[None]:
    """End a rank's process after this block without finalizing the interpreter, like multiprocessing.

    A gloo thread aborts the process if it frees a tensor during finalization. Destroying the process group does not prevent this,
    since DDP keeps a reference to the group. A process that trains alone ends normally.

    Source: pytorch/pytorch#179291 for the cause; `multiprocessing.process.BaseProcess._bootstrap` for the order.
    """
    if not is_distributed():
        yield
        return
    code: int | str | None = 0
    try:
        yield
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        from gpt_pretrain.system.terminal import print_escaped  # loads rich

        print_escaped(traceback.format_exc().rstrip(), file=sys.stderr)
        code = 1
    finally:
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        if code == USER_ERROR_CODE:
            _let_main_speak()
        threading._shutdown()  # type: ignore[attr-defined]  # waits for the non-daemon threads
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code or 0)


def _let_main_speak() -> None:
    """Give rank 0 time to explain an error: torchrun ends all ranks when the first one ends. Rank 0 itself does not wait."""
    if not is_main():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        time.sleep(MAIN_SPEAKS_SECONDS)


@contextmanager
def explain_lost_ranks() -> Iterator[None]:
    """Turn torch's errors about lost ranks and occupied ports into messages for the user.

    Raises:
        UserError: If another rank ends or cannot be reached, or another program has the port.
    """
    try:
        yield
    except RuntimeError as error:
        if is_distributed() and "EADDRINUSE" in str(error):
            raise UserError(port_in_use(os.environ["MASTER_PORT"])) from error
        known = ("DistBackendError", "DistNetworkError", "DistStoreError")
        if is_distributed() and (type(error).__name__ in known or "gloo" in str(error)):
            raise UserError(
                "Another process of this training has ended or cannot be reached, so this one stops too. See that process's last "
                "messages for the cause; resume= continues from the last checkpoint."
            ) from error
        raise


def broadcast(value: Any) -> Any:
    """Return rank 0's value on all ranks.

    Ranks exchange JSON. `torch.distributed.broadcast_object_list` unpickles messages, and a pickle can run any code.

    Args:
        value: Anything that JSON can hold; a tuple becomes a list.
    """
    if not is_distributed():
        return value
    import torch

    message = _encode(value)
    size = torch.tensor(len(message))
    torch.distributed.broadcast(size, src=0)
    content = torch.empty(_checked_size(size), dtype=torch.uint8)
    if is_main():
        content = message
    torch.distributed.broadcast(content, src=0)
    return _decode(content)


def all_gather(value: Any) -> list[Any]:
    """Return the values of all ranks, ordered by rank.

    Args:
        value: Anything that JSON can hold; a tuple becomes a list.
    """
    if not is_distributed():
        return [value]
    import torch

    message = _encode(value)
    sizes = [torch.tensor(0) for _ in range(world_size())]
    torch.distributed.all_gather(sizes, torch.tensor(len(message)))
    longest = max(_checked_size(size) for size in sizes)
    contents = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
    torch.distributed.all_gather(contents, torch.nn.functional.pad(message, (0, longest - len(message))))
    return [_decode(content[: int(size)]) for content, size in zip(contents, sizes, strict=True)]


def all_reduce_max(value: int) -> int:
    """Return the largest value of all ranks."""
    if not is_distributed():
        return value
    import torch

    number = torch.tensor(value)
    torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
    return int(number)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks. The argument is not changed."""
    if is_distributed():
        import torch

        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)
    return tensor


@contextmanager
def local_main_first() -> Iterator[None]:
    """Run this block on the first rank of each machine before the others. They then find its work done.

    If it fails there, the other ranks keep waiting until the launcher ends them.
    """
    import torch

    goes_first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if is_distributed() and not goes_first:
        torch.distributed.barrier()
    yield
    if is_distributed() and goes_first:
        torch.distributed.barrier()


def _encode(value: Any) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(message: Tensor) -> Any:
    try:
        return json.loads(message.numpy().tobytes())
    except (ValueError, RecursionError) as error:
        raise UserError(OTHER_VERSION) from error


def _checked_size(size: Tensor) -> int:
    """Return the length of another rank's message, before memory is allocated for it."""
    length = int(size)
    if not 0 < length <= MAX_MESSAGE_BYTES:
        raise UserError(OTHER_VERSION)
    return length


def _in_srun() -> bool:
    """Return whether SLURM's srun has started this process together with others."""
    return _number("SLURM_STEP_NUM_TASKS", 1) > 1 and "SLURM_PROCID" in os.environ


def _number(name: str, default: int = 0) -> int:
    """Return an environment variable as a number, or the default if it is not one. `check_rank_variables` reports the latter."""
    text = os.environ.get(name, "")
    return int(text) if NUMBER.fullmatch(text) else default


def _from_slurm() -> dict[str, str]:
    """Return the environment that torchrun would set, computed from srun's."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", "1")))
    tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
    hosts = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
    job, step = (int(os.environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "GROUP_RANK": os.environ.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(hosts),
        # Jobs on one node have similar numbers, and so do the steps of one job. This formula gives each its own port.
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(15000 + (job + 1009 * step) % 10000),
    }
