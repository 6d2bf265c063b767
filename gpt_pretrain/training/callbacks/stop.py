"""End a run early: at a limit, like at the end of an epoch, or on a signal, after the current step."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint

from gpt_pretrain.system.amounts import parse_duration
from gpt_pretrain.system.interrupts import leave_time_to_stop, stop_signals, use_all_time
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.lit_module import GPTLitModule


class FinishAtLimit(Callback):
    """End the run at max_steps or max_time with a validation and a checkpoint, as after an epoch.

    Lightning's own limits (Lightning 2.6) are not used, since runs that they end do not resume exactly. Its timer may stop a run
    between two batches of one optimizer step. With its max_steps, a run that resumes after an epoch skips the next epoch.

    Args:
        max_steps: Optimizer steps of the whole run; -1 for no limit.
        max_time: A duration since this process began to train, such as "90m"; None for no limit.

    Attributes:
        is_out_of_time: Whether max_time has ended the run before its last step.
    """

    def __init__(self, *, max_steps: int, max_time: str | None) -> None:
        self.max_steps = max_steps
        seconds = math.inf if max_time is None else parse_duration(max_time)
        assert seconds is not None, max_time
        self.max_seconds = seconds
        self.is_out_of_time = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        out_of_time = time.monotonic() - self._start >= self.max_seconds
        if self.max_seconds < math.inf:
            out_of_time = bool(ranks.all_reduce_max(out_of_time))
        if trainer.global_step == self.max_steps:
            trainer.should_stop = True
        elif out_of_time and pl_module.ends_step(batch_idx):
            is_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
            self.is_out_of_time = not (trainer.is_last_batch and is_last_epoch)
            trainer.should_stop = True


class StoppedBySignalError(BaseException):
    """A signal has stopped the run, and the run is saved.

    Attributes:
        signum: The number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopOnSignal(Checkpoint):
    """On a signal to stop, such as Ctrl-C or SIGTERM, finish the optimizer step, save and end. A second Ctrl-C quits immediately.

    It must act after `SaveRun`. It is a `Checkpoint`, since Lightning calls those callbacks last.

    Args:
        save: The callback that saves the run.

    Attributes:
        received: The signal that asked the run to stop.
    """

    def __init__(self, save: SaveRun) -> None:
        self.save = save
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}  # the signal handlers to restore after training
        self._asks_early = False  # whether a limit of processor time is lowered during the training

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._module = pl_module
        if threading.current_thread() is threading.main_thread():
            self._handlers = {signum: signal.signal(signum, self._receive) for signum in stop_signals()}
            self._asks_early = leave_time_to_stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_handlers()  # before Lightning restores the handlers that it has replaced

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        if self._asks_early or self.received is not None:
            use_all_time()
            self._asks_early = False
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        ending = trainer.is_last_batch or trainer.should_stop  # the end of the epoch saves and then stops
        asked = pl_module.stop_asked if ranks.is_distributed() else self.received is not None
        if pl_module.ends_step(batch_idx) and asked and self._agree_on_signal() is not None and not ending:
            self._stop(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: GPTLitModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._agree_on_signal() is not None and not trainer.should_stop:
            self._stop(trainer, pl_module, before_validation=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        if self._agree_on_signal() is not None and not trainer.should_stop:  # the run has just been saved
            assert self.received is not None
            raise StoppedBySignalError(self.received)

    def _agree_on_signal(self) -> int | None:
        """Return the signal that any rank has received, or None. All ranks get the same answer."""
        signum = ranks.all_reduce_max(self.received or 0)
        if signum:
            self.received = signum
        return signum or None

    def _stop(self, trainer: L.Trainer, module: GPTLitModule, *, before_validation: bool = False) -> None:
        assert self.received is not None
        self.save.save(trainer, module, before_validation=before_validation)
        raise StoppedBySignalError(self.received)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal, and write a line to the terminal. Logging is not safe in a signal handler."""
        if self.received is not None:
            if signum == signal.SIGINT:
                os._exit(128 + signum)
            return
        self.received = signum
        self._module.wants_stop = True
        if not ranks.is_main():
            return
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"\n{name}: finishing the step, then saving. Press Ctrl-C again to quit without saving.\n".encode())
