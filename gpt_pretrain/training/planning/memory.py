"""The memory that a run may use. A run on a CPU that needs more would stop the whole machine, or be killed by the system."""

from __future__ import annotations

import dataclasses

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import Parallelism, training_memory
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.formatting import format_si
from gpt_pretrain.system.resources import memory_limit, swap_space

# Of a training in several processes; measured with 4 and 8 of them.
PROCESS_MEMORY, WORKER_MEMORY = 350_000_000, 25_000_000  # bytes of a process without its model, and of each data.num_workers

# Bytes of each token of a batch besides the model's own: indices, other batches that wait, and results that a kernel keeps for a
# moment. They count with widths of 2 to 16, where a step takes up to four times what the formula says.
TOKEN_MEMORY, WAITING_TOKEN = 900, 64  # the second for each data.num_workers, which keeps two batches ready for each set


def memory_per_device(settings: TrainSettings) -> int | None:
    """Return the bytes available to each device, None if unknown. Processes on a CPU share its memory."""
    device = accelerator_device(settings.trainer.accelerator)
    limit = memory_limit(device)
    return None if limit is None else limit // (_processes(settings) if device.type == "cpu" else 1)


def _processes(settings: TrainSettings) -> int:
    return 1 if settings.trainer.devices == "auto" else int(settings.trainer.devices)


def check_memory(settings: TrainSettings, *, vocab_size: int, n_windows: int) -> None:
    """Check that the memory and the swap space of this machine can hold a training step on a CPU.

    Args:
        n_windows: Windows of a batch on each device.

    Raises:
        UserError: If they cannot.
    """
    limit, swap, trainer = memory_per_device(settings), swap_space(), settings.trainer
    if "model" in settings.custom or limit is None or swap is None or accelerator_device(trainer.accelerator).type != "cpu":
        return
    devices = trainer.num_nodes * _processes(settings)
    memory = training_memory(
        GPTConfig(vocab_size=vocab_size, **dataclasses.asdict(settings.model)),
        batch_size=n_windows,
        precision="32-true" if trainer.precision == "auto" else trainer.precision,
        device="cpu",
        parallelism=Parallelism(
            devices,
            fsdp=trainer.strategy == "fsdp" and devices > 1,
            activation_checkpointing=trainer.activation_checkpointing,
            accumulate_grad_batches=trainer.accumulate_grad_batches,
        ),
        optimizer=settings.optimizer.name,
        averages=settings.ema_decay is not None,
    )
    # The user's own optimizer may keep no moments.
    needed = (dataclasses.replace(memory, moments=0) if "optimizer" in settings.custom else memory).peak
    tokens = n_windows * settings.model.context_length
    needed += tokens * (TOKEN_MEMORY + WAITING_TOKEN * settings.data.num_workers)
    if _processes(settings) > 1:  # Each set has its workers: that for training and that for validation.
        needed += PROCESS_MEMORY + 2 * settings.data.num_workers * WORKER_MEMORY
    if needed > limit + swap // _processes(settings):
        each = " for each process" if devices > trainer.num_nodes else ""
        raise UserError(
            f"A step of this model needs {format_si(needed, 'B')} of memory, but this machine has {format_si(limit, 'B')}{each}. "
            "A smaller model, a shorter model.context_length or a smaller data.batch_size needs less."
        )
