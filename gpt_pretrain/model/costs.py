"""Formulas for the costs of a model: parameters, operations, memory and checkpoint size. They need no torch.

Shapes: T context_length, D emb_dim, H heads, L layers, V vocab_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kernels.chunks import chunk_rows, gradient_rows, keeps_weights, loss_block_rows, query_blocks

TensorShape = tuple[int, int]  # rows, numbers in each row

CHECKPOINT_OVERHEAD = 1 << 16  # Bytes of a checkpoint besides its tensors: settings, names and loss curves.


def parameter_counts(config: GPTConfig) -> dict[str, int]:
    """Return the number of trainable parameters of each component. A tied output head counts once."""
    D, L, V = config.emb_dim, config.n_layers, config.vocab_size
    if config.kind == "modern":
        value_numel = value_tables(config) * math.prod(value_table_shape(config))
        tables = {"bigram embedding": config.bigram_rows * D, "value embeddings": value_numel}
        return {
            "token embedding": V * D,
            **{name: numel for name, numel in tables.items() if numel},
            "attention": L * attention_weights(config),
            "feed-forward": L * 8 * D**2,
            "output head": V * D,
        }
    return {
        "token embedding": V * D,
        "position embedding": config.context_length * D,
        "attention": L * (4 * D**2 + D + (3 * D if config.qkv_bias else 0)),
        "feed-forward": L * (8 * D**2 + 5 * D),
        "norms": (2 * L + 1) * 2 * D,
        "output head": 0 if config.tie_embeddings else V * D,
    }


def value_tables(config: GPTConfig) -> int:
    """Return the number of blocks with a value embedding: every other one."""
    return -(-config.n_layers // 2) if config.value_embeddings else 0


def value_table_shape(config: GPTConfig) -> TensorShape:
    """Return the shape of a block's value embedding."""
    return config.vocab_size, config.qkv_rows[2]


def num_parameters(config: GPTConfig) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter_counts(config).values())


def matmul_parameters(config: GPTConfig) -> int:
    """Return the number of weights that each token is multiplied by: the blocks' matrices and the output head.

    Embeddings do not count, because they are looked up.
    """
    D = config.emb_dim
    return config.n_layers * (attention_weights(config) + 8 * D**2) + config.vocab_size * D


def attention_weights(config: GPTConfig) -> int:
    """Return the number of weights in the matrices of a block's attention: 4 D squared unless heads share keys and values."""
    return (sum(config.qkv_rows) + config.emb_dim) * config.emb_dim


def forward_flops_per_token(config: GPTConfig) -> float:
    """Return the floating-point operations per token of a forward pass: 2 for each weight, and 4 L T D for attention.

    As usual, attention counts as if each token attended to all T positions, although causal kernels skip up to half of them.
    Norms, GELU, softmax and dropout do not count.

    Source: Kaplan et al. 2020 (arXiv:2001.08361), section 2.1.
    """
    return 2.0 * matmul_parameters(config) + 4.0 * config.n_layers * config.context_length * config.emb_dim


def training_flops_per_token(config: GPTConfig, *, activation_checkpointing: bool = False) -> float:
    """Return the floating-point operations per token of a forward and a backward pass.

    Each matrix product has two gradients, and each gradient costs as much as the product. Activation checkpointing computes the
    blocks, but not the output head, a second time.

    Source: Chowdhery et al. 2022, "PaLM" (arXiv:2204.02311), appendix B: 6 N + 12 L H K T. Korthikanti et al. 2022
        (arXiv:2205.05198) for recomputation.
    """
    recomputed = forward_flops_per_token(config) - 2.0 * config.vocab_size * config.emb_dim
    return 3.0 * forward_flops_per_token(config) + (recomputed if activation_checkpointing else 0.0)


def block_tensor_shapes(config: GPTConfig) -> list[TensorShape]:
    """Return the shapes of the parameters of one block, without a value embedding. A vector has one number per row."""
    D = config.emb_dim
    if config.kind == "modern":
        return [(sum(config.qkv_rows), D), (D, D), (4 * D, D), (D, 4 * D)]
    qkv = [(3 * D, D), (3 * D, 1)] if config.qkv_bias else [(3 * D, D)]
    biases_and_norms = [(D, 1)] * 6
    return [*qkv, (D, D), (4 * D, D), (4 * D, 1), (D, 4 * D), *biases_and_norms]


def root_tensor_shapes(config: GPTConfig) -> list[TensorShape]:
    """Return the shapes of the parameters outside the blocks: embeddings, last norm and an untied output head."""
    D, V = config.emb_dim, config.vocab_size
    if config.kind == "modern":
        return [(V, D), (V, D), *([(config.bigram_rows, D)] if config.bigram_rows else [])]
    return [(V, D), (config.context_length, D), (D, 1), (D, 1), *([] if config.tie_embeddings else [(V, D)])]


def orthogonalization_flops(config: GPTConfig) -> float:
    """Return the floating-point operations of Muon's orthogonalization of the blocks' matrices in one step.

    Each of the five iterations has two products with a matrix of M rows and K >= M columns, and one product of an M x M matrix
    with itself.
    """
    D = config.emb_dim
    rows = (*config.qkv_rows, D, 4 * D, 4 * D)  # the last one is transposed
    shapes = [sorted((n, D)) for n in rows]
    return 5.0 * config.n_layers * sum(4.0 * M * M * K + 2.0 * M**3 for M, K in shapes)


def padded_numel(shapes: list[TensorShape], devices: int) -> int:
    """Return the number of elements of these tensors after FSDP has padded their rows to a multiple of the devices."""
    return sum(-(-rows // devices) * devices * width for rows, width in shapes)


def block_numel(config: GPTConfig, devices: int) -> int:
    """Return the number of elements of all blocks after FSDP has padded them."""
    blocks, table = padded_numel(block_tensor_shapes(config), devices), padded_numel([value_table_shape(config)], devices)
    return config.n_layers * blocks + value_tables(config) * table


@dataclass(frozen=True)
class Parallelism:
    """The distribution of a training step over devices.

    Args:
        devices: Number of devices on all machines.
        fsdp: Shard the weights over the devices (FSDP). Otherwise each device holds all of them (DDP).
        activation_checkpointing: Keep only the input of each block in the forward pass.
        accumulate_grad_batches: Batches per optimizer step on each device.
    """

    devices: int = 1
    fsdp: bool = False
    activation_checkpointing: bool = False
    accumulate_grad_batches: int = 1

    @property
    def name(self) -> str:
        """The strategy's name for tables."""
        strategy = ("FSDP" if self.fsdp else "DDP") if self.devices > 1 else "single device"
        return strategy + " + recomputation" * self.activation_checkpointing


SINGLE_DEVICE = Parallelism()


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training step needs on one device.

    Args:
        weights: The parameters. With FSDP, weights, moments and gradients are this device's shards.
        moments: AdamW's two moving averages, or Muon's one for each matrix in the blocks.
        gradients: The gradients of all parameters.
        activations: Tensors that the forward pass keeps for the backward pass.
        loss: Tensors that the loss holds during its computation, including the gradient of the output head.
        backward: Tensors that a block's backward pass holds besides the activations: the gradient of the output head, the
            recomputed block, and with FSDP the gathered weights of two blocks and the gradients of one.
        average: The moving average of the weights in fp32, if one is kept.
        gathered: With FSDP, the gathered embeddings. They stay from the first forward pass on.
        gradients_persist: Whether the gradients also exist during the forward pass, as DDP's buckets or as accumulated sums.
    """

    weights: int
    moments: int
    gradients: int
    activations: int
    loss: int
    backward: int
    average: int = 0
    gathered: int = 0
    gradients_persist: bool = False

    @property
    def peak(self) -> int:
        """The largest sum at one time.

        All activations exist during the loss and at the start of the backward pass. All gradients exist at its end.
        """
        start = self.activations + max(self.loss, self.backward) + (self.gradients if self.gradients_persist else 0)
        return self.weights + self.moments + self.average + self.gathered + max(start, self.gradients + self.backward)

    @property
    def parts(self) -> dict[str, int]:
        """The bytes of each part that is not empty, by name."""
        return {name: value for name, value in vars(self).items() if value and name != "gradients_persist"}


def training_memory(
    config: GPTConfig,
    *,
    batch_size: int,
    precision: str,
    device: str,
    parallelism: Parallelism = SINGLE_DEVICE,
    optimizer: str = "adamw",
    averages: bool = False,
) -> TrainingMemory:
    """Return the memory that a training step needs on each device, without the program itself.

    Args:
        batch_size: Sequences per device.
        precision: Lightning's name of the precision.
        device: Device type, such as "cpu" or "cuda".
        optimizer: The setting `optimizer.name`.
        averages: Whether a moving average of the weights is kept (`ema_decay`).

    Source: Rajbhandari et al. 2020, "ZeRO" (arXiv:1910.02054), section 3, for the shards.
    """
    wide, _ = dtype_bytes(precision)
    D, tokens = config.emb_dim, batch_size * config.context_length
    shards = parallelism.devices if parallelism.fsdp else 1
    recompute = parallelism.activation_checkpointing
    root, table = padded_numel(root_tensor_shapes(config), shards), padded_numel([value_table_shape(config)], shards)
    weights = (block_numel(config, shards) + root) // shards * wide
    block = padded_numel(block_tensor_shapes(config), shards) + (table if config.value_embeddings else 0)  # the largest
    activations = activation_bytes(
        config, batch_size=batch_size, precision=precision, device=device, activation_checkpointing=recompute
    )
    gelu_gradient, loss_gradients = 4 * tokens * D, (config.vocab_size + tokens) * D
    backward = (gelu_gradient + loss_gradients) * wide
    if recompute:
        backward += block_activation_bytes(config, batch_size=batch_size, precision=precision, device=device) - tokens * D * wide
    return TrainingMemory(
        weights=weights,
        moments=2 * weights - (_matrix_numel(config, shards) // shards * wide if optimizer == "muon" else 0),
        average=weights // wide * 4 if averages else 0,
        gradients=weights,
        activations=activations,
        loss=loss_bytes(config, batch_size=batch_size, precision=precision, device=device),
        backward=backward + (3 * block * wide if shards > 1 else 0),
        gathered=root * wide if shards > 1 else 0,
        gradients_persist=parallelism.accumulate_grad_batches > 1 or (parallelism.devices > 1 and not parallelism.fsdp),
    )


def block_activation_bytes(config: GPTConfig, *, batch_size: int, precision: str, device: str) -> int:
    """Return the bytes that a block keeps of a batch for its backward pass.

    The block keeps the residual stream at its two norms. In the dtype of matrix products it keeps the input of each of its four
    matrices (D, D, D, 4 D), the queries, keys and values (3 D) and the input of GELU (4 D). With autocast, it also keeps a copy
    of the matrices. Dropout keeps its masks. On a CPU the masks are numbers, and attention also keeps its weights if windows are
    short.
    """
    D, H = config.emb_dim, config.n_heads
    wide, narrow = dtype_bytes(precision)
    weight_copies = 0 if wide == narrow else (attention_weights(config) + 8 * D**2) * narrow
    token = 2 * (wide * D + 8) + 14 * narrow * D + 4 * H
    if config.kind == "modern":
        token = _modern_bytes_per_token(config, precision=precision, device=device)
    if config.drop_rate > 0:
        uses_keep_mask = device == "cpu"  # PyTorch's own dropout keeps one byte per element.
        token += 2 * D * (narrow if uses_keep_mask else 1)
        if uses_keep_mask:
            token -= 4 * H  # kept by the fused kernel
        if uses_keep_mask and keeps_weights(config.context_length, config.drop_rate):
            token += round(2 * H * _mean_attended_keys(config.context_length)) * narrow
    return weight_copies + batch_size * config.context_length * token


def _modern_bytes_per_token(config: GPTConfig, *, precision: str, device: str) -> int:
    """Return the bytes that a modern block keeps of each token without dropout.

    The block keeps the inputs of its two norms, and of the norms of queries and keys. In the dtype of matrix products it keeps
    the input of each matrix (D, D, D, 4 D), the output of ReLU (4 D), queries, keys and values. Shared keys and values are
    repeated for each query head. If nothing copies the values, they are a view, and the view also keeps the unrotated queries and
    keys.
    """
    D, H = config.emb_dim, config.n_heads
    wide, narrow = dtype_bytes(precision)
    in_blocks = device == "cpu" and (config.drop_rate > 0 or narrow == 2)  # by the kernels of model/kernels/attention.py
    all_rows, copied = sum(config.qkv_rows), config.kv_heads < H or in_blocks
    norms = 2 * (wide * D + 4) + wide * (D + config.qkv_rows[1]) + 4 * (H + config.kv_heads)
    return norms + narrow * (11 * D + 2 * D + (D if copied else all_rows)) + 4 * H


def activation_bytes(
    config: GPTConfig, *, batch_size: int, precision: str, device: str, activation_checkpointing: bool = False
) -> int:
    """Return the bytes that a model keeps of a batch for the backward pass. Compiled blocks may keep less."""
    D, tokens = config.emb_dim, batch_size * config.context_length
    wide, _ = dtype_bytes(precision)
    block = tokens * wide * D
    if not activation_checkpointing:
        block = block_activation_bytes(config, batch_size=batch_size, precision=precision, device=device)
    embedding = (D * (wide if device == "cpu" else 1)) if config.drop_rate > 0 else 0
    embedding += wide * D if config.kind == "modern" else 0  # the input of the norm after it
    return config.n_layers * block + tokens * (wide * D + 8 + embedding)


def loss_bytes(config: GPTConfig, *, batch_size: int, precision: str, device: str) -> int:
    """Return the peak memory of the loss: a chunk of logits, the gradients of head and hidden states, and cast copies."""
    wide, narrow = dtype_bytes(precision)
    tokens, head = batch_size * config.context_length, config.vocab_size * config.emb_dim
    rows = chunk_rows(tokens, config.vocab_size, device)
    # The softmax is computed in fp32, so narrower logits are stored twice. The derivative of a cap is stored as well.
    copies_of_block = (narrow < 4) + (config.logit_cap is not None)
    block = loss_block_rows(rows, config.vocab_size, device) * config.vocab_size * 4 * copies_of_block
    logits = rows * config.vocab_size * narrow + block
    gradients = (head + 2 * tokens * config.emb_dim) * wide
    # In half precision the weight is copied, and the gradient is summed in fp32. A CPU casts each product before it adds it.
    product = gradient_rows(config.vocab_size, device) * config.emb_dim * (narrow + (4 if device == "cpu" else 0))
    copies = 0 if narrow == 4 else (head + tokens * config.emb_dim) * narrow + product
    return logits + gradients + copies


def dtype_bytes(precision: str) -> tuple[int, int]:
    """Return the bytes of a number in the residual stream and in a matrix product, for Lightning's name of a precision."""
    return {"32-true": (4, 4), "bf16-true": (2, 2)}.get(precision, (4, 2))


def checkpoint_bytes(config: GPTConfig, *, precision: str, optimizer: str = "adamw", averages: bool = False) -> int:
    """Return the size of a checkpoint in bytes: the weights and the optimizer's averages.

    Muon has one average for each matrix in the blocks. All other parameters have two.

    Args:
        averages: Whether it also contains a moving average of the weights.
    """
    numbers = 3 * num_parameters(config) - (_matrix_numel(config, 1) if optimizer == "muon" else 0)
    average = 4 * num_parameters(config) if averages else 0
    return numbers * (2 if precision == "bf16-true" else 4) + average + CHECKPOINT_OVERHEAD


def _matrix_numel(config: GPTConfig, devices: int) -> int:
    """Return the number of elements of the blocks' matrices, padded for this many devices."""
    return config.n_layers * padded_numel([shape for shape in block_tensor_shapes(config) if shape[1] > 1], devices)


def _mean_attended_keys(context_length: int) -> float:
    """Return the mean number of keys per query. Each block of queries attends to all keys up to the block's end."""
    return sum((end - start) * end for start, end in query_blocks(context_length)) / context_length
