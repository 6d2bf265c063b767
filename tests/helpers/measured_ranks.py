"""A callback that measures the memory and the traffic of a rank, for the tests of the cost formulas."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.model_checks import peak_bytes

MEASURED = (2, 3, 4)  # batches; by then the optimizer has its moments and DDP has rebuilt its buckets
BYTES_SENT = 200  # offset of tcpi_bytes_sent in struct tcp_info: linux/tcp.h, since Linux 4.19


def bytes_sent() -> int:
    """Return the bytes that this process has sent over all of its TCP connections, as counted by the kernel."""
    total = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(number))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            continue
        total += struct.unpack_from("<Q", info, BYTES_SENT)[0]
    return total


class Collectives(TorchDispatchMode):
    """Count the bytes of each collective, over all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            time.sleep(0.02)  # lets gloo's thread release the tensors, so that they are freed within the profile
            name = func._schema.name.removeprefix("c10d::")
            parts = [part for arg in args[:2] for part in (arg if isinstance(arg, list) else [arg])]
            sizes = [part.nbytes for part in parts if isinstance(part, torch.Tensor)]
            self.bytes[name] = self.bytes.get(name, 0) + max(sizes, default=0)
        return result


class Measured(Callback):
    """Write one row per measured batch: memory held, additional peak memory, bytes sent and bytes of each collective."""

    def __init__(self, out: str) -> None:
        self.out = Path(out)
        self.rows: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in MEASURED:
            self.sent, self.collectives = bytes_sent(), Collectives()
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
            self.profile.__enter__()
            self.collectives.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in MEASURED:
            self.collectives.__exit__(None, None, None)
            self.profile.__exit__(None, None, None)
            state = trainer.optimizers[0].state.values()
            self.rows.append(
                {
                    "weights": sum(_local(parameter) for parameter in module.parameters()),
                    "moments": sum(_local(value) for values in state for name, value in values.items() if name != "step"),
                    "peak": peak_bytes(self.profile),
                    "sent": bytes_sent() - self.sent,
                    **self.collectives.bytes,
                }
            )

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"rank-{trainer.global_rank}.json").write_text(json.dumps(self.rows))


def _local(tensor: torch.Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes
