"""Ending a run before its time: at a limit as completely as after an epoch, and on a signal as soon as a step is done."""

from __future__ import annotations

import math
import operator
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint

from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.lit_module import GPTLitModule

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


class FinishAtLimit(Callback):
    """When max_steps or max_time ends the run, lets Lightning validate first, as it does after an epoch.

    Lightning's own limits do not go on exactly: its timer would stop between two batches of one optimizer step, and lose the
    first; with its max_steps a run that is resumed after an epoch leaves out the next one.

    Args:
        max_steps: optimizer steps of the whole run; -1: no limit.
        max_time: DD:HH:MM:SS, from when this process began to train; None: no limit.
    """

    def __init__(self, *, max_steps: int, max_time: str | None) -> None:
        self.max_steps = max_steps
        units = (86400, 3600, 60, 1)
        fields = [] if max_time is None else map(int, max_time.split(":"))
        self.max_seconds = math.inf if max_time is None else sum(map(operator.mul, fields, units))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        out_of_time = time.monotonic() - self._start >= self.max_seconds
        if self.max_seconds < math.inf:
            out_of_time = bool(ranks.all_reduce_max(out_of_time))
        if trainer.global_step == self.max_steps or (out_of_time and pl_module.ends_step(batch_idx)):
            trainer.should_stop = True


class StoppedBySignalError(BaseException):
    """The run was saved and ended because a signal asked for it.

    Attributes:
        signum: which.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopOnSignal(Checkpoint):
    """On Ctrl-C, SIGTERM or SIGUSR1: finishes the optimizer step, saves and ends the run; a second Ctrl-C quits at once.

    It acts after `SaveRun`, as which it is a Checkpoint to Lightning.

    Args:
        save: what saves.
    """

    def __init__(self, save: SaveRun) -> None:
        self.save = save
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._module = pl_module
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()  # before Lightning gives back those that it had put in place first

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        """Give the signals back to whoever had them before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        ending = trainer.is_last_batch or trainer.should_stop  # what is left of that can be done, or begun anew
        asked = pl_module.stop_asked if ranks.is_distributed() else self.received is not None
        if pl_module.ends_step(batch_idx) and asked and self._agreed() is not None and not ending:
            self._stop(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: GPTLitModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._agreed() is not None and not trainer.should_stop:
            self._stop(trainer, pl_module, before_validation=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        if self._agreed() is not None and not trainer.should_stop:  # the run has just been saved
            assert self.received is not None
            raise StoppedBySignalError(self.received)

    def _agreed(self) -> int | None:
        """The signal that this rank has received, or another one."""
        signum = ranks.all_reduce_max(self.received or 0)
        if signum:
            self.received = signum
        return signum or None

    def _stop(self, trainer: L.Trainer, module: GPTLitModule, *, before_validation: bool = False) -> None:
        assert self.received is not None
        self.save.save(trainer, module, before_validation=before_validation)
        raise StoppedBySignalError(self.received)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal; what is safe in a handler is little, so the text goes straight to the terminal."""
        if self.received is not None:
            if signum == signal.SIGINT:
                os._exit(128 + signum)
            return
        self.received = signum
        self._module.wants_stop = True
        if not ranks.is_main():
            return
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        os.write(2, f"\n{name}: finishing the step, then saving. Ctrl-C quits at once.\n".encode())
