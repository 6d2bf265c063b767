"""Check the schedule of the learning rate before a run starts or resumes."""

from __future__ import annotations

from gpt_pretrain.config.custom_parts import CUSTOM
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.training.optimization.optimizer import first_rate, scaled_rates
from gpt_pretrain.training.optimization.schedule import FINAL_DECAY, decay_length, lr_at
from gpt_pretrain.training.planning.check_context import CheckContext

NOTABLE = 1.01  # A smaller change of the learning rate on resuming is not mentioned.
JUMP = 1.1  # A larger rise is a warning,
LOW_SHARE = 0.11  # unless the rate stays below this share of the highest one: a tenth is advised after a decay to 0.
HARDLY = 0.5  # A decay to more than this share of the highest rate has little effect.
MIN_DECAY_SHARE = 0.02  # share of all steps; 0.1 to 0.2 is usual. Source: Hägele et al. 2024, arXiv:2405.18392.
LONG_RUN = 10_000  # optimizer steps; a longer run without a decay is worth a note


def resumed_rates(context: CheckContext) -> tuple[float, float] | None:
    """Return the next step's learning rate by the checkpoint's schedule, and by the current settings; None in a new run."""
    settings, start = context.settings, context.start
    if start.next_lr is None or {"optimizer", "scheduler"} & settings.custom.keys():
        return None  # there is no formula for the user's own rates
    lr = settings.optimizer.lr
    now = lr_at(start.step, lr=lr, settings=settings.scheduler, total_steps=context.plan.total_steps)
    return start.next_lr, now / lr * first_rate(settings.optimizer) * start.lr_scale


def describe_resumed_rate(context: CheckContext) -> str | None:
    """Return a line on the change of the learning rate when a run resumes; None without a notable change."""
    rates = resumed_rates(context)
    if rates is None or max(rates) <= NOTABLE * min(rates):
        return None
    before, now = rates
    return f"lr      {now:.3g} at step {context.start.step:,}, where the schedule of the checkpoint has {before:.3g}"


def learning_rate_jumps(context: CheckContext) -> str | None:
    """Check that a changed schedule does not raise the learning rate when the run resumes. A new optimizer.lr may raise it."""
    rates, settings, start = resumed_rates(context), context.settings, context.start
    if rates is None or start.peak_lr is None:
        return None
    before, now = rates
    small = JUMP * before * max(1.0, first_rate(settings.optimizer) / start.peak_lr)
    if now <= max(small, LOW_SHARE * start.peak_lr * start.lr_scale):
        return None
    reason = f"scheduler={settings.scheduler.name} now ends at step {context.plan.total_steps - 1:,}"
    if settings.scheduler.name == "constant":
        reason = "scheduler=constant has no decay"
    low = (before or now / 10) / start.lr_scale
    return (
        f"The learning rate rises from {before:.3g} to {now:.3g} when the run resumes at step {start.step:,}, since {reason}. "
        f"scheduler=constant {scaled_rates(settings.optimizer, low / first_rate(settings.optimizer))} keeps it low."
    )


def schedule_too_long(context: CheckContext) -> str | None:
    """Check that the warm-up and the final decay leave some steps between them."""
    settings, schedule, steps = context.settings, context.settings.scheduler, context.plan.total_steps
    if schedule.warmup_steps >= steps:
        return (
            f"scheduler.warmup_steps={schedule.warmup_steps} is too long for a run of {format_count(steps, 'step')}: the "
            f"learning rate never reaches optimizer.lr={settings.optimizer.lr:g}. Try scheduler.warmup_steps={steps // 20}."
        )
    if schedule.name in FINAL_DECAY and schedule.warmup_steps + decay_length(schedule, total_steps=steps) >= steps:
        return (
            f"{_decay_setting(context)} and scheduler.warmup_steps={schedule.warmup_steps} take up all of the "
            f"run's {format_count(steps, 'step')}, so it has no constant phase. Try {_usual_decay(context)}."
        )
    return None


def unused_schedule_settings(context: CheckContext) -> str | None:
    """Check that the chosen schedule uses the settings that are given."""
    schedule = context.settings.scheduler
    unused: list[tuple[str, float | None]] = []
    if schedule.name not in FINAL_DECAY:
        unused += [("scheduler.decay_steps", schedule.decay_steps), ("scheduler.decay_fraction", schedule.decay_fraction)]
    unused += [("scheduler.min_lr", schedule.min_lr)] if schedule.name == "constant" else []
    ignored = [f"{name}={value:g}" for name, value in unused if value]
    if not ignored:
        return None
    verb = "has" if len(ignored) == 1 else "have"
    return (
        f"{' and '.join(ignored)} {verb} no effect with scheduler={schedule.name}. scheduler=warmup_stable_decay uses "
        f"{'it' if len(ignored) == 1 else 'both'}."
    )


def learning_rate_never_decays(context: CheckContext) -> str | None:
    """Check that a schedule's decay has an effect, and that a long run has a decay."""
    settings, schedule, steps = context.settings, context.settings.scheduler, context.plan.total_steps
    lr = settings.optimizer.lr
    if schedule.name == CUSTOM:
        return None
    if schedule.name == "constant":
        # A schedule is planned for all steps, but max_time may end the run before any of them.
        if steps < LONG_RUN or context.start.step > 0 or settings.trainer.max_time is not None:
            return None
        return (
            f"optimizer.lr={lr:g} stays the same for all {steps:,} steps. In so long a run a decay lowers the final loss: "
            f"scheduler=warmup_cosine scheduler.min_lr={lr / 10:.2g}."
        )
    if schedule.min_lr > HARDLY * lr:
        extent = "never decays" if schedule.min_lr == lr else "hardly decays"
        return (
            f"The learning rate {extent}: it goes from optimizer.lr={lr:g} to scheduler.min_lr={schedule.min_lr:g}. A tenth is "
            f"usual: scheduler.min_lr={lr / 10:.2g}."
        )
    length = decay_length(schedule, total_steps=steps)
    if schedule.name in FINAL_DECAY and length < MIN_DECAY_SHARE * steps:
        extent = f"decays only in the last {length:,}" if length else "never decays in a run"
        return (
            f"{_decay_setting(context)}: the learning rate {extent} of {format_count(steps, 'step')}. A fifth "
            f"of the run is usual: {_usual_decay(context)}."
        )
    return None


def _decay_setting(context: CheckContext) -> str:
    """Return the override that sets the current length of the final decay."""
    schedule = context.settings.scheduler
    if schedule.decay_fraction is not None:
        return f"scheduler.decay_fraction={schedule.decay_fraction:g}"
    return f"scheduler.decay_steps={schedule.decay_steps}"


def _usual_decay(context: CheckContext) -> str:
    """Return the same override with the usual length."""
    if context.settings.scheduler.decay_fraction is not None:
        return "scheduler.decay_fraction=0.2"
    return f"scheduler.decay_steps={context.plan.total_steps // 5}"
