"""One training from its starting point to its end, whatever that end is."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.errors import LostEndError, UserError
from gpt_pretrain.runs.folder import display_path, list_checkpoints
from gpt_pretrain.runs.metadata import update_metadata
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.tokenizers.base import Tokenizer, token_byte_lengths
from gpt_pretrain.training import summary
from gpt_pretrain.training.acceleration import compile_model
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.callbacks.stop import StopOnSignal, StoppedBySignalError
from gpt_pretrain.training.distributed import ranks, requeue
from gpt_pretrain.training.lit_module import GPTLitModule, NonFiniteError
from gpt_pretrain.training.preflight import StartingPoint, build_model
from gpt_pretrain.training.resume import newest_checkpoint
from gpt_pretrain.training.run_length import total_steps
from gpt_pretrain.training.trainer import build_trainer

log = logging.getLogger(__name__)


def fit(
    settings: TrainSettings,
    tokenizer: Tokenizer,
    data: TextDataModule,
    start: StartingPoint,
    *,
    config: dict[str, Any],
    run_dir: Path,
    extra_callbacks: list[Callback],
) -> tuple[L.Trainer, GPTLitModule]:
    """Train to the end of the run, going back to a checkpoint where the settings ask for that.

    Args:
        config: the settings as plain containers, for checkpoints.
        extra_callbacks: Callbacks from outside the training.

    Returns:
        Lightning's Trainer and module as they are after training.

    Raises:
        UserError: when a loss or gradient is no number and the settings say to stop, or it happens too often.
        LostEndError: when the last checkpoint could not be written.
        SystemExit: when a signal ended the run.
    """
    lr_scale, skipped, rollbacks = 1.0, list[list[int]](), 0
    resume, step = start.resume, start.step
    while True:
        L.seed_everything(settings.seed, workers=True, verbose=False)
        module = build_module(settings, tokenizer, data, start)
        module.lr_scale, module.skipped = lr_scale, skipped
        trainer = build_trainer(
            settings, data, tokenizer, config=config, run_dir=run_dir, first_step=step, extra_callbacks=extra_callbacks
        )
        if not skipped:
            _introduce(settings, data, module, first_step=step, run_dir=run_dir)
        stopped_by = None
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        except NonFiniteError as error:
            rollbacks += 1
            if settings.on_nonfinite != "rollback" or rollbacks > settings.max_rollbacks:
                raise UserError(_diverged(error, rollbacks - 1, settings, run_dir)) from error
            if (received := summary.callback(trainer, StopOnSignal).received) is not None:
                log.info("Stopped at a step that was to be undone; the run is as its last checkpoint has it.")
                sys.exit(128 + received)
            lr_scale = module.lr_scale * settings.rollback_lr_factor
            skipped = [*module.skipped, *error.batches]
            resume, step = _last_good(run_dir, data)
            log.warning("%s Going back to step %d, leaving that out, with %g of the learning rate.", error, step, lr_scale)
            continue
        except StoppedBySignalError as stop:
            stopped_by = stop.signum
        except SystemExit:
            if trainer.interrupted:  # by a Ctrl-C before the first step
                sys.exit(128 + signal.SIGINT)
            raise
        finally:
            data.stop_workers()
        if stopped_by is not None:
            _leave(trainer, stopped_by, run_dir)
        if summary.callback(trainer, SaveRun).failed:
            raise LostEndError("The last checkpoint could not be written: the run's end is lost.")
        return trainer, module


def finish(settings: TrainSettings, trainer: L.Trainer, module: GPTLitModule, *, run_dir: Path) -> float:
    """Say what came out, write the folder for transformers if that is wanted, and return the best validation loss in nats."""
    log.info("%s", summary.after(settings, trainer, module, run_dir))
    if settings.export and ranks.is_main():
        from gpt_pretrain.checkpoints.huggingface import export_run

        export_run(run_dir)
    return summary.best_loss(trainer)


def _introduce(settings: TrainSettings, data: TextDataModule, module: GPTLitModule, *, first_step: int, run_dir: Path) -> None:
    """Say what is about to be trained, and note it."""
    log.info("%s", summary.before(settings, data, module.model, first_step=first_step))
    device = accelerator_device(settings.trainer.accelerator)
    update_metadata(run_dir, **summary.setup_metadata(settings, data, module, device=device))


def _leave(trainer: L.Trainer, signum: int, run_dir: Path) -> NoReturn:
    """End the process as the signal that stopped the run asks for."""
    log.info("%s", summary.interrupted(trainer, run_dir))
    if signum == getattr(signal, "SIGUSR1", None) and ranks.is_main():
        requeue.requeue()
    sys.exit(128 + signum)


def build_module(settings: TrainSettings, tokenizer: Tokenizer, data: TextDataModule, start: StartingPoint) -> GPTLitModule:
    """What Lightning trains: a model, compiled where that is wanted and possible, and how to train it."""
    model = build_model(settings, tokenizer, start)
    model.activation_checkpointing = settings.trainer.activation_checkpointing
    compiled, reason = compile_model(model, settings.compile, accelerator_device(settings.trainer.accelerator))
    log.info("compile %s (%s)", "on" if compiled else "off", reason)
    return GPTLitModule(
        model,
        optimizer=settings.optimizer,
        scheduler=settings.scheduler,
        total_steps=total_steps(data, settings.trainer),
        token_bytes=torch.from_numpy(token_byte_lengths(tokenizer)),
        on_nonfinite=settings.on_nonfinite,
        compiled=compiled,
    )


def _last_good(run_dir: Path, data: TextDataModule) -> tuple[Path | None, int]:
    """The newest checkpoint and its step, or the beginning."""
    if not list_checkpoints(run_dir):
        data.load_state_dict({"epoch": 0, "windows": 0})
        return None, 0
    path, content = newest_checkpoint(run_dir)
    return path, int(content["global_step"])


def _diverged(error: NonFiniteError, rollbacks: int, settings: TrainSettings, run_dir: Path) -> str:
    good = "no checkpoint has been written yet"
    if list_checkpoints(run_dir):
        path, content = newest_checkpoint(run_dir)
        good = f"the last good checkpoint, {display_path(path)}, is that of step {content['global_step'] - 1}"
    tried = f" {rollbacks} rollbacks did not help." if settings.on_nonfinite == "rollback" else ""
    return (
        f"{error} The weights were not touched; {good}.{tried} Try a lower optimizer.lr, "
        "scheduler=warmup_cosine, or on_nonfinite=rollback."
    )
