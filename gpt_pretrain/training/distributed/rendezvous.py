"""Connect the ranks through a store: torchrun's if it hosts one, otherwise rank 0's.

Neither the store nor gloo asks for a secret. If all ranks are on one machine, rank 0's store and the connections between the
ranks therefore use the loopback interface. No other machine can reach it. torchrun's store listens on all interfaces.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from gpt_pretrain.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

JOB = "GPT_PRETRAIN_JOB"  # a random name that all starts of one torchrun job share
STORE_SOCKET = "GPT_PRETRAIN_STORE_SOCKET"  # the file descriptor of the listening socket of rank 0's store
LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACES = ("lo", "lo0")  # Linux's and macOS's name
LOOPBACK_SECONDS = 10.0  # for a connection within this machine
POLL_SECONDS = 0.02


def on_one_machine() -> bool:
    """Return whether all processes of this training are on this machine, as far as the environment tells."""
    if "LOCAL_WORLD_SIZE" in os.environ and os.environ["LOCAL_WORLD_SIZE"] == os.environ.get("WORLD_SIZE"):
        return True
    # Other names are not looked up: a machine may resolve its own name to 127.0.1.1, although others reach it by that name.
    host = os.environ.get("MASTER_ADDR", "")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def use_loopback() -> None:
    """Make gloo and NCCL connect the ranks through the loopback interface, unless the user has chosen another one."""
    available = [name for _, name in socket.if_nameindex()]
    for interface in LOOPBACK_INTERFACES:
        if interface in available:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def listen_on_loopback(port: int) -> socket.socket:
    """Return a socket that only processes of this machine can connect to.

    Args:
        port: 0 takes a free one.

    Raises:
        UserError: If another program has the port, or nothing can connect to this address.
    """
    _check_loopback()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # An ended training's connections may linger.
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(port_in_use(port)) from error
        raise
    return listener


def _check_loopback() -> None:
    """Check that processes of this machine can connect to each other. Otherwise PyTorch would try for half an hour.

    Raises:
        UserError: If they cannot, as in a container whose loopback interface is down.
    """
    try:
        with socket.socket() as listener:
            listener.bind((LOOPBACK, 0))
            listener.listen()
            socket.create_connection(listener.getsockname(), timeout=LOOPBACK_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"The processes of this training cannot connect to each other: {LOOPBACK} does not answer "
            f"({error.strerror or error}). Start the interface (ip link set lo up), or train in one process: trainer.devices=1"
        ) from error


def port_in_use(port: int | str) -> str:
    """Describe an occupied port to the user."""
    return (
        f"MASTER_PORT={port} is in use by another program on this machine, maybe another training. "
        "Choose another port, the same for all processes of this training."
    )


def connect_ranks(rank: int, world_size: int, *, timeout: timedelta) -> Store:
    """Return the store through which the ranks find each other.

    Raises:
        UserError: If another program has the store's port.
        DistStoreError: If some ranks do not appear within the timeout.
    """
    from torch.distributed import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    descriptor = None
    if on_one_machine() and not hosted:
        host = LOOPBACK
        descriptor = _store_socket(port).detach() if rank == 0 else None
    is_master = rank == 0 and not hosted
    store = TCPStore(host, port, world_size, is_master=is_master, timeout=timeout, master_listen_fd=descriptor)
    if not hosted:
        return store
    start = _agreed_start(store, rank, world_size, timeout=timeout)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(start - 1)
    os.environ[JOB] = _job(store, first=rank == 0 and start == 1)
    return PrefixStore(f"start-{start}", store)


def _store_socket(port: int) -> socket.socket:
    """Return the listening socket that this process has inherited from `run_ranks`, or a new one."""
    if STORE_SOCKET not in os.environ:
        return listen_on_loopback(port)
    listener = socket.socket(fileno=int(os.environ.pop(STORE_SOCKET)))
    listener.set_inheritable(False)
    return listener


def _agreed_start(store: Store, rank: int, world_size: int, *, timeout: timedelta) -> int:
    """Return the number of starts of these ranks by torchrun, including this one. Each start uses its own keys in the store.

    torchrun keeps the store over restarts, so the store holds addresses of ranks that no longer exist. torchrun's own
    TORCHELASTIC_RESTART_COUNT is no help, since it differs between machines (pytorch/pytorch#108158). Therefore each rank
    publishes a fresh random token, and rank 0 answers it with the number of the start. A lost rank cannot answer.

    Raises:
        DistStoreError: If some ranks do not appear within the timeout.
    """
    import torch

    if rank != 0:
        token = secrets.token_hex(8)
        store.set(f"here/{rank}", token)
        start = int(store.get(f"start-of/{token}"))
        store.add(f"met/{start}", 1)
        return start
    start, answered, deadline = store.add("starts", 1), set[str](), time.monotonic() + timeout.total_seconds()
    while store.add(f"met/{start}", 0) < world_size - 1:
        if time.monotonic() > deadline:
            raise torch.distributed.DistStoreError("Some ranks have not connected within the timeout.")
        for other in range(1, world_size):
            if store.check([f"here/{other}"]) and (token := store.get(f"here/{other}").decode()) not in answered:
                store.set(f"start-of/{token}", str(start))
                answered.add(token)
        time.sleep(POLL_SECONDS)
    return start


def _job(store: Store, *, first: bool) -> str:
    """Return the random name of this torchrun job. Rank 0 stores it at the first start. The store lives as long as the job."""
    if first:
        store.set("job", secrets.token_hex(8))
    return str(store.get("job").decode())
