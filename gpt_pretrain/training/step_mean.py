"""Weight the batches of an optimizer step so that its gradient is that of the mean loss over all of its counted tokens.

Batches count different numbers of tokens where documents are kept apart, where a batch is shorter, and where there are too few
batches for all ranks. The mean over batches would give the tokens of small batches more weight. Lightning (2.6) also divides each
loss by accumulate_grad_batches in an epoch's last step, which may have fewer batches (Lightning-AI/pytorch-lightning#19987).
"""

from __future__ import annotations


class StepMean:
    """The tokens of an optimizer step, and the factors on its losses and on its gradient.

    A batch is weighted by its tokens relative to the step's first batch, so that no backward pass waits for the counts of later
    batches. The gradient is corrected when all counts are known. In a step of one batch, and in a full step whose batches all
    count the same number of tokens, both factors are exactly 1.

    Attributes:
        tokens: Counted tokens of the step so far, over all ranks.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._first = 0  # counted tokens of the first batch

    def add(self, tokens: int, own_tokens: int, *, n_ranks: int) -> float:
        """Add a batch, and return the factor on this rank's mean loss.

        Args:
            tokens: The batch's counted tokens over all ranks.
            own_tokens: Those of this rank.
            n_ranks: Number of ranks, over which gradients are averaged.
        """
        self.tokens += tokens
        self._first = self._first or tokens
        return own_tokens * n_ranks / self._first if self._first else 0.0

    def finish(self, *, accumulate_grad_batches: int) -> float:
        """End the step, and return the factor on its gradient; 0 if no token counts.

        Args:
            accumulate_grad_batches: The number that each loss of the step was divided by.
        """
        factor = accumulate_grad_batches * self._first / self.tokens if self.tokens else 0.0
        self.tokens = self._first = 0
        return factor
