"""The memory that a run may use. A run on a CPU that needs more would stop the whole machine, or be killed by the system."""

from __future__ import annotations

import dataclasses

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import Parallelism, dtype_bytes, training_memory
from gpt_pretrain.model.kernels.chunks import QUERY_BLOCK, keeps_weights
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.formatting import format_si
from gpt_pretrain.system.resources import memory_limit, swap_space

# Of a training in several processes; measured with 4 and 8 of them.
PROCESS_MEMORY, WORKER_MEMORY = 350_000_000, 25_000_000  # bytes of a process without its model, and of each data.num_workers

# Bytes of each token of a batch besides the model's own: indices, other batches that wait, and results that a kernel keeps for a
# moment. They count with widths of 2 to 16, where a step takes up to four times what the formula says.
TOKEN_MEMORY, WAITING_TOKEN = 900, 64  # the second for each data.num_workers, which keeps two batches ready for each set

# Bytes of each weight of a block of queries that attention holds for a moment besides the weights that it keeps: with dropout and
# kept weights, with dropout and weights that are computed again, and in 16 bits without dropout. Measured with blocks of 67 MB.
KEPT_WEIGHT, DROPPED_WEIGHT, HALF_WEIGHT = 12, 28, 14
LAYER_MEMORY = 90_000  # bytes of a layer besides its tensors: modules, parameters and their states; measured with 2,000 layers
MASK_ENTRY = 4  # bytes of each pair of tokens in the mask of PyTorch's own kernel


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
    config = GPTConfig(vocab_size=vocab_size, **dataclasses.asdict(settings.model))
    precision = "32-true" if trainer.precision == "auto" else trainer.precision
    memory = training_memory(
        config,
        batch_size=n_windows,
        precision=precision,
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
    needed += config.n_layers * LAYER_MEMORY
    tokens = n_windows * config.context_length
    needed += max(tokens * TOKEN_MEMORY, attention_bytes(config, batch_size=n_windows, precision=trainer.precision))
    needed += tokens * WAITING_TOKEN * settings.data.num_workers
    if settings.data.respect_documents:
        needed += mask_bytes(config, batch_size=n_windows, precision=precision, recompute=trainer.activation_checkpointing)
    if _processes(settings) > 1:  # Each set has its workers: that for training and that for validation.
        needed += PROCESS_MEMORY + 2 * settings.data.num_workers * WORKER_MEMORY
    if needed > limit + swap // _processes(settings):
        each = " for each process" if devices > trainer.num_nodes else ""
        raise UserError(
            f"A step of this model needs {format_si(needed, 'B')} of memory, but this machine has {format_si(limit, 'B')}{each}. "
            "A smaller model, a shorter model.context_length or a smaller data.batch_size needs less."
        )


def attention_bytes(config: GPTConfig, *, batch_size: int, precision: str) -> int:
    """Return the bytes that attention on a CPU holds for a moment for one block of queries, whose weights cover all keys.

    The precision "auto" counts as one of 16 bits, which it may become.
    """
    per_weight = HALF_WEIGHT if dtype_bytes(precision)[1] == 2 else 0
    if config.drop_rate > 0:
        per_weight = KEPT_WEIGHT if keeps_weights(config.context_length, config.drop_rate) else DROPPED_WEIGHT
    block = min(config.context_length, QUERY_BLOCK) * config.context_length
    return batch_size * config.n_heads * block * per_weight


def mask_bytes(config: GPTConfig, *, batch_size: int, precision: str, recompute: bool) -> int:
    """Return the bytes of the masks that keep documents apart on a CPU (`data.respect_documents`).

    There is a bool for each pair of tokens. PyTorch's kernel makes numbers of it. In fp32 without dropout, it keeps them in each
    block for the backward pass. While the mask is made, there are whole numbers of 8 bytes for the pairs of one window.
    """
    keeps_numbers = config.drop_rate == 0 and dtype_bytes(precision)[1] == 4 and not recompute
    used = batch_size * (1 + MASK_ENTRY * (config.n_layers if keeps_numbers else 1))
    return config.context_length**2 * max(used, 2 * batch_size + 9)
