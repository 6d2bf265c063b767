"""Pass on the results of batches in order. Batches with a NaN or infinite result are skipped if the settings say so."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.training.steps.batch_results import BatchResult
from gpt_pretrain.training.steps.nonfinite import MAX_SKIPPED, NonFiniteError, has_usable_weights

log = logging.getLogger(__name__)


class BatchRecord:
    """Keep track of the batches since training began in this process.

    Args:
        model: The model in training.
        on_nonfinite: What to do when a loss or gradient is NaN or infinite: "stop", "skip" or "rollback".

    Attributes:
        observers: Functions that are called with the result of each batch, in order, when it is known.
        loss_value: The mean loss of the last batch that is known, in nats per token.
        finite_losses: The first and the last finite loss.
    """

    def __init__(self, model: LanguageModel, *, on_nonfinite: str) -> None:
        self.model = model
        self.on_nonfinite = on_nonfinite
        self.observers: list[Callable[[BatchResult], None]] = []
        self.loss_value = math.nan
        self.finite_losses: tuple[float, float] | None = None
        self._skipped_in_row = 0  # batches and steps since the last update

    def note_loss(self, result: BatchResult) -> None:
        """Remember the loss of a batch, as soon as it is known."""
        if result.loss is not None:
            self.loss_value = result.loss
            if math.isfinite(result.loss):
                first, _ = self.finite_losses or (result.loss, result.loss)
                self.finite_losses = first, result.loss

    def note_update(self) -> None:
        """Remember that a step has changed the weights."""
        self._skipped_in_row = 0

    def publish(self, result: BatchResult) -> None:
        """Pass the complete result of a batch to the observers."""
        for observe in self.observers:
            observe(result)

    @property
    def has_diverged(self) -> bool:
        """True if the last finite loss is more than twice the first one, and more than twice the loss of a uniform guess."""
        first, last = self.finite_losses or (math.nan, math.nan)
        return last > 2 * max(first, math.log(self.model.config.vocab_size))

    def skip(self, error: NonFiniteError, what: str) -> None:
        """Warn that a batch or step is skipped.

        Raises:
            NonFiniteError: If on_nonfinite is not "skip", or if skipping cannot help because the weights are unusable.
        """
        self._skipped_in_row += 1
        hopeless = self.has_diverged or self._skipped_in_row > MAX_SKIPPED or not has_usable_weights(self.model)
        if self.on_nonfinite != "skip" or hopeless:
            raise error
        log.warning("%s The %s is skipped.", error, what)
