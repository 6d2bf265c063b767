"""The chunk sizes of the kernels, without torch, so that the cost formulas can use them too."""

from __future__ import annotations

# Bytes of fp32 logits that the loss holds at a time, by device type. Larger chunks are not faster.
LOGITS_BYTES = {"cpu": 1 << 26, "cuda": 1 << 31}
BLOCK_BYTES = 1 << 21  # of fp32 logits for several passes of a CPU; more would not stay in its cache
GRADIENT_ROWS = 4096  # rows of the output head's gradient that a CPU computes at a time in half precision
# Queries in a block of attention on a CPU. Smaller blocks skip more of the masked half but launch more kernels.
QUERY_BLOCK = 128
KEPT_QUERIES = 1024  # longest window to keep attention weights of with dropout; their memory grows with its square


def chunk_rows(n_positions: int, vocab_size: int, device: str) -> int:
    """Return the number of positions with logits in memory at a time.

    All chunks have about the same size.

    Args:
        device: Device type, such as "cpu" or "cuda".
    """
    max_rows = max(1, LOGITS_BYTES.get(device, LOGITS_BYTES["cuda"]) // (4 * vocab_size))
    n_chunks = -(-n_positions // max_rows)
    return -(-n_positions // n_chunks)


def loss_block_rows(rows: int, vocab_size: int, device: str) -> int:
    """Return the number of a chunk's rows to process at a time."""
    return min(rows, max(1, BLOCK_BYTES // (4 * vocab_size))) if device == "cpu" else rows


def gradient_rows(vocab_size: int, device: str) -> int:
    """Return the number of rows of the output head's gradient to compute at a time in half precision."""
    return min(vocab_size, GRADIENT_ROWS) if device == "cpu" else vocab_size


def query_blocks(n_queries: int) -> list[tuple[int, int]]:
    """Return the start and end of each block of queries."""
    return [(start, min(start + QUERY_BLOCK, n_queries)) for start in range(0, n_queries, QUERY_BLOCK)]


def keeps_weights(n_queries: int, drop_rate: float) -> bool:
    """Return whether attention on a CPU keeps its weights and their dropout for the backward pass."""
    return drop_rate > 0 and n_queries <= KEPT_QUERIES
