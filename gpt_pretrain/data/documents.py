"""Documents kept apart within a window.

Shapes: B windows, T context_length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt_pretrain.model.kernels.loss import IGNORED


@dataclass(frozen=True)
class Documents:
    """How one document is told from the next in a stream of tokens.

    Args:
        end_of_text: the token between them.
        end_first: whether it stands before each document and belongs to that, as llm.c writes it, or behind each.
    """

    end_of_text: int
    end_first: bool = False

    def kept_apart(self, block: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Windows in which each document is by itself.

        Args:
            block: int64, (B, T + 1).

        Returns:
            Inputs, targets and positions, int64, (B, T) each. A target that begins another document is IGNORED. Positions
            count from 0 in each document, and from the start of the window in one that began before it.
        """
        places = np.arange(block.shape[1])
        ends = block == self.end_of_text
        begins = ends if self.end_first else np.concatenate([np.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)
        latest = np.maximum.accumulate(np.where(begins, places, 0), axis=1)  # where each token's document begins
        targets = np.where(begins, IGNORED, block)[:, 1:]
        positions = (places - latest)[:, :-1]
        return torch.from_numpy(block)[:, :-1], torch.from_numpy(targets), torch.from_numpy(positions)
