"""Train a run from its starting point to its end, including rollbacks and interruptions."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.errors import LostEndError, UserError, describe_damage
from gpt_pretrain.runs.folder import display_path, has_checkpoint, list_checkpoints
from gpt_pretrain.runs.metadata import update_metadata
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.tokenizers.base import token_byte_lengths
from gpt_pretrain.training import summary
from gpt_pretrain.training.acceleration import compile_model
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.callbacks.stop import StopOnSignal, StoppedBySignalError
from gpt_pretrain.training.distributed import ranks, requeue
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.optimization.optimizer import lowered_rates
from gpt_pretrain.training.preflight import TrainingSetup
from gpt_pretrain.training.start.checkpoint import newest_checkpoint
from gpt_pretrain.training.start.starting_point import build_model
from gpt_pretrain.training.steps.nonfinite import MAX_WEIGHT, NonFiniteError, has_usable_weights
from gpt_pretrain.training.trainer import build_run_trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """One attempt to train to the end. Each rollback begins another one.

    Args:
        resume: The checkpoint to start from.
        step: Optimizer steps done in that checkpoint.
        rollbacks: Rollbacks so far.
        lr_scale: The factor on the learning rate.
        skipped: Epoch and batch, both counted from 0, of the batches that are left out.
    """

    resume: Path | None
    step: int
    rollbacks: int = 0
    lr_scale: float = 1.0
    skipped: list[list[int]] = field(default_factory=list)


def fit(
    setup: TrainingSetup, *, config: dict[str, Any], run_dir: Path, extra_callbacks: list[Callback]
) -> tuple[L.Trainer, GPTLitModule]:
    """Train to the end of the run, and roll back to a checkpoint where the settings ask for it.

    Args:
        config: The settings as plain containers, for checkpoints.
        run_dir: The run's folder.
        extra_callbacks: Callbacks from outside the training.

    Returns:
        Lightning's Trainer and module after training.

    Raises:
        UserError: If a loss or gradient is NaN or infinite, and the settings say to stop or the rollbacks are used up.
        LostEndError: If the last checkpoint could not be written.
        SystemExit: If a signal ends the run.
    """
    attempt = Attempt(setup.start.resume, setup.start.step)
    while True:
        trainer, module = _build_attempt(attempt, setup, config=config, run_dir=run_dir, extra_callbacks=extra_callbacks)
        stopped_by = None
        try:
            with _explain_damage(module, attempt.resume):
                trainer.fit(module, datamodule=setup.data, ckpt_path=attempt.resume, weights_only=True)
        except NonFiniteError as error:
            attempt = _roll_back(attempt, error, setup, trainer, module, run_dir)
            continue
        except StoppedBySignalError as stop:
            stopped_by = stop.signum
        except SystemExit as end:
            if trainer.interrupted and end.code == 1:  # Lightning's code after Ctrl-C before the first step
                sys.exit(128 + signal.SIGINT)
            raise
        finally:
            setup.data.stop_workers()
            summary.find_callback(trainer, SaveRun).finish_save(agree=False)  # no matter what has ended the training
        if stopped_by is not None:
            _leave(setup.settings, trainer, stopped_by, run_dir)
        if summary.find_callback(trainer, SaveRun).failed:
            if not has_checkpoint(run_dir):
                raise LostEndError(
                    "The run has no checkpoint: it could not be written. Free some space, or choose another folder with "
                    "hydra.run.dir=, and train again."
                )
            raise LostEndError("The last checkpoint could not be written, so the steps since the previous one are lost.")
        return trainer, module


def finish(settings: TrainSettings, trainer: L.Trainer, module: GPTLitModule, *, run_dir: Path) -> float:
    """Report the result, export the model if asked, and return the best validation loss in nats per token."""
    log.info(summary.describe_result(settings, trainer, module, run_dir))
    if settings.export and ranks.is_main():
        from gpt_pretrain.checkpoints.export.huggingface import export_run

        export_run(run_dir)
    return summary.find_callback(trainer, SaveRun).best_loss


def build_module(setup: TrainingSetup) -> GPTLitModule:
    """Build the LightningModule around a model. The model is compiled if the settings ask for it and the machine can."""
    settings = setup.settings
    model = build_model(settings, setup.tokenizer, setup.start)
    model.activation_checkpointing = settings.trainer.activation_checkpointing
    compiled, reason = compile_model(model, settings.compile, accelerator_device(settings.trainer.accelerator))
    log.info("compile %s (%s)", "on" if compiled else "off", reason)
    return GPTLitModule(
        model,
        optimizer=settings.optimizer,
        scheduler=settings.scheduler,
        total_steps=setup.total_steps,
        pace=None if setup.budget is None else setup.budget.pace,
        token_bytes=torch.from_numpy(token_byte_lengths(setup.tokenizer)),
        on_nonfinite=settings.on_nonfinite,
        compiled=compiled,
        custom=settings.custom,
    )


def _build_attempt(
    attempt: Attempt, setup: TrainingSetup, *, config: dict[str, Any], run_dir: Path, extra_callbacks: list[Callback]
) -> tuple[L.Trainer, GPTLitModule]:
    """Build the Trainer and the module of an attempt, from the same seed each time. Describe the run before the first one."""
    L.seed_everything(setup.settings.seed, workers=True, verbose=False)
    module = build_module(setup)
    module.lr_scale, module.skipped = attempt.lr_scale, attempt.skipped
    trainer = build_run_trainer(setup, config=config, run_dir=run_dir, first_step=attempt.step, extra_callbacks=extra_callbacks)
    if not attempt.rollbacks:
        _introduce(setup, module, run_dir)
    return trainer, module


@contextmanager
def _explain_damage(module: GPTLitModule, checkpoint: Path | None) -> Iterator[None]:
    """Turn a library's error about a damaged training state into a message for the user.

    Raises:
        UserError: If the block fails before training has begun, with an error that points to wrong types or missing values.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        damaged = checkpoint is not None and not module.started and not ranks.is_distributed()
        # load_state_dict raises a plain RuntimeError. Other failures, such as full memory, raise a subclass of it.
        if not damaged or isinstance(error, UserError) or (isinstance(error, RuntimeError) and type(error) is not RuntimeError):
            raise
        reason = describe_damage(error)[:200]
        raise UserError(
            f"{checkpoint} cannot be resumed: its training state is damaged ({reason}). Start from its weights with init_from=."
        ) from error


def _introduce(setup: TrainingSetup, module: GPTLitModule, run_dir: Path) -> None:
    """Describe the run that is about to start, on screen and in its metadata."""
    settings, data = setup.settings, setup.data
    log.info(summary.describe_start(setup, module.model))
    device = accelerator_device(settings.trainer.accelerator)
    update_metadata(run_dir, **summary.setup_metadata(settings, data, module, device=device))


def _roll_back(
    attempt: Attempt, error: NonFiniteError, setup: TrainingSetup, trainer: L.Trainer, module: GPTLitModule, run_dir: Path
) -> Attempt:
    """Return the next attempt. It starts from the newest checkpoint and leaves out the batches that were not finite.

    Raises:
        UserError: If the settings say to stop, or the rollbacks are used up.
        SystemExit: If a signal asked to stop.
    """
    settings = setup.settings
    if settings.on_nonfinite != "rollback" or attempt.rollbacks >= settings.max_rollbacks:
        raise UserError(_divergence(error, attempt.rollbacks, settings, module, run_dir)) from error
    if (received := summary.find_callback(trainer, StopOnSignal).received) is not None:
        log.info("Stopped during a rollback. The run ends with its last checkpoint.")
        sys.exit(128 + received)
    resume, step = _last_good(run_dir, setup.data)
    lr_scale = module.lr_scale * settings.rollback_lr_factor
    share = f"{lr_scale:.3g}"
    log.warning(
        "%s Rolling back to step %s, without these batches and with %s times the learning rate.", error, f"{step:,}", share
    )
    return Attempt(resume, step, attempt.rollbacks + 1, lr_scale, [*module.skipped, *error.batches])


def _last_good(run_dir: Path, data: TextDataModule) -> tuple[Path | None, int]:
    """Return the newest checkpoint and its step. Without a checkpoint, reset the data to the beginning."""
    if not list_checkpoints(run_dir):
        data.load_state_dict({"epoch": 0, "windows": 0})
        return None, 0
    path, content = newest_checkpoint(run_dir)
    return path, int(content["global_step"])


def _divergence(error: NonFiniteError, rollbacks: int, settings: TrainSettings, module: GPTLitModule, run_dir: Path) -> str:
    """Return the message for a run that ends because a loss, a gradient or weights are not finite."""
    saved, rollback = "no checkpoint has been written yet", ""
    if list_checkpoints(run_dir):
        path, content = newest_checkpoint(run_dir)
        saved = f"the last good checkpoint is {display_path(path)}, of step {content['global_step'] - 1:,}"
        rollback = "" if settings.on_nonfinite == "rollback" else ", or on_nonfinite=rollback"
    tried = f" {rollbacks} rollbacks did not help." if settings.on_nonfinite == "rollback" else ""
    warmup = "" if settings.scheduler.warmup_steps else ", scheduler=warmup_cosine for a gentle start"
    return (
        f"{error} {_state_of_weights(module)}; {saved}.{tried} The learning rate is probably too high: try "
        f"{lowered_rates(settings.optimizer, 1 / 10)}{warmup}{rollback}."
    )


def _state_of_weights(module: GPTLitModule) -> str:
    if not has_usable_weights(module.model):
        return f"An update has ruined the weights: some are NaN, infinite or above {MAX_WEIGHT:g}"
    if module.record.has_diverged:
        assert module.record.finite_losses is not None
        return f"The training had diverged before: its last finite loss was {module.record.finite_losses[1]:.3g}"
    return "The weights were not updated"


def _leave(settings: TrainSettings, trainer: L.Trainer, signum: int, run_dir: Path) -> NoReturn:
    """Requeue the job on SIGUSR1, and exit with the code for the signal."""
    log.info(summary.describe_interruption(settings, trainer, run_dir))
    if signum == signal.SIGUSR1 and ranks.is_main():
        requeue.requeue()
    sys.exit(128 + signum)
