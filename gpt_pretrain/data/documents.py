"""Document boundaries within a window, for attention and loss that do not cross them.

Shapes: B windows, T context_length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt_pretrain.model.kernels.loss import IGNORED


@dataclass(frozen=True)
class DocumentBoundaries:
    """The convention that separates documents in a stream of tokens.

    Args:
        eos_id: The token between two documents; None if the tokenizer has none, and all text is one document.
        eos_first: Whether it is the first token of each document, as in llm.c's format, instead of the last.
    """

    eos_id: int | None
    eos_first: bool = False

    def separate(self, block: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return a batch in which every document is independent of the others.

        Args:
            block: Token ids, int64, (B, T + 1).

        Returns:
            Token ids, target ids and positions, int64, (B, T) each. A target that begins another document is IGNORED.
            Positions count from 0 in each document, or from the start of the window in a document that began before it.
        """
        positions = np.arange(block.shape[1])
        is_eos = block == (-1 if self.eos_id is None else self.eos_id)
        begins = is_eos if self.eos_first else np.concatenate([np.zeros_like(is_eos[:, :1]), is_eos[:, :-1]], axis=1)
        document_starts = np.maximum.accumulate(np.where(begins, positions, 0), axis=1)  # (B, T + 1)
        target_ids = np.where(begins, IGNORED, block)[:, 1:]
        positions_in_document = (positions - document_starts)[:, :-1]
        return torch.from_numpy(block)[:, :-1], torch.from_numpy(target_ids), torch.from_numpy(positions_in_document)
