"""Keep a run within its budget of time."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.formatting import format_duration
from gpt_pretrain.system.shared_cores import Usage, thread_usage
from gpt_pretrain.training.budget.pace import DAMAGED_PLAN, Pace, read_points
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.lit_module import GPTLitModule

log = logging.getLogger(__name__)
FIRST_STEPS = 3  # not measured
MARKS = (0.02, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.98)  # shares of the schedule at which the steps are planned anew
# Seconds of the run's end besides its validation: processor time of charts and report, and the writing of files.
END_WORK, END_WAIT = 1.0, 0.6
LOAD_SECONDS, LOADS = 4.0, 8  # length of a measurement of the machine's load; the worst of the last measurements counts
MOST_SLOWNESS = 12.0  # On some systems, a thread that waits for a GPU or a disk appears to wait for a core.
# The smallest gain of the validation loss as a share of it, the validations without such a gain, and the length of the decay
# after them as a share of the steps done.
LEAST_GAIN, PATIENCE, LAST_SHARE = 1e-3, 3, 0.1
FORWARD = 0.4  # time of a loss without gradients, as a share of a step's time for the same tokens
DECAYED = 0.8  # share of the schedule; before it, the learning rate is still high


class KeepBudget(Callback):
    """Plan the remaining steps anew at fixed shares of the schedule. The plan follows from the duration of the last steps.

    Each checkpoint stores the plans, so a resumed run has the learning rates of an undisturbed one up to its next plan. The start
    of the program, validations and checkpoints count towards the budget. The time between two starts does not.

    Args:
        pace: The steps of the schedule.
        seconds: The budget; infinite if the plan decides alone.
        began: The moment at which this process began.
        longest: The most steps that help. The run ends after them even if time is left. None if unknown.
        validated: Tokens in the last validation, as a multiple of the tokens of a step.
        while_useful: Once the validation loss no longer falls, let the learning rate decay and end the run.
        now: The clock.
        used: Returns the seconds that this thread has run on a core, and has waited for one.
    """

    def __init__(
        self,
        pace: Pace,
        *,
        seconds: float,
        began: float,
        longest: int | None = None,
        validated: float = 0.0,
        while_useful: bool = False,
        now: Callable[[], float] = time.monotonic,
        used: Callable[[], Usage] = thread_usage,
    ) -> None:
        self.pace = pace
        self.seconds = seconds
        self.longest = longest
        self.validated = validated
        self.while_useful = while_useful
        self._best, self._waited = math.inf, 0  # the best validation loss, and validations since then
        self.now = now
        self.used = used
        self.began = began
        self.has_ended = False
        self._load = RecentLoad()
        self._spent = 0.0  # seconds of earlier processes
        # Seconds of a step and of an epoch's end on a machine without other load.
        self._step_seconds = 0.0
        self._epoch_end: float | None = None
        self._ended: tuple[float, Usage] | None = None  # the end of the last epoch's last step
        self._measured: list[tuple[int, float, Usage]] = []  # step and time of each measurement's start

    def elapsed(self) -> float:
        """Return the seconds that the run has spent."""
        return self._spent + self.now() - self.began

    def reserve(self) -> float:
        """Return the seconds to keep for one more step and the end of the run, if the machine stays as busy as lately.

        At its end, a run validates, writes files, and does some fixed work. The end of an earlier epoch shows the duration of a
        validation. During the first epoch, it is estimated from the steps.
        """
        validation = FORWARD * self.validated * self._step_seconds if self._epoch_end is None else self._epoch_end
        return END_WAIT + (END_WORK + self._step_seconds + validation) * self._load.slowness

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first, self._ended, self._measured = trainer.global_step + FIRST_STEPS, None, []
        self._prepared = self.elapsed()
        self._next_mark = self._mark_after(self.pace.progress(trainer.global_step))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._ended is not None:  # the first step of an epoch
            moment, used = self._ended
            self._epoch_end = max(self._epoch_end or 0.0, (self.now() - moment) / slowness(used, self.used()))
            self._ended = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not pl_module.ends_step(batch_idx):
            return
        step, moment, used = trainer.global_step, self.now(), self.used()
        self._load.watch(moment, used)
        if trainer.is_last_batch:
            self._ended = moment, used
        if step == self._first:
            self._measured.append((step, moment, used))
        elif self._measured and step > self._first:
            begin, start, before = self._measured[-1]
            if step > begin:
                self._step_seconds = (moment - start) / (step - begin) / slowness(before, used)
        if self.seconds < math.inf:
            if self._measured and step > self._first + 1 and self.pace.progress(step) >= self._next_mark:
                self._replan(step, moment, used)
            out_of_time = bool(ranks.all_reduce_max(self.elapsed() >= self.seconds - self.reserve()))
        else:
            out_of_time = False
        if step >= self.pace.last_step or out_of_time:
            self.has_ended = trainer.should_stop = True
            if (share := self.pace.progress(step)) < DECAYED and ranks.is_main():
                log.warning(
                    "The time ended at %.0f%% of the schedule, so the learning rate has not decayed and the model could be "
                    "better. Of the budget of %s, %s had passed before the first step. Give the run more time.",
                    100 * share,
                    format_duration(self.seconds),
                    format_duration(self._prepared),
                )

    def on_validation_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        if not self.while_useful or trainer.sanity_checking or math.isnan(pl_module.val_loss):
            return
        if pl_module.val_loss < self._best * (1.0 - LEAST_GAIN):
            self._best, self._waited = float(pl_module.val_loss), 0
            return
        self._waited += 1
        step = trainer.global_step
        if self._waited == PATIENCE and step < self.pace.last_step:
            log.info(
                "The validation loss has not fallen in %d validations: the learning rate decays now, then the run ends.", PATIENCE
            )
            self.pace.replan(step, min(self.pace.last_step, step + max(1, int(LAST_SHARE * step))))

    def _replan(self, step: int, moment: float, used: Usage) -> None:
        begin, start, _ = self._measured[-2] if len(self._measured) > 4 else self._measured[0]
        rate = max((moment - start) / (step - begin), 1e-9)
        left = self.seconds - self.reserve() - self.elapsed()
        last = step + max(1, int(left / rate))
        self.pace.replan(step, ranks.broadcast(last if self.longest is None else min(last, self.longest)))
        self._measured.append((step, moment, used))
        self._next_mark = self._mark_after(self.pace.progress(step))

    def _mark_after(self, progress: float) -> float:
        return next((mark for mark in MARKS if mark > progress), math.inf)

    def state_dict(self) -> dict[str, Any]:
        return {
            "points": [list(point) for point in self.pace.points],
            "total": self.pace.total,
            "longest": self.longest,
            "spent": self.elapsed(),
            "ended": self.has_ended,
            "best": self._best,
            "waited": self._waited,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the plans and the time already spent.

        Raises:
            UserError: If no run can have stored them.
        """
        points, spent = read_points(state_dict.get("points")), state_dict.get("spent")
        if points is None or type(spent) is not float or not 0 <= spent < math.inf:
            raise UserError(DAMAGED_PLAN)
        self.pace.points, self.pace.total = points, points[0][2]
        self._spent = spent
        if type(longest := state_dict.get("longest")) is int:
            self.longest = longest
        best, waited = state_dict.get("best"), state_dict.get("waited")
        if type(best) is float and type(waited) is int and not math.isnan(best):
            self._best, self._waited = best, waited


class RecentLoad:
    """Measure how much other programs on the same processors have slowed down this thread lately.

    A machine that was busy for some seconds may be busy again, so the worst measurement of half a minute counts.

    Attributes:
        slowness: Seconds on the clock per second of the thread's work; at least 1.
    """

    def __init__(self) -> None:
        self.slowness = 1.0
        self._found = deque[float](maxlen=LOADS)
        self._begin: tuple[float, Usage] | None = None

    def watch(self, moment: float, used: Usage) -> None:
        """Note the seconds that the thread has run, and has waited for a core, up to a moment."""
        if self._begin is None:
            self._begin = (moment, used)
        elif moment - self._begin[0] >= LOAD_SECONDS:
            self._found.append(slowness(self._begin[1], used))
            self.slowness, self._begin = max(self._found), (moment, used)


def slowness(before: Usage, after: Usage) -> float:
    """Return the seconds on the clock per second of a thread's work. The thread may have to wait for a core."""
    ran, waited = after[0] - before[0], after[1] - before[1]
    return min(1.0 + waited / ran, MOST_SLOWNESS) if ran > 0 else 1.0
