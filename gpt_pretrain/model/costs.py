"""What a model costs, as formulas of its sizes: parameters, operations, memory, checkpoints. Nothing here needs torch.

Shapes: T context_length, D emb_dim, H heads, L layers, V vocab_size; N tokens of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pretrain.model.config import GPTConfig

Shape = tuple[int, int]  # rows, and numbers in each

CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # kernels/loss.py: fp32 logits held at once
BLOCK = 128  # kernels/attention.py: queries that dropout on a CPU looks at together
FIXED_BYTES = 1 << 16  # of a checkpoint, beside its tensors: settings, names, loss curves


def parameters(config: GPTConfig) -> dict[str, int]:
    """Trainable numbers of each part, a tied head counted once."""
    D, L, V = config.emb_dim, config.n_layers, config.vocab_size
    return {
        "token embedding": V * D,
        "position embedding": config.context_length * D,
        "attention": L * (4 * D**2 + D + (3 * D if config.qkv_bias else 0)),
        "feed-forward": L * (8 * D**2 + 5 * D),
        "norms": (2 * L + 1) * 2 * D,
        "output head": 0 if config.tie_embeddings else V * D,
    }


def num_parameters(config: GPTConfig) -> int:
    """All trainable numbers."""
    return sum(parameters(config).values())


def product_weights(config: GPTConfig) -> int:
    """The weights that each token is multiplied with: every matrix of the blocks, and the head; embeddings are looked up."""
    return 12 * config.n_layers * config.emb_dim**2 + config.vocab_size * config.emb_dim


def forward_flops(config: GPTConfig) -> float:
    """Floating-point operations of a token on the way forward: 2 for each weight it meets, and 4 L T D in attention.

    Attention is counted as if each token looked at all T of a window, as is usual, though causal kernels skip up to half of it.
    Norms, GELU, softmax and dropout are left out: they are a few for each number that a product needs D for.

    Source: Kaplan et al. 2020 (arXiv:2001.08361), section 2.1.
    """
    return 2.0 * product_weights(config) + 4.0 * config.n_layers * config.context_length * config.emb_dim


def training_flops(config: GPTConfig, *, recompute: bool = False) -> float:
    """Floating-point operations of a token forward and backward: a product has two gradients, each as costly as itself.

    Args:
        recompute: whether the blocks, but not the head, are computed a second time on the way back.

    Source: Chowdhery et al. 2022, "PaLM" (arXiv:2204.02311), appendix B: 6 N + 12 L H K T. Korthikanti et al. 2022
        (arXiv:2205.05198) for recomputation.
    """
    again = forward_flops(config) - 2.0 * config.vocab_size * config.emb_dim
    return 3.0 * forward_flops(config) + (again if recompute else 0.0)


def block_shapes(config: GPTConfig) -> list[Shape]:
    """The tensors of a block."""
    D = config.emb_dim
    qkv = [(3 * D, D), (3 * D, 1)] if config.qkv_bias else [(3 * D, D)]
    return [*qkv, (D, D), (4 * D, D), (4 * D, 1), (D, 4 * D), *[(D, 1)] * 6]  # the last: biases, two norms


def root_shapes(config: GPTConfig) -> list[Shape]:
    """The tensors that are in no block: embeddings, last norm, and a head of its own."""
    D, V = config.emb_dim, config.vocab_size
    return [(V, D), (config.context_length, D), (D, 1), (D, 1), *([] if config.tie_embeddings else [(V, D)])]


def padded(shapes: list[Shape], devices: int) -> int:
    """Numbers in tensors whose rows are dealt out to devices, all getting as many as the first: FSDP fills up the rest."""
    return sum(-(-rows // devices) * devices * width for rows, width in shapes)


@dataclass(frozen=True)
class Sharing:
    """How a training is spread over devices.

    Args:
        devices: how many, on all machines together.
        fsdp: whether each holds a part of the weights; otherwise all hold all of them (DDP).
        recompute: whether blocks keep their input alone (activation checkpointing).
        accumulate: batches of an optimizer step on each device.
    """

    devices: int = 1
    fsdp: bool = False
    recompute: bool = False
    accumulate: int = 1

    @property
    def name(self) -> str:
        """What it is called."""
        kind = ("FSDP" if self.fsdp else "DDP") if self.devices > 1 else "alone"
        return kind + " + recomputation" * self.recompute


ALONE = Sharing()


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step on one device.

    Args:
        weights: the parameters; with FSDP this device's part, as of the next two.
        moments: AdamW's two running means.
        gradients: of all parameters.
        activations: what the forward pass keeps for the backward pass.
        loss: what the loss holds while it is computed, the head's gradient included.
        backward: what a block's backward pass holds beside activations: the head's gradient, the block computed again, and with
            FSDP the weights of two blocks, gathered, and one's gradients.
        gathered: with FSDP, the embeddings of all devices, which stay from the first forward pass on.
        gradients_stay: whether they are there in the forward pass too: DDP keeps its buckets, accumulation the sums.
    """

    weights: int
    moments: int
    gradients: int
    activations: int
    loss: int
    backward: int
    gathered: int = 0
    gradients_stay: bool = False

    @property
    def peak(self) -> int:
        """The most at one time: loss and backward pass begin with all activations; the latter ends with all gradients."""
        early = self.activations + max(self.loss, self.backward) + (self.gradients if self.gradients_stay else 0)
        return self.weights + self.moments + self.gathered + max(early, self.gradients + self.backward)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part that there is."""
        return {name: value for name, value in vars(self).items() if value and name != "gradients_stay"}


def training_memory(
    config: GPTConfig, *, batch_size: int, precision: str, device: str, sharing: Sharing = ALONE
) -> TrainingMemory:
    """What a step needs on each device, beside the program itself.

    Args:
        batch_size: sequences on each device.
        precision: Lightning's name of it.
        device: cpu, cuda, mps.

    Source: Rajbhandari et al. 2020, "ZeRO" (arXiv:1910.02054), section 3, for what is divided by the devices.
    """
    wide, _ = number_bytes(precision)
    D, tokens, shards = config.emb_dim, batch_size * config.context_length, sharing.devices if sharing.fsdp else 1
    block, root = padded(block_shapes(config), shards), padded(root_shapes(config), shards)
    weights = (config.n_layers * block + root) // shards * wide
    activations = activation_bytes(config, batch_size=batch_size, precision=precision, device=device, recompute=sharing.recompute)
    backward = (4 * tokens + config.vocab_size + tokens) * D * wide  # GELU's gradient; what the loss left
    if sharing.recompute:
        backward += block_activations(config, batch_size=batch_size, precision=precision, device=device) - tokens * D * wide
    return TrainingMemory(
        weights=weights,
        moments=2 * weights,
        gradients=weights,
        activations=activations,
        loss=loss_bytes(config, batch_size=batch_size, precision=precision, device=device),
        backward=backward + (3 * block * wide if shards > 1 else 0),
        gathered=root * wide if shards > 1 else 0,
        gradients_stay=sharing.accumulate > 1 or (sharing.devices > 1 and not sharing.fsdp),
    )


def block_activations(config: GPTConfig, *, batch_size: int, precision: str, device: str) -> int:
    """What a block keeps of a batch for its backward pass, in bytes.

    It keeps the residual stream at its two norms, and in the dtype of products what goes into each of its four matrices
    (D, D, D, 4 D), queries, keys and values (3 D), and what GELU is given (4 D); with autocast the matrices once more. Dropout
    keeps its masks; on a CPU as numbers, with the attention weights that they were multiplied with.
    """
    D, H = config.emb_dim, config.n_heads
    wide, narrow = number_bytes(precision)
    copies = 0 if wide == narrow else 12 * D**2 * narrow
    token = 2 * (wide * D + 8) + 14 * narrow * D + 4 * H
    if config.drop_rate > 0:
        masks = device == "cpu"  # kernels/dropout.py; else one byte each, by PyTorch's own
        token += 2 * D * (narrow if masks else 1)
        token += round(2 * H * _mean_keys(config.context_length)) * narrow - 4 * H if masks else 0
    return copies + batch_size * config.context_length * token


def activation_bytes(config: GPTConfig, *, batch_size: int, precision: str, device: str, recompute: bool = False) -> int:
    """What `GPTModel` keeps of a batch for the backward pass, in bytes; compiled blocks may keep less.

    Args:
        recompute: whether each block keeps its input alone.
    """
    D, tokens = config.emb_dim, batch_size * config.context_length
    wide, _ = number_bytes(precision)
    block = tokens * wide * D
    if not recompute:
        block = block_activations(config, batch_size=batch_size, precision=precision, device=device)
    embedding = (D * (wide if device == "cpu" else 1)) if config.drop_rate > 0 else 0
    return config.n_layers * block + tokens * (wide * D + 8 + embedding)


def loss_bytes(config: GPTConfig, *, batch_size: int, precision: str, device: str) -> int:
    """What the loss holds at its height: a chunk of logits, the gradients of the head and of what it is given, copies of both."""
    wide, narrow = number_bytes(precision)
    tokens, head = batch_size * config.context_length, config.vocab_size * config.emb_dim
    chunks = -(-tokens // max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * config.vocab_size)))
    logits = -(-tokens // chunks) * config.vocab_size * (narrow if narrow == 4 else narrow + 4)  # softmax is in fp32
    gradients = (head + 2 * tokens * config.emb_dim) * wide
    copies = 0 if narrow == 4 else (2 * head + tokens * config.emb_dim) * narrow
    return logits + gradients + copies


def number_bytes(precision: str) -> tuple[int, int]:
    """Bytes of a number of the residual stream, and of one in a product, by Lightning's name of the precision."""
    return {"32-true": (4, 4), "bf16-true": (2, 2)}.get(precision, (4, 2))


def checkpoint_bytes(config: GPTConfig, *, precision: str) -> int:
    """Size of a checkpoint: weights and AdamW's two moments."""
    return 3 * num_parameters(config) * (2 if precision == "bf16-true" else 4) + FIXED_BYTES


def _mean_keys(context_length: int) -> float:
    """Keys that a query meets on average, where blocks of queries look at all up to the block's end."""
    blocks = [(start, min(start + BLOCK, context_length)) for start in range(0, context_length, BLOCK)]
    return sum((end - start) * end for start, end in blocks) / context_length
