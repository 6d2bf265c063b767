"""The processes that train together, called ranks: who this one is, and what all of them have to agree on.

However they are started (`launch.py`, torchrun, SLURM's srun), the environment tells: RANK, LOCAL_RANK, WORLD_SIZE,
LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. torch is loaded only where there is more than one.

Source: torchrun's documentation for these names; srun(1) for SLURM's.
"""

from __future__ import annotations

import atexit
import math
import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from gpt_pretrain.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store

OF_RANKS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = "GPT_PRETRAIN_TIMEOUT"  # seconds that a rank waits for the others: to start, and at any step for the slowest
JOB = "GPT_PRETRAIN_JOB"  # a word that all starts of one job of torchrun have, and no other job
TIMEOUT_SECONDS = 1800.0  # where that is not set: longer than a validation or a checkpoint takes
POLL_SECONDS = 0.02

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or _in_srun()


def rank() -> int:
    """This process's number, from 0; 0 where it is alone."""
    return int(os.environ.get("RANK", os.environ["SLURM_PROCID"] if _in_srun() else "0")) if is_distributed() else 0


def is_main() -> bool:
    """Whether this is the process that prints, logs and writes for all."""
    return rank() == 0


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", os.environ["SLURM_STEP_NUM_TASKS"] if _in_srun() else "1")) if is_distributed() else 1


def local_world_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if is_distributed() else 1


def timeout() -> timedelta:
    """How long a rank waits for the others before it gives them up; known before any setting, since they meet first.

    Raises:
        UserError: when the environment names no such time.
    """
    text = os.environ.get(TIMEOUT, str(TIMEOUT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds < math.inf:
        raise UserError(f"{TIMEOUT}={text}: must be a number of seconds, at least 1.")
    return timedelta(seconds=seconds)


def join_process_group() -> None:
    """Meet the other ranks; nothing happens where there are none, or they have met."""
    if not is_distributed():
        return
    import torch

    if torch.distributed.is_initialized():
        return
    if _in_srun() and "RANK" not in os.environ:
        os.environ.update(_from_slurm())
    if missing := [name for name in OF_RANKS if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={world_size()}: this process is to be one of several, but {', '.join(missing)} must be set as well, as "
            "torchrun does it. Unset WORLD_SIZE to train alone."
        )
    backend = "gloo"
    if torch.distributed.is_nccl_available() and torch.cuda.device_count() >= local_world_size():  # more ranks train on the CPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, store=_store(), rank=rank(), world_size=world_size(), timeout=timeout())


@contextmanager
def exit_without_teardown() -> Iterator[None]:
    """End a rank with what is done within, as multiprocessing ends its processes: without taking the interpreter apart.

    A thread of gloo that gives back a tensor while the interpreter is taken apart aborts the process, which destroying the
    process group does not prevent where DDP holds on to it.

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
        traceback.print_exc()
        code = 1
    finally:
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code or 0)


@contextmanager
def explain_lost_ranks() -> Iterator[None]:
    """Say in plain words that another rank has gone while this one waited for it.

    Raises:
        UserError: then.
    """
    try:
        yield
    except RuntimeError as error:
        if is_distributed() and "EADDRINUSE" in str(error):
            raise UserError(
                f"MASTER_PORT={os.environ['MASTER_PORT']}: another program on this machine has that port, maybe another "
                "training. Choose another one, the same for all processes of this training."
            ) from error
        known = ("DistBackendError", "DistNetworkError", "DistStoreError")
        if is_distributed() and (type(error).__name__ in known or "gloo" in str(error)):
            raise UserError(
                "Another process of this training has ended or is out of reach, so this one cannot go on. Its own last words, "
                "if it had any, tell why; resume= goes on from the last checkpoint."
            ) from error
        raise


def broadcast(value: Value) -> Value:
    """What rank 0 has."""
    if not is_distributed():
        return value
    import torch

    box: list[Any] = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    received: Value = box[0]
    return received


def all_gather(value: Value) -> list[Value]:
    """What each rank has, in their order."""
    if not is_distributed():
        return [value]
    import torch

    boxes: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(boxes, value)
    return boxes


def all_reduce_max(value: int) -> int:
    """The largest number that any rank has."""
    if not is_distributed():
        return value
    import torch

    number = torch.tensor(value)
    torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
    return int(number)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in a tensor of its own."""
    if is_distributed():
        import torch

        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)
    return tensor


def _store() -> Store:
    """Where the ranks find each other: torchrun's own, or rank 0's."""
    from torch.distributed import PrefixStore, TCPStore

    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, world_size(), is_master=rank() == 0 and not hosted, timeout=timeout())
    if not hosted:
        return store
    start = _agreed_start(store)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(start - 1)
    os.environ[JOB] = _job(store, first=start == 1)
    return PrefixStore(f"start-{start}", store)


def _agreed_start(store: Store) -> int:
    """How many times torchrun has started these ranks, this time included; each start has names of its own in its store.

    torchrun keeps the store, with the addresses of ranks that are gone, and the TORCHELASTIC_RESTART_COUNT that it gives
    differs from machine to machine (pytorch/pytorch#108158). So each rank shows a word that it has just made up, which
    rank 0 answers with the number: who is gone does not take note of the answer.

    Raises:
        DistStoreError: when not all have come in time.
    """
    import torch

    if rank() != 0:
        word = secrets.token_hex(8)
        store.set(f"here/{rank()}", word)
        start = int(store.get(f"start-of/{word}"))
        store.add(f"met/{start}", 1)
        return start
    start, answered, deadline = store.add("starts", 1), set[str](), time.monotonic() + timeout().total_seconds()
    while store.add(f"met/{start}", 0) < world_size() - 1:
        if time.monotonic() > deadline:
            raise torch.distributed.DistStoreError("Not all ranks have come.")
        for other in range(1, world_size()):
            if store.check([f"here/{other}"]) and (word := store.get(f"here/{other}").decode()) not in answered:
                store.set(f"start-of/{word}", str(start))
                answered.add(word)
        time.sleep(POLL_SECONDS)
    return start


def _job(store: Store, *, first: bool) -> str:
    """The word that rank 0 has given torchrun's job at its first start, while the store lasts that belongs to it alone."""
    if rank() == 0 and first:
        store.set("job", secrets.token_hex(8))
    return str(store.get("job").decode())


@contextmanager
def local_main_first() -> Iterator[None]:
    """Have the first rank of each machine do something before the others, who then find it done.

    Where it fails, the others are ended by whoever has started them all.
    """
    import torch

    goes_first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if is_distributed() and not goes_first:
        torch.distributed.barrier()
    yield
    if is_distributed() and goes_first:
        torch.distributed.barrier()


def _in_srun() -> bool:
    """Whether SLURM's srun has started this process and others with it."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


def _from_slurm() -> dict[str, str]:
    """The environment that torchrun would give a process, from what srun gave it."""
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
        # Jobs that share a node are near each other, and so are the steps of one job: none of them has another's port.
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(15000 + (job + 1009 * step) % 10000),
    }
