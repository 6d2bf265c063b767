"""What a model costs, as formulas of its sizes: parameters, operations, memory, checkpoints. Nothing here needs torch.

Shapes: T context_length, D emb_dim, H heads, L layers, V vocab_size; N tokens of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pretrain.config import GPTConfig

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


def training_flops(config: GPTConfig) -> float:
    """Floating-point operations of a token forward and backward: a product has two gradients, each as costly as itself.

    Source: Chowdhery et al. 2022, "PaLM" (arXiv:2204.02311), appendix B: 6 N + 12 L H K T.
    """
    return 3.0 * forward_flops(config)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step on one device.

    Args:
        weights: the parameters.
        moments: AdamW's two running means.
        gradients: of all parameters.
        activations: what the forward pass keeps for the backward pass.
        loss: what the loss holds while it is computed, the head's gradient included.
    """

    weights: int
    moments: int
    gradients: int
    activations: int
    loss: int

    @property
    def peak(self) -> int:
        """The most at one time: with all activations and the loss, or with all gradients, for the ones go as the others come."""
        return self.weights + self.moments + max(self.activations + self.loss, self.gradients)


def training_memory(config: GPTConfig, *, batch_size: int, precision: str, device: str) -> TrainingMemory:
    """What a step needs beside the program itself.

    Args:
        batch_size: sequences.
        precision: Lightning's name of it.
        device: cpu, cuda, mps.
    """
    number = 2 if precision == "bf16-true" else 4  # bytes of a weight, a gradient, the residual stream
    weights = num_parameters(config) * number
    return TrainingMemory(
        weights=weights,
        moments=2 * weights,
        gradients=weights,
        activations=activation_bytes(config, batch_size=batch_size, precision=precision, device=device),
        loss=loss_bytes(config, batch_size=batch_size, precision=precision, device=device),
    )


def activation_bytes(config: GPTConfig, *, batch_size: int, precision: str, device: str) -> int:
    """What `GPTModel` keeps of a batch for the backward pass, in bytes; compiled blocks may keep less.

    Each block keeps the residual stream at its two norms, and in the dtype of products what goes into each of its four
    matrices (D, D, D, 4 D), queries, keys and values (3 D), and what GELU is given (4 D); with autocast the matrices once more.
    Dropout keeps its masks; on a CPU as numbers, with the attention weights that they were multiplied with.
    """
    D, H = config.emb_dim, config.n_heads
    wide, narrow = number_bytes(precision)
    token = 2 * (wide * D + 8) + 14 * narrow * D + 4 * H
    once = 0 if wide == narrow else 12 * D**2 * narrow  # autocast's copies of the matrices
    embedding = 0
    if config.drop_rate > 0:
        masks = device == "cpu"  # kernels/dropout.py; else one byte each, by PyTorch's own
        token += 2 * D * (narrow if masks else 1)
        embedding = D * (wide if masks else 1)
        token += round(2 * H * _mean_keys(config.context_length)) * narrow - 4 * H if masks else 0
    tokens = batch_size * config.context_length
    return config.n_layers * (tokens * token + once) + tokens * (wide * D + 8 + embedding)


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
