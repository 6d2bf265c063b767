"""Train a model for a short time with vocabularies of several sizes on the same text, to compare them in bits per byte."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.config.schema import DataSettings, TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.loss import mean_loss, next_token_loss
from gpt_pretrain.evaluation.vocabulary_size import TrialPoint
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.formatting import format_duration, format_si
from gpt_pretrain.texts.sampling import TextSample
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer, token_byte_lengths
from gpt_pretrain.training.acceleration import precision_for
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.planning.measurements import fit_for_measuring
from gpt_pretrain.training.trainer import build_trainer

MEASURED_AT = (0.125, 0.25, 0.5, 1.0)  # shares of a trial's text after which it is measured
MIN_STEPS = 40  # optimizer steps of the shortest training
HELD_OUT_BYTES = 200_000
TIMED_STEPS = 3
OVERHEAD = 1.3  # duration of a step and its share of the evaluations, relative to its forward and backward pass


@dataclass(frozen=True)
class TrialPlan:
    """The trainings to compare.

    Args:
        text_bytes: Bytes of text in each training.
        bytes_per_token: Bytes per token of each tokenizer, on held-out text.
        seconds: Expected duration of all trainings together.
    """

    text_bytes: float
    bytes_per_token: list[float]
    seconds: float


class MeasuredSteps(Callback):
    """Measure the bits per byte of the validation set after certain optimizer steps, and end the training after the last one.

    Args:
        data: The data of the training.
        steps: Optimizer steps, counted from 1, in ascending order.

    Attributes:
        bits_per_byte: The measurement after each of the steps.
    """

    def __init__(self, data: TextDataModule, steps: Sequence[int]) -> None:
        self.data = data
        self.steps = steps
        self.bits_per_byte: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GPTLitModule)
        if trainer.global_step < self.steps[len(self.bits_per_byte)] or not pl_module.ends_step(batch_idx):
            return
        batches, lengths = self.data.val_dataloader(), pl_module.token_bytes
        with trainer.precision_plugin.val_step_context():
            loss = mean_loss(pl_module.model, batches, token_bytes=lengths, all_reduce=ranks.all_reduce_sum)
        self.bits_per_byte.append(loss.bits_per_byte)
        trainer.should_stop = len(self.bits_per_byte) == len(self.steps)


def plan_trials(
    settings: TrainSettings, tokenizers: Sequence[Tokenizer], held_out: TextSample, *, total_bytes: float, seconds: float
) -> TrialPlan:
    """Return trainings that take about this time: one for each tokenizer, and one more for the middle one.

    Args:
        total_bytes: Bytes of text in the whole run. No trial reads more.

    Raises:
        UserError: If the time, or the text, is too short to measure anything.
    """
    text = "".join(held_out.texts()).encode()[:HELD_OUT_BYTES].decode(errors="ignore")
    lengths = [len(text.encode()) / max(len(one.encode_ordinary(text)), 1) for one in tokenizers]
    tokens = settings.data.batch_windows * settings.trainer.accumulate_grad_batches * settings.model.context_length
    costs = [_step_seconds(settings, one.vocab_size) / (tokens * length) for one, length in zip(tokenizers, lengths, strict=True)]
    cost = sum(costs) + costs[len(costs) // 2]
    text_bytes = min(total_bytes, seconds / cost)
    if text_bytes < (needed := MIN_STEPS * tokens * max(lengths)):
        least = f"trial: {MIN_STEPS} optimizer steps of {tokens:,} tokens need {format_si(needed, 'B')} of text"
        if total_bytes < needed:
            raise UserError(f"{least}, but the whole training has {format_si(total_bytes, 'B')}. Set a smaller data.batch_size.")
        raise UserError(
            f"{least} for each vocabulary, and about {format_duration(needed * cost)} in all. Raise trial_minutes=, or choose a "
            "smaller model or data.batch_size."
        )
    return TrialPlan(text_bytes, lengths, text_bytes * cost)


def run_trials(
    settings: TrainSettings,
    tokenizers: Sequence[Tokenizer],
    training: TextSample,
    held_out: TextSample,
    plan: TrialPlan,
    *,
    report: Callable[[TrialPoint], object],
) -> list[TrialPoint]:
    """Train with each tokenizer on the same text, and once more with the middle one and another seed.

    Args:
        report: Called with the last point of each training.

    Raises:
        UserError: If a loss is not finite, or the held-out text is too short for a window.
    """
    middle = tokenizers[len(tokenizers) // 2]
    points = []
    with tempfile.TemporaryDirectory(prefix="gpt-pretrain-") as name:
        data = _write_text(Path(name), settings.data, training, held_out, n_bytes=plan.text_bytes)
        for tokenizer, seed in [*((one, settings.seed) for one in tokenizers), (middle, settings.seed + 1)]:
            found = _train(replace(settings, data=data, seed=seed), tokenizer, plan.text_bytes)
            report(found[-1])
            points += found
    return points


def _write_text(
    folder: Path, settings: DataSettings, training: TextSample, held_out: TextSample, *, n_bytes: float
) -> DataSettings:
    """Write the text of the trials to a file, with the held-out part last. Return the settings that split it there."""
    train = END_OF_TEXT.join(training.texts(until=n_bytes))
    val = END_OF_TEXT + END_OF_TEXT.join(held_out.texts()).encode()[:HELD_OUT_BYTES].decode(errors="ignore")
    file = folder / "text.txt"
    file.write_text(train + val, encoding="utf-8", newline="")
    ratio = (len(train) + 0.5) / (len(train) + len(val))
    return replace(
        settings, name="text", path=str(file), url=None, sha256=None, cache_dir=str(folder), as_text=False, train_ratio=ratio
    )


def _train(settings: TrainSettings, tokenizer: Tokenizer, text_bytes: float) -> list[TrialPoint]:
    """Train on this amount of text, in several passes if there is less, and return the measurements.

    The learning rate stays constant after the warm-up, so that each measurement also holds for a shorter training.
    """
    L.seed_everything(settings.seed, workers=True, verbose=False)
    data = TextDataModule(settings.data, tokenizer, context_length=settings.model.context_length, seed=settings.seed)
    data.prepare_data()
    lengths = torch.from_numpy(token_byte_lengths(tokenizer))
    train = data.split.train
    bytes_per_token = float(lengths[torch.from_numpy(train.read().astype(np.int64))].double().mean())
    per_step = settings.data.batch_windows * settings.trainer.accumulate_grad_batches * data.context_length * bytes_per_token
    steps = [max(1, round(share * text_bytes / per_step)) for share in MEASURED_AT]
    module = GPTLitModule(
        new_model(GPTConfig(vocab_size=tokenizer.vocab_size, **vars(settings.model))),
        optimizer=settings.optimizer,
        scheduler=replace(settings.scheduler, name="constant"),
        total_steps=steps[-1],
        token_bytes=lengths,
    )
    measured = MeasuredSteps(data, steps)
    device = accelerator_device(settings.trainer.accelerator)
    precision, _ = precision_for(settings.trainer.precision, device)
    trainer = build_trainer(
        replace(settings.trainer, devices=1, num_nodes=1, precision=precision, limit_val_batches=0, profiler=None),
        max_epochs=2 + math.ceil(text_bytes / (train.count * bytes_per_token)) * 2,
        callbacks=[measured],
    )
    fit_for_measuring(trainer, module, data, advice="Give a lower optimizer.lr in trial=.")
    return [
        TrialPoint(tokenizer.vocab_size, step * per_step, bits) for step, bits in zip(steps, measured.bits_per_byte, strict=True)
    ]


def _step_seconds(settings: TrainSettings, vocab_size: int) -> float:
    """Measure the seconds of an optimizer step with a few batches of random tokens."""
    device = accelerator_device(settings.trainer.accelerator)
    model = new_model(GPTConfig(vocab_size=vocab_size, **vars(settings.model))).to(device)
    shape, times = (settings.data.batch_windows, settings.model.context_length), list[float]()
    generator = torch.Generator().manual_seed(0)
    for _ in range(TIMED_STEPS):
        token_ids = torch.randint(vocab_size, shape, generator=generator).to(device)
        start = time.perf_counter()
        next_token_loss(model, token_ids, token_ids).backward()  # type: ignore[no-untyped-call]
        gradient = model.head_weight.grad
        assert gradient is not None
        gradient[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times) * OVERHEAD * settings.trainer.accumulate_grad_batches
