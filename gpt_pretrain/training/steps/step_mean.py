"""Weight the batches of an optimizer step so that its gradient belongs to the mean loss over all its counted tokens.

Batches have different numbers of counted tokens if documents are kept apart, if a batch is shorter, or if there are too few
batches for all ranks. A plain mean over batches would give the tokens of small batches more weight. In addition, Lightning (2.6)
always divides each loss by accumulate_grad_batches, even in an epoch's last step with fewer batches
(Lightning-AI/pytorch-lightning#19987).
"""

from __future__ import annotations


class StepMean:
    """The tokens of an optimizer step, and the factors on its losses and on its gradient.

    A batch is weighted by its number of tokens relative to the step's first batch. No backward pass therefore waits for the
    counts of later batches. The gradient is corrected when all counts are known. Both factors are exactly 1 in a step of one
    batch, and in a full step of batches with equal counts.

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
            own_tokens: The batch's counted tokens on this rank.
            n_ranks: Number of ranks. Gradients are averaged over them.
        """
        self.tokens += tokens
        self._first = self._first or tokens
        return own_tokens * n_ranks / self._first if self._first else 0.0

    def finish(self, *, accumulate_grad_batches: int) -> float:
        """End the step, and return the factor on its gradient; 0 if no token counts.

        Args:
            accumulate_grad_batches: Lightning has divided each loss of the step by this number.
        """
        factor = accumulate_grad_batches * self._first / self.tokens if self.tokens else 0.0
        self.tokens = self._first = 0
        return factor
