"""Pack sequences with a common beginning into one row, so that the model reads the beginning only once.

A row holds the beginning and then the rest of each sequence. Each rest attends to the beginning and to itself. Each token keeps
its position in its own sequence, so the results equal those of single sequences.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_SHARED = 8  # Tokens; a shorter beginning is not worth the attention mask.
MAX_PACKED = 4096  # Tokens of a row with several sequences; the memory of its mask grows with the square of its length.


@dataclass(frozen=True)
class ScoreRequest:
    """A sequence of tokens. Its last tokens are scored.

    Args:
        token_ids: (T + 1,); at most context_length + 1 of them.
        n_scored: Number of tokens to score; at most T.
    """

    token_ids: np.ndarray
    n_scored: int

    @property
    def n_read(self) -> int:
        """The number of tokens that the model reads. The last token is only predicted."""
        return len(self.token_ids) - 1


@dataclass(frozen=True)
class PackedRow:
    """Sequences in a row of a batch.

    Args:
        requests: The sequences.
        n_shared: Number of tokens in the common beginning. The row contains them once.
    """

    requests: tuple[ScoreRequest, ...]
    n_shared: int

    @property
    def length(self) -> int:
        """The number of tokens in the row."""
        return self.n_shared + sum(request.n_read - self.n_shared for request in self.requests)

    @property
    def token_ids(self) -> np.ndarray:
        """The tokens of the row, int64, (length,)."""
        rests = [request.token_ids[self.n_shared : -1] for request in self.requests]
        return np.concatenate([self.requests[0].token_ids[: self.n_shared], *rests]).astype(np.int64)

    @property
    def scored(self) -> np.ndarray:
        """The positions in the row that predict the scored tokens of all sequences, int64."""
        positions, begin = [], self.n_shared
        for request in self.requests:
            index = np.arange(request.n_read - request.n_scored, request.n_read)
            positions.append(np.where(index < self.n_shared, index, index - self.n_shared + begin))
            begin += request.n_read - self.n_shared
        return np.concatenate(positions)

    @property
    def targets(self) -> np.ndarray:
        """The scored tokens of all sequences, int64."""
        return np.concatenate([one.token_ids[len(one.token_ids) - one.n_scored :] for one in self.requests]).astype(np.int64)


def pack_requests(requests: Sequence[ScoreRequest], *, most: int) -> list[PackedRow]:
    """Pack sequences into rows, in order. The sequences of a row share their common beginning.

    Args:
        most: The most tokens of a row with several sequences.
    """
    shared = common_length([request.token_ids[:-1] for request in requests]) if len(requests) > 1 else 0
    if shared < MIN_SHARED:
        return [PackedRow((request,), 0) for request in requests]
    rows: list[list[ScoreRequest]] = [[]]
    length = shared
    for request in requests:
        if rows[-1] and length + request.n_read - shared > most:
            rows.append([])
            length = shared
        rows[-1].append(request)
        length += request.n_read - shared
    return [PackedRow(tuple(row), shared) for row in rows]


def positions_and_mask(rows: Sequence[PackedRow], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each token in its sequence, int64, (B, T), and the tokens that it attends to, bool, (B, 1, T, T).

    Args:
        length: Number of tokens of the longest row, T. Padding attends to itself, since attention to nothing gives NaN.
    """
    positions = np.zeros((len(rows), length), dtype=np.int64)
    branches = np.full((len(rows), length), -1)  # 0 is the beginning, and -1 is padding.
    for row, packed in enumerate(rows):
        positions[row, : packed.n_shared], branches[row, : packed.n_shared] = np.arange(packed.n_shared), 0
        begin = packed.n_shared
        for number, request in enumerate(packed.requests, start=1):
            end = begin + request.n_read - packed.n_shared
            positions[row, begin:end], branches[row, begin:end] = np.arange(packed.n_shared, request.n_read), number
            begin = end
    sees = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    return positions, (sees & np.tri(length, dtype=bool))[:, None]


def common_length(arrays: Sequence[np.ndarray]) -> int:
    """Return the length of the common beginning of all arrays."""
    length = min(map(len, arrays))
    differs = np.zeros(length, dtype=bool)
    for array in arrays[1:]:
        differs |= array[:length] != arrays[0][:length]
    return int(differs.argmax()) if differs.any() else length
