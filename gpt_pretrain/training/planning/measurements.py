"""Measure the parts of a run: its steps, a loss, a sample and a checkpoint."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.checkpoints.checkpoint_file import copy_checkpoint, write_checkpoint
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.held_out import score_held_out
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.sampling import generate_stream
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.resources import nearest_folder, peak_memory
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.splitting import encode_prompt
from gpt_pretrain.training.callbacks.held_out import held_out_batch, scoring
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.optimization.optimizer import build_optimizer
from gpt_pretrain.training.preflight import TrainingSetup
from gpt_pretrain.training.steps.nonfinite import NonFiniteError
from gpt_pretrain.training.trainer import build_trainer

MAX_SECONDS = 5.0  # for the steps, and again for the sample
MIN_STEPS, MAX_STEPS = 3, 200  # after the first step
PROBE_BYTES = 1 << 26  # largest size of the file to write


@dataclass(frozen=True)
class Measurements:
    """Times in seconds, and the peak memory.

    Args:
        first_step: The first optimizer step, with all work that is done only once.
        step: Median of the later steps.
        eval_batch: The loss of one batch, without gradients.
        sample: A text of the length in the settings.
        save: Writing a checkpoint.
        copy: Copying a checkpoint.
        peak_bytes: Peak memory in bytes; None if unknown.
        orthogonalization: The part of a step in which Muon updates the matrices; 0 with AdamW.
        held_out: An evaluation on held-out texts and tasks; 0 if there are none.
    """

    first_step: float
    step: float
    eval_batch: float
    sample: float
    save: float
    copy: float
    peak_bytes: int | None
    orthogonalization: float = 0.0
    held_out: float = 0.0


class StepTimer(Callback):
    """Record when each optimizer step ends, and stop the training after enough of them.

    Attributes:
        ends: Seconds from the start of the training to the end of each step, including the first.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GPTLitModule)
        if not pl_module.ends_step(batch_idx):
            return
        pl_module.catch_up()
        self.ends.append(time.perf_counter() - self._start)
        steps, seconds = len(self.ends) - 1, self.ends[-1] - self.ends[0]
        trainer.should_stop = steps >= MAX_STEPS or (steps >= MIN_STEPS and seconds >= MAX_SECONDS)

    def step_seconds(self) -> float:
        """Return the median duration of all steps but the first."""
        return statistics.median(end - start for start, end in zip(self.ends, self.ends[1:], strict=False))


def fit_for_measuring(trainer: L.Trainer, module: GPTLitModule, data: TextDataModule, *, advice: str) -> None:
    """Train for a measurement that leaves no run behind.

    Args:
        advice: The remedy to name if a loss or gradient is NaN or infinite.

    Raises:
        UserError: If a loss or gradient is NaN or infinite.
    """
    try:
        trainer.fit(module, datamodule=data)
    except NonFiniteError as error:
        raise UserError(f"{error} {advice}") from error
    except SystemExit as end:
        if trainer.interrupted and end.code == 1:  # Lightning's code after Ctrl-C; other signals have their own
            raise KeyboardInterrupt from None
        raise
    finally:
        data.stop_workers()


def measure_run(setup: TrainingSetup, module: GPTLitModule, *, checkpoint_bytes: int) -> Measurements:
    """Train a few steps on one device, then time a loss, a sample and a checkpoint. The module's weights change.

    Raises:
        UserError: If a loss or gradient is NaN or infinite.
        OSError: If the checkpoint cannot be written.
    """
    settings, data = setup.settings, setup.data
    timer = StepTimer()
    one_device = replace(settings.trainer, devices=1, num_nodes=1, limit_val_batches=0, profiler=None)
    trainer = build_trainer(one_device, max_epochs=MAX_STEPS + 1, callbacks=[timer])  # an epoch has at least one step
    fit_for_measuring(trainer, module, data, advice="Try a lower optimizer.lr, or scheduler=warmup_cosine.")
    module.to(accelerator_device(settings.trainer.accelerator))  # Lightning moves the module to the CPU after training
    (batch, *_), _ = data.eval_batches(1)
    eval_batch = min([_seconds(lambda: module.mean_loss([batch])) for _ in range(4)][1:])  # the first one warms up
    sample = sample_seconds(module, setup.tokenizer, settings) if settings.callbacks.samples else 0.0
    peak = peak_memory(module.device)
    written = min(checkpoint_bytes, PROBE_BYTES)
    save, copy = disk_seconds(Path(settings.run_dir), written)
    factor = checkpoint_bytes / written
    update = orthogonalization_seconds(module, settings) if settings.optimizer.name == "muon" else 0.0
    held_out = held_out_seconds(module, setup)
    return Measurements(
        timer.ends[0], timer.step_seconds(), eval_batch, sample, save * factor, copy * factor, peak, update, held_out
    )


def orthogonalization_seconds(module: GPTLitModule, settings: TrainSettings) -> float:
    """Return the seconds that Muon takes for the matrices of the blocks in one step. The module's weights change."""
    bf16 = settings.trainer.precision.startswith("bf16")
    optimizer = build_optimizer(module.model, settings.optimizer, fused=False, bf16=bf16)
    matrices = [parameter for group in optimizer.param_groups if group["orthogonalize"] for parameter in group["params"]]
    if not matrices:
        return 0.0
    for parameter in module.model.parameters():
        parameter.grad = None
    for parameter in matrices:
        parameter.grad = torch.randn_like(parameter)

    def update() -> None:
        optimizer.step()
        matrices[0].sum().item()  # waits for the device

    return min([_seconds(update) for _ in range(3)][1:])


def disk_seconds(folder: Path, n_bytes: int) -> tuple[float, float]:
    """Return the seconds to write, and to copy, a checkpoint of this size in a folder. The files are deleted again.

    Raises:
        UserError: If the folder cannot be written.
    """
    folder = nearest_folder(folder)
    files = [folder / f"plan-{time.time_ns()}-{n}.ckpt" for n in range(2)]
    content = {"numbers": torch.rand(n_bytes // 4)}
    try:
        save = _seconds(lambda: write_checkpoint(content, files[0]))
        return save, _seconds(lambda: copy_checkpoint(files[0], files[1]))
    except OSError as error:
        problem = f"{folder}: this folder cannot be written ({error.strerror or error})"
        raise UserError(f"{problem}, so a run would save nothing. Choose another one with hydra.run.dir=FOLDER.") from error
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def sample_seconds(module: GPTLitModule, tokenizer: Tokenizer, settings: TrainSettings) -> float:
    """Return the seconds that a sample takes. The time of a long one is extrapolated from its beginning."""
    prompt = torch.tensor([encode_prompt(settings.start_context, tokenizer)], device=module.device)
    sampler = SamplerConfig(**vars(settings.sampler))
    generator = torch.Generator(device=module.device).manual_seed(settings.seed)
    start, ends = time.perf_counter(), list[float]()
    for token_ids in generate_stream(module.model, prompt, sampler, generator=generator):
        token_ids.tolist()  # waits for the device
        ends.append(time.perf_counter() - start)
        if ends[-1] > MAX_SECONDS and len(ends) > 1:
            break
    if not ends:
        return 0.0
    last_token = ends[-1] - ends[-2] if len(ends) > 1 else 0.0
    return ends[-1] + (sampler.max_new_tokens - len(ends)) * last_token


class _EnoughError(Exception):
    """A measurement is long enough and ends."""


def held_out_seconds(module: GPTLitModule, setup: TrainingSetup) -> float:
    """Return the seconds that an evaluation on held-out texts and tasks takes. The time of a long one is extrapolated."""
    if setup.held_out is None:
        return 0.0
    start = time.perf_counter()

    def check(_: int) -> None:
        if time.perf_counter() - start > MAX_SECONDS:
            raise _EnoughError

    with scoring(module.model, batch_tokens=held_out_batch(setup.settings)) as scorer:
        with suppress(_EnoughError, UserError):  # weights that have diverged have no scores
            score_held_out(scorer, setup.held_out, report=check)
        share = min(1.0, scorer.tokens / setup.held_out.tokens) if scorer.tokens else 1.0
    kinds = 1 if setup.settings.ema_decay is None else 2
    return kinds * (time.perf_counter() - start) / share


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
