"""Evaluate a run on held-out texts and tasks while it trains."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.token_stream import TokenStream
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.held_out import HeldOutScore, HeldOutSet, held_out_warnings, metric_name, score_held_out
from gpt_pretrain.evaluation.scoring import Scorer, pick_scoring_precision
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.system.formatting import format_duration
from gpt_pretrain.training.callbacks.metrics import log_metrics
from gpt_pretrain.training.callbacks.weight_average import WeightAverage
from gpt_pretrain.training.clock import StopAskedError, StopWatch
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.fsdp import gather_model
from gpt_pretrain.training.lit_module import GPTLitModule

log = logging.getLogger(__name__)


class HeldOutEvaluation(Callback):
    """Score held-out texts and tasks before training, every few optimizer steps or epochs, and at the end of the run.

    The first rank scores them, in the same precision as evaluate.py. It draws no random numbers and compiles nothing, so it has
    no effect on the training. A moving average of the weights is scored as well. If a request to stop cuts an evaluation short,
    the resumed run makes up for it.

    Args:
        held_out: The texts and tasks.
        training: The training set, to look the texts and tasks up in; None looks nothing up.
        every_n_steps: Optimizer steps between two evaluations; None evaluates at the end of each epoch.
        total_steps: Optimizer steps of the whole run.
        batch_tokens: The most tokens to score at a time.
        average: The callback with the moving average of the weights, if there is one.
    """

    def __init__(
        self,
        held_out: HeldOutSet,
        training: TokenStream | None,
        *,
        every_n_steps: int | None,
        total_steps: int,
        batch_tokens: int,
        average: WeightAverage | None,
    ) -> None:
        self.held_out = held_out
        self.training = training
        self.every_n_steps = every_n_steps
        self.total_steps = total_steps
        self.batch_tokens = batch_tokens
        self.average = average
        self._evaluated = -1  # optimizer steps done at the last evaluation
        self._step = 0
        self._failed = False

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer step of the last evaluation."""
        return {"steps": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        steps = state_dict.get("steps")
        self._evaluated = steps if isinstance(steps, int) else -1

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._step = trainer.global_step
        if self._step == 0 and self.training is not None and ranks.is_main():
            for warning in held_out_warnings(self.held_out, self.training):
                log.warning("%s", warning)
        ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.current.ready in (0, trainer.num_training_batches)
        is_due = self._step in (0, self.total_steps) or self._is_due(ends_epoch=ends_epoch)
        if is_due and self._evaluated != self._step:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        if self._is_due(ends_epoch=trainer.is_last_batch) or self._step >= self.total_steps or trainer.should_stop:
            self._evaluate(trainer, pl_module)

    def _is_due(self, *, ends_epoch: bool) -> bool:
        return ends_epoch if self.every_n_steps is None else self._step % self.every_n_steps == 0

    def _evaluate(self, trainer: L.Trainer, module: GPTLitModule) -> None:
        """Score the weights and their moving average. A problem with the scores does not end the training."""
        start = time.perf_counter()
        kinds: list[tuple[bool, AbstractContextManager[None]]] = [(False, nullcontext())]
        if self.average is not None:
            kinds.append((True, self.average.swapped(module)))
        metrics: dict[str, float] = {}
        for average, exchanged in kinds:
            with module.clock.paused(), exchanged:
                scores = self._score(module)
            if scores is None:
                return
            for score in scores:
                for warning in score.warnings if self._evaluated < 0 and not average else ():
                    log.warning("%s", warning)
                metrics |= {metric_name(score.name, key, average=average): one.value for key, one in score.measures.items()}
            if scores:
                when = "Before training" if module.step < 0 else f"Step {module.step:06d}"
                of = ", moving average" * average
                log.info("Evaluation (%s%s): %s", when, of, "; ".join(score.describe() for score in scores))
        self._evaluated = trainer.global_step
        if trainer.global_step == 0:
            log.info("Each evaluation of held-out texts and tasks takes about %s", format_duration(time.perf_counter() - start))
        elif metrics:
            log_metrics(trainer, module, metrics)

    def _score(self, module: GPTLitModule) -> list[HeldOutScore] | None:
        """Return the scores, or None if the run is asked to stop meanwhile. On other ranks and after a problem, return none."""
        model = gather_model(module.model)
        if model is None:
            return []
        try:
            watch = StopWatch()
            with scoring(model, batch_tokens=self.batch_tokens) as scorer:
                return score_held_out(scorer, self.held_out, report=lambda _: watch.check(module.wants_stop))
        except StopAskedError:
            until = "" if module.trainer.should_stop else " until the run resumes"  # a limit ends the run, not the stop
            log.info("The evaluation after %s steps is left out%s, because the run was asked to stop.", f"{self._step:,}", until)
            return None
        except UserError as error:
            if not self._failed:
                log.warning("The held-out texts and tasks have no result after %d steps: %s", self._step, error)
            self._failed = True
            return []


def held_out_batch(settings: TrainSettings) -> int:
    """Return the number of tokens to score at a time: as many as a training batch, which fits into memory even with gradients."""
    return settings.data.batch_windows * settings.model.context_length


@contextmanager
def scoring(model: LanguageModel, *, batch_tokens: int) -> Iterator[Scorer]:
    """Yield a scorer of a model that is being trained. Within the block, dropout and compilation are off.

    With compilation on, batches of new shapes would make torch recompile the training.
    """
    was_training = model.training
    precision, _ = pick_scoring_precision("auto", model)
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield Scorer(model, name="the model", precision=precision, batch_tokens=batch_tokens)
    finally:
        model.train(was_training)
