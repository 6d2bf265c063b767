"""Train a few steps without leaving a trace, and report the work and the cost of the whole run (plan=true).

Of several devices only one is measured, in this process and with its share of the batches. Nothing is sent between devices.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.model.config import CUSTOM_KIND, GPTConfig
from gpt_pretrain.runs.folder import display_path
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.formatting import format_duration, format_rounded, format_seconds, format_si
from gpt_pretrain.system.resources import free_disk, memory_limit, nearest_folder
from gpt_pretrain.training import summary
from gpt_pretrain.training.callbacks.stop import FinishAtLimit
from gpt_pretrain.training.fit import build_module
from gpt_pretrain.training.planning.check_context import CheckContext
from gpt_pretrain.training.planning.checks import find_warnings
from gpt_pretrain.training.planning.expected_loss import expected_loss_lines
from gpt_pretrain.training.planning.measurements import Measurements, measure_run
from gpt_pretrain.training.planning.plan import TrainingPlan, make_plan, per_device_note
from gpt_pretrain.training.planning.schedule_checks import describe_resumed_rate
from gpt_pretrain.training.planning.time_checks import HELD_OUT, costly_orthogonalization, late_checkpoint, time_warnings
from gpt_pretrain.training.preflight import TrainingSetup
from gpt_pretrain.training.run_length import steps_per_epoch

LARGE_EMBEDDING = 1 / 3  # share of the parameters
SMALL_VOCABULARY = 5000  # tokens; a smaller one would hardly help


def dry_run(setup: TrainingSetup) -> str:
    """Return a report on the work and the cost of the run, with the warnings about it.

    Raises:
        UserError: If its first steps fail.
        OSError: If the run's folder cannot be written.
    """
    settings, data = setup.settings, setup.data
    L.seed_everything(settings.seed, workers=True, verbose=False)
    module = build_module(setup)
    config = module.model.config
    facts = summary.run_facts(settings, data, module.model)
    plan = make_plan(settings, data, config, first_step=setup.start.step, parameters=module.model.num_parameters())
    context = CheckContext(settings, data, config, plan, setup.start, setup.overridden)
    warnings = find_warnings(context)
    memory = memory_limit(accelerator_device(settings.trainer.accelerator))  # before the steps use some of it
    measured = measure_run(setup, module, checkpoint_bytes=plan.checkpoint)
    times = estimate_times(plan, measured, settings)
    late = late_checkpoint(
        settings.checkpoint,
        per_epoch=steps_per_epoch(data, settings.trainer),
        left=plan.steps,
        step_seconds=measured.step,
    )
    warnings += time_warnings(context, times)
    costly = costly_orthogonalization(context, measured=measured.orthogonalization / measured.step)
    warnings += [text for text in (late, costly, _exceeds_max_time(settings, sum(times.values()))) if text is not None]
    rate = describe_resumed_rate(context)
    lines = [
        *facts,
        *_embedding_lines(module.model.num_parameters(), config, typed=setup.start.architecture is None),
        *([] if rate is None else [rate]),
        *_cost_lines(plan, measured, settings, memory),
        *_time_lines(plan, measured, times),
        *expected_loss_lines(setup, plan, seconds=sum(times.values())),
    ]
    lines += [f"warnings  {len(warnings) or 'none'}", *(f"        - {warning}" for warning in warnings)]
    return "\n".join(lines)


def estimate_times(plan: TrainingPlan, measured: Measurements, settings: TrainSettings) -> dict[str, float]:
    """Return the seconds of each part of the run, from its first step to its last."""
    times = {
        "steps": measured.first_step + (plan.steps - 1) * measured.step,
        "evaluations": plan.evaluations * plan.evaluation_batches * measured.eval_batch,
        "validation": plan.validations * plan.val_batches * measured.eval_batch,
        "samples": plan.epoch_ends * measured.sample,
    }
    if measured.held_out:
        times[HELD_OUT] = plan.held_out_evaluations * measured.held_out
    saves, minutes = plan.validations, settings.checkpoint.every_n_minutes
    if minutes is not None:
        saves = max(saves, int(sum(times.values()) / (60 * minutes)))
    copies = 1 + (settings.checkpoint.keep > 0)
    return {**times, "checkpoints": saves * (measured.save + copies * measured.copy)}


def _cost_lines(plan: TrainingPlan, measured: Measurements, settings: TrainSettings, memory: int | None) -> list[str]:
    devices, run_dir = plan.parallelism.devices, Path(settings.run_dir)
    rate = plan.token_flops * plan.tokens / plan.steps / measured.step / devices
    parts = ", ".join(f"{name} {format_si(n_bytes, 'B')}" for name, n_bytes in plan.memory.parts.items())
    available = "" if memory is None else f"; {format_si(memory, 'B')} available"
    peak, bound = "", "at most" if plan.memory.activations else "at least"
    if measured.peak_bytes is not None:
        one_device = " on one device with the whole model" if devices > 1 else ""
        peak = f"; measured{one_device}: {format_si(measured.peak_bytes, 'B')} with the program"
    return [
        f"tokens  {plan.tokens:,} ({plan.tokens_per_epoch:,} per epoch); each training token is seen "
        f"{format_rounded(plan.repeats, 3)} times{' in the whole run' if plan.steps < plan.total_steps else ''}",
        f"compute {format_si(plan.flops, 'FLOP')} ({format_si(plan.token_flops, 'FLOP')} per token); measured: "
        f"{format_si(rate, 'FLOP/s')}",
        f"memory  {bound} {format_si(plan.memory.peak, 'B')}{per_device_note(plan)} by formula, beyond the program's own"
        f"{peak}{available}",
        f"        ({parts})",
        *_snapshot_lines(plan),
        *_unknown_lines(settings),
        *_traffic_lines(plan),
        f"disk    at most {format_si(plan.disk, 'B')}, in checkpoints of {format_si(plan.checkpoint, 'B')} each; "
        f"{format_si(free_disk(run_dir), 'B')} free in {display_path(nearest_folder(run_dir))}",
    ]


def _snapshot_lines(plan: TrainingPlan) -> list[str]:
    """Return a line about the memory for a checkpoint that is written while training continues."""
    if plan.parallelism.fsdp:
        return []
    return [f"        and {format_si(plan.checkpoint, 'B')} while a checkpoint is written; if less is free, training waits"]


def _unknown_lines(settings: TrainSettings) -> list[str]:
    """Return lines about the costs of the user's own parts that no formula gives."""
    lines = []
    if "model" in settings.custom:
        lines.append("        your own model has no formula: compute is 6 FLOP per parameter, and memory lacks the activations")
    if "optimizer" in settings.custom:
        lines.append(
            "        the state of your own optimizer is unknown: memory and disk assume AdamW's two numbers per parameter"
        )
    return lines


def _embedding_lines(n_parameters: int, config: GPTConfig, *, typed: bool) -> list[str]:
    """Return a line about the vocabulary's share of the model's parameters, if it is more than LARGE_EMBEDDING.

    Args:
        typed: Whether the run may choose another vocabulary.
    """
    if config.kind == CUSTOM_KIND:
        return []
    share = config.vocab_size * config.emb_dim * (1 if config.tie_embeddings else 2) / n_parameters
    if share <= LARGE_EMBEDDING:
        return []
    advice = "; tokenizer=bpe trains a smaller vocabulary on the text" * (typed and config.vocab_size > SMALL_VOCABULARY)
    return [
        f"vocab   the embedding and the output layer of {config.vocab_size:,} tokens take {share:.0%} of the parameters{advice}"
    ]


def _traffic_lines(plan: TrainingPlan) -> list[str]:
    if plan.parallelism.devices == 1:
        return []
    kinds = {"gradients": plan.traffic.gradients, "weights": plan.traffic.weights}
    parts = ", ".join(f"{name} {format_si(n_bytes, 'B')}" for name, n_bytes in kinds.items() if n_bytes)
    return [
        f"traffic {format_si(plan.traffic.total, 'B')} sent per step by each of {plan.parallelism.devices} devices, "
        f"{plan.parallelism.name} ({parts})"
    ]


def _time_lines(plan: TrainingPlan, measured: Measurements, times: dict[str, float]) -> list[str]:
    total = sum(times.values())
    tokens_per_second = plan.tokens / plan.steps / measured.step
    amounts = {
        "steps": (plan.steps, measured.step),
        "evaluations": (plan.evaluations, plan.evaluation_batches * measured.eval_batch),
        "validation": (plan.validations, plan.val_batches * measured.eval_batch),
        "samples": (plan.epoch_ends, measured.sample),
        HELD_OUT: (plan.held_out_evaluations, measured.held_out),
        "checkpoints": (plan.validations, measured.save + measured.copy),
    }
    rows = []
    for name, (count, seconds) in amounts.items():
        if name not in times:
            continue
        share = f"{format_duration(times[name]):>12} {times[name] / total:4.0%}"
        rows.append(f"        {share}  {name}: {count:,} of {format_seconds(seconds)} each")
    if measured.orthogonalization > 0:
        part = f"{format_seconds(measured.orthogonalization)} ({measured.orthogonalization / measured.step:.0%})"
        rows.append(f"        of each step, {part} to orthogonalize Muon's updates of the matrices")
    devices = plan.parallelism.devices
    assumption = f", if all {devices} devices are as fast as the measured one and sending takes no time" if devices > 1 else ""
    return [
        f"time    about {format_duration(total)} from the first step to the last, at {tokens_per_second:,.0f} tokens/s while "
        f"training{assumption}",
        *rows,
    ]


def _exceeds_max_time(settings: TrainSettings, seconds: float) -> str | None:
    limit = FinishAtLimit(max_steps=-1, max_time=settings.trainer.max_time).max_seconds
    if seconds <= limit:
        return None
    length = "max_epochs" if settings.trainer.max_tokens is None else "max_tokens"
    return (
        f"trainer.max_time={settings.trainer.max_time} ends the run before its last step: it would take about "
        f"{format_duration(seconds)}. Allow more time or lower trainer.{length}, which also shortens the schedule."
    )
