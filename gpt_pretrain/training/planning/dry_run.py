"""`plan=true`: a few steps of the run, measured and forgotten, and what they say about all of it.

Of several devices, one is measured, in this process, with its share of the batches; nothing is sent to others.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch

from gpt_pretrain.checkpoints.checkpoint_file import copy_checkpoint, write_checkpoint
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.sampling import generate_stream
from gpt_pretrain.runs.folder import display_path
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.formatting import format_duration, format_seconds, format_si
from gpt_pretrain.system.resources import free_disk, memory_limit, nearest_folder, peak_memory
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.training import summary
from gpt_pretrain.training.callbacks.stop import FinishAtLimit
from gpt_pretrain.training.callbacks.timed_steps import TimedSteps
from gpt_pretrain.training.fit import build_module
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.nonfinite import NonFiniteError
from gpt_pretrain.training.planning import plan
from gpt_pretrain.training.planning.checks import find_warnings
from gpt_pretrain.training.planning.plan import TrainingPlan
from gpt_pretrain.training.preflight import TrainingSetup
from gpt_pretrain.training.trainer import build_trainer

SECONDS = 5.0  # for the steps, and for the sample
LEAST_STEPS, MOST_STEPS = 3, 200  # after the first
PROBE_BYTES = 1 << 26  # of the file that is written


@dataclass(frozen=True)
class Measured:
    """Seconds, and bytes where it says so.

    Args:
        first_step: the first optimizer step, with all that is done once.
        step: one after it, the median.
        eval_batch: the loss of a batch, without gradients.
        sample: a text of the settings' length.
        save: writing a checkpoint.
        copy: making another file of it.
        peak_bytes: the most memory held; None: unknown.
    """

    first_step: float
    step: float
    eval_batch: float
    sample: float
    save: float
    copy: float
    peak_bytes: int | None


def dry_run(setup: TrainingSetup) -> str:
    """What a run will do and cost, and what is doubtful about it, for a person to read.

    Raises:
        UserError: when its first steps fail.
        OSError: when nothing can be written where it would be.
    """
    settings, data = setup.settings, setup.data
    L.seed_everything(settings.seed, workers=True, verbose=False)
    module = build_module(setup)
    config = module.model.config
    facts = summary.run_facts(settings, data, module.model)
    whole = plan.make_plan(settings, data, config, first_step=setup.start.step)
    doubtful = find_warnings(settings, data, config, whole)
    limit = memory_limit(accelerator_device(settings.trainer.accelerator))
    measured = rehearse(settings, setup.tokenizer, data, module, checkpoint=whole.checkpoint)
    times = time_shares(whole, measured, settings)
    if (late := _out_of_time(settings, sum(times.values()))) is not None:
        doubtful.append(late)
    lines = [*facts, *_costs(whole, measured, settings, limit), *_times(whole, measured, times)]
    lines += [f"doubts  {'none' if not doubtful else len(doubtful)}", *(f"      - {doubt}" for doubt in doubtful)]
    return "\n".join(lines)


def rehearse(
    settings: TrainSettings, tokenizer: Tokenizer, data: TextDataModule, module: GPTLitModule, *, checkpoint: int
) -> Measured:
    """Train a few steps with what a run has, then compute a loss, write a text and a file; the module's weights change.

    Args:
        checkpoint: bytes of a checkpoint.

    Raises:
        UserError: when a loss or gradient is no number.
    """
    clock = TimedSteps(least=LEAST_STEPS, most=MOST_STEPS, seconds=SECONDS)
    alone = dataclasses.replace(settings.trainer, devices=1, num_nodes=1, limit_val_batches=0, profiler=None)
    trainer = build_trainer(alone, max_epochs=MOST_STEPS + 1, callbacks=[clock])  # an epoch has at least one step
    try:
        trainer.fit(module, datamodule=data)
    except NonFiniteError as error:
        raise UserError(f"{error} Try a lower optimizer.lr, or scheduler=warmup_cosine.") from error
    finally:
        data.stop_workers()
    module.to(accelerator_device(settings.trainer.accelerator))  # from where Lightning has taken it
    (batch, *_), _ = data.eval_batches(1)
    eval_batch = _best_of(3, lambda: module.mean_loss([batch]))
    sample = _sample_seconds(module, tokenizer, settings) if settings.callbacks.samples else 0.0
    peak = peak_memory(module.device)
    save, copy = disk_seconds(Path(settings.run_dir), min(checkpoint, PROBE_BYTES))
    factor = checkpoint / min(checkpoint, PROBE_BYTES)
    return Measured(clock.ends[0], clock.step_seconds(), eval_batch, sample, save * factor, copy * factor, peak)


def time_shares(whole: TrainingPlan, measured: Measured, settings: TrainSettings) -> dict[str, float]:
    """Seconds of each part of a run, from its first step to its last."""
    times = {
        "steps": measured.first_step + (whole.steps - 1) * measured.step,
        "loss lines": whole.loss_lines * whole.loss_line_batches * measured.eval_batch,
        "validation": whole.validations * whole.val_batches * measured.eval_batch,
        "samples": whole.epoch_ends * measured.sample,
    }
    saves, minutes = whole.validations, settings.checkpoint.every_n_minutes
    if minutes is not None:
        saves = max(saves, int(sum(times.values()) / (60 * minutes)))
    copies = 1 + (settings.checkpoint.keep > 0)
    return {**times, "checkpoints": saves * (measured.save + copies * measured.copy)}


def disk_seconds(folder: Path, n_bytes: int) -> tuple[float, float]:
    """How long a checkpoint of so many bytes takes to write, and to copy, in a folder; nothing stays there."""
    folder = nearest_folder(folder)
    files = [folder / f"plan-{time.time_ns()}-{n}.ckpt" for n in range(2)]
    content = {"numbers": torch.rand(n_bytes // 4)}
    try:
        save = _seconds(lambda: write_checkpoint(content, files[0]))
        return save, _seconds(lambda: copy_checkpoint(files[0], files[1]))
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _sample_seconds(module: GPTLitModule, tokenizer: Tokenizer, settings: TrainSettings) -> float:
    """How long a sample takes; of a long one, only its beginning is made."""
    prompt = torch.tensor([tokenizer.encode(settings.start_context)], device=module.device)
    sampler = SamplerConfig(**vars(settings.sampler))
    generator = torch.Generator(device=module.device).manual_seed(settings.seed)
    start, ends = time.perf_counter(), list[float]()
    for column in generate_stream(module.model, prompt, sampler, generator=generator):
        column.tolist()  # waits for it
        ends.append(time.perf_counter() - start)
        if ends[-1] > SECONDS and len(ends) > 1:
            break
    if not ends:
        return 0.0
    last = ends[-1] - ends[-2] if len(ends) > 1 else 0.0
    return ends[-1] + (sampler.max_new_tokens - len(ends)) * last


def _costs(whole: TrainingPlan, measured: Measured, settings: TrainSettings, limit: int | None) -> list[str]:
    rate = whole.token_flops * whole.tokens / whole.steps / measured.step / whole.parallelism.devices
    parts = ", ".join(f"{name} {format_si(n_bytes, 'B')}" for name, n_bytes in whole.memory.parts.items())
    alone = " on one device, unshared," if whole.parallelism.devices > 1 else ""
    held = "" if measured.peak_bytes is None else f"; measured{alone} with it {format_si(measured.peak_bytes, 'B')}"
    there = "" if limit is None else f", of {format_si(limit, 'B')}"
    run_dir = Path(settings.run_dir)
    return [
        f"tokens  {whole.tokens:,}, {whole.tokens_per_epoch:,} an epoch; those of the text {whole.repeats:.3g} times",
        f"compute {format_si(whole.flops, 'FLOP')}, {format_si(whole.token_flops, 'FLOP')} a token; measured "
        f"{format_si(rate, 'FLOP/s')}",
        f"memory  {format_si(whole.memory.peak, 'B')} at most by formula, beside the program's own{plan.per_device_note(whole)}{held}{there}",  # noqa: E501
        f"        ({parts})",
        *_sent(whole),
        f"disk    {format_si(whole.disk, 'B')} at most, in checkpoints of {format_si(whole.checkpoint, 'B')}, of "
        f"{format_si(free_disk(run_dir), 'B')} that are free in {display_path(nearest_folder(run_dir))}",
    ]


def _sent(whole: TrainingPlan) -> list[str]:
    if whole.parallelism.devices == 1:
        return []
    traffic, kinds = whole.traffic, {"gradients": whole.traffic.gradients, "weights": whole.traffic.weights}
    parts = ", ".join(f"{name} {format_si(n_bytes, 'B')}" for name, n_bytes in kinds.items() if n_bytes)
    return [
        f"sent    {format_si(traffic.total, 'B')} a step by each of {whole.parallelism.devices} devices, {whole.parallelism.name} ({parts})"  # noqa: E501
    ]


def _times(whole: TrainingPlan, measured: Measured, times: dict[str, float]) -> list[str]:
    total = sum(times.values())
    speed = whole.tokens / whole.steps / measured.step
    saves = measured.save + measured.copy
    each = {
        "steps": f"{whole.steps:,} of {format_seconds(measured.step)}",
        "loss lines": f"{whole.loss_lines:,} of {format_seconds(whole.loss_line_batches * measured.eval_batch)}",
        "validation": f"{whole.validations:,} of {format_seconds(whole.val_batches * measured.eval_batch)}",
        "samples": f"{whole.epoch_ends:,} of {format_seconds(measured.sample)}",
        "checkpoints": f"{whole.validations:,} of {format_seconds(saves)}",
    }
    shared = f", if {whole.parallelism.devices} devices take as long as one did, and sending takes no time"
    rows = [
        f"        {format_duration(times[name]):>12} {times[name] / total:4.0%}  {name}: {told}" for name, told in each.items()
    ]
    return [
        f"time    about {format_duration(total)} from the first step to the last, at {speed:,.0f} tokens/s while training"
        f"{shared if whole.parallelism.devices > 1 else ''}",
        *rows,
    ]


def _out_of_time(settings: TrainSettings, seconds: float) -> str | None:
    limit = FinishAtLimit(max_steps=-1, max_time=settings.trainer.max_time).max_seconds
    if seconds <= limit:
        return None
    length = "max_epochs" if settings.trainer.max_tokens is None else "max_tokens"
    return (
        f"trainer.max_time={settings.trainer.max_time}: the run would take about {format_duration(seconds)}, so it ends before its last "  # noqa: E501
        f"step. Allow more time, or fewer trainer.{length}, to which the learning rate's schedule is fitted as well."
    )


def _best_of(times: int, job: Callable[[], object]) -> float:
    """The shortest of some runs, after one to warm up."""
    return min([_seconds(job) for _ in range(times + 1)][1:])


def _seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start
