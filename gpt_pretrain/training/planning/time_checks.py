"""Check where the time of a run goes, by its measured or estimated parts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gpt_pretrain.config.schema import CheckpointSettings, TrainSettings
from gpt_pretrain.model.config import CUSTOM_KIND
from gpt_pretrain.model.costs import forward_flops_per_token, orthogonalization_flops
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.formatting import format_duration
from gpt_pretrain.training.planning.check_context import CheckContext

# The most floating-point operations per second that a run reaches, and the least seconds of a batch. Their order of magnitude is
# enough to find long validations.
FLOP_RATES = {"cpu": 3e11, "mps": 5e12, "cuda": 3e14}
MIN_BATCH_SECONDS = 1e-3
MIN_STEP_SECONDS = 8e-3  # for a batch with its backward pass, and Lightning's own work
WORTH_A_WARNING = 30.0  # seconds of validation or evaluation
GOOD_SHARE = 0.2  # share of the training's time
MIN_GOOD_WINDOWS = 50  # for a validation loss that can be compared
HELD_OUT = "held-out texts and tasks"  # name of this part of a run's time
LATE = 7200.0  # seconds without a checkpoint
COSTLY_UPDATE = 0.3  # share of a step's time


def estimated_times(context: CheckContext) -> dict[str, float]:
    """Estimate the least seconds of a run's steps, evaluations and validations, without measuring."""
    plan, size = context.plan, context.settings.data.batch_windows
    batch_tokens = size * context.config.context_length
    rate = FLOP_RATES.get(accelerator_device(context.settings.trainer.accelerator).type, FLOP_RATES["cuda"])
    own = context.config.kind == CUSTOM_KIND
    token_flops = plan.token_flops / 3 if own else forward_flops_per_token(context.config)
    forward = max(MIN_BATCH_SECONDS, token_flops * batch_tokens / rate)
    both = max(MIN_STEP_SECONDS, forward * plan.token_flops / token_flops)
    return {
        "steps": both * plan.tokens / batch_tokens / plan.parallelism.devices,
        "evaluations": forward * plan.evaluations * plan.evaluation_batches,
        "validation": forward * plan.validations * plan.val_batches,
    }


def time_warnings(context: CheckContext, times: Mapping[str, float]) -> list[str]:
    """Return the warnings about the time of a run.

    Args:
        times: Seconds of each part of the run: steps, evaluations and validation.
    """
    checks = (_long_validation, _long_evaluations, _long_held_out) if times["steps"] > 0 else ()
    found = [check(context, times) for check in checks]
    return [warning for warning in found if warning is not None]


def late_checkpoint(settings: CheckpointSettings, *, per_epoch: int, left: int, step_seconds: float) -> str | None:
    """Return a warning if the run trains for hours before a checkpoint.

    Args:
        per_epoch: Optimizer steps of an epoch.
        left: Optimizer steps of the run that remain.
        step_seconds: Seconds of a step.
    """
    steps = settings.every_n_steps
    seconds = min(per_epoch if steps is None else min(steps, per_epoch), left) * step_seconds
    if settings.every_n_minutes is not None or seconds < LATE:
        return None
    when = "at the end of the epoch" if steps is None else f"by checkpoint.every_n_steps={steps}"
    return (
        f"The next checkpoint is written {when}, after about {format_duration(seconds)}. If the machine fails before, these "
        "steps are lost. checkpoint.every_n_minutes=30 saves more often."
    )


def costly_orthogonalization(context: CheckContext, measured: float | None = None) -> str | None:
    """Return a warning if Muon's orthogonalization takes much of each step. Its work does not depend on the batch.

    Args:
        measured: Its share of a step's time; None uses its share of the step's floating-point operations.
    """
    settings, plan = context.settings, context.plan
    if settings.optimizer.name != "muon" or (measured is None and context.config.kind == CUSTOM_KIND):
        return None
    batches = settings.trainer.accumulate_grad_batches
    if measured is None:
        work = orthogonalization_flops(context.config) / plan.parallelism.devices  # the devices share it
        training = plan.token_flops * settings.data.batch_windows * context.config.context_length * batches
        share = work / (work + training)
    else:
        share = measured
    if share <= COSTLY_UPDATE:
        return None
    factor = math.ceil(share / (1 - share) * (1 - COSTLY_UPDATE) / COSTLY_UPDATE)
    by = "the formula" if measured is None else "measurement"
    # One rate for all roles, as in optimizer=adamw, is far too low for embeddings that start with a standard deviation of 1.
    other = "optimizer.name=adamw optimizer.lr=3e-3" if context.config.kind == "modern" else "optimizer=adamw"
    return (
        f"optimizer=muon: orthogonalizing the matrices takes {share:.0%} of each step by {by}, whatever the batch. Larger steps "
        f"make it pay: data.batch_size={settings.data.batch_windows * factor}, or "
        f"trainer.accumulate_grad_batches={batches * factor}; or choose {other}."
    )


def early_end(settings: TrainSettings, *, step: int, total_steps: int, needed: float, available: float) -> str | None:
    """Return a warning if trainer.max_time ends the run before its learning rate has decayed.

    Args:
        step: Optimizer steps done.
        total_steps: Optimizer steps of the whole run.
        needed: Seconds for the remaining steps.
        available: Remaining seconds.
    """
    if settings.scheduler.name == "constant" or needed <= available:
        return None
    last = step + int((total_steps - step) * max(available, 0.0) / needed)
    return (
        f"trainer.max_time={settings.trainer.max_time} ends the run at about step {last:,} of {total_steps:,}, before its "
        f"learning rate has decayed. trainer.max_steps={_round_down(max(last, 1))} from the start lets the schedule end in time."
    )


def _long_validation(context: CheckContext, times: Mapping[str, float]) -> str | None:
    plan, settings, data = context.plan, context.settings, context.data
    if times["validation"] < max(WORTH_A_WARNING, times["steps"]):
        return None
    affordable = GOOD_SHARE * len(data.val) * times["steps"] / times["validation"]
    windows = _round_down(min(len(data.val), max(affordable, MIN_GOOD_WINDOWS, settings.doubts.min_val_windows)))
    every = settings.checkpoint.every_n_steps
    fewer = (
        f" A longer checkpoint.every_n_steps ({every} now) validates less often." if plan.validations > plan.epoch_ends else ""
    )
    return (
        f"Validation takes longer than the training: {plan.validations:,} times {plan.val_batches:,} batches, in all about "
        f"{_ratio(times['validation'], times['steps'])} times as long as the steps. data.val_tokens="
        f"{windows * data.context_length} validates on {windows:,} of the {len(data.val):,} windows.{fewer}"
    )


def _long_evaluations(context: CheckContext, times: Mapping[str, float]) -> str | None:
    plan, settings = context.plan, context.settings
    if times["evaluations"] < max(WORTH_A_WARNING, times["steps"]):
        return None
    factor = times["evaluations"] / times["steps"]
    return (
        f"The evaluations every eval_freq={settings.eval_freq} steps take about {_ratio(times['evaluations'], times['steps'])} "
        f"times as long as the training: {plan.evaluation_batches:,} batches each. "
        f"eval_freq={math.ceil(settings.eval_freq * factor / GOOD_SHARE)} or a smaller eval_iter ({settings.eval_iter} now) "
        "takes less."
    )


def _long_held_out(context: CheckContext, times: Mapping[str, float]) -> str | None:
    plan, settings = context.plan, context.settings.evaluation
    if times.get(HELD_OUT, 0.0) < max(WORTH_A_WARNING, times["steps"]):
        return None
    remedies = [
        *(["evaluation.max_bytes"] if settings.texts else []),
        *(["evaluation.task_limit"] if settings.tasks is not None else []),
    ]
    longer = _ratio(times[HELD_OUT], times["steps"])
    return (
        f"Evaluating {HELD_OUT} {plan.held_out_evaluations:,} times takes about {longer} times as "
        f"long as the training. Set {' and '.join(remedies)}, or a larger evaluation.every_n_steps."
    )


def _ratio(a: float, b: float) -> str:
    return f"{a / b:,.0f}" if a >= 9.5 * b else f"{a / b:.1f}"


def _round_down(value: float) -> int:
    """Round down to two significant digits."""
    power = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return int(value // power * power)
