"""A resumed run says how the learning rate moves, with each schedule and each optimizer."""

from types import SimpleNamespace
from typing import Any

import pytest

from gpt_pretrain.config.schema import OptimizerSettings, RoleSettings, SchedulerSettings
from gpt_pretrain.training.optimization.schedule import lr_at
from gpt_pretrain.training.planning.schedule_checks import describe_resumed_rate, learning_rate_jumps

DECAYING = ("warmup_cosine", "warmup_linear", "warmup_stable_decay", "warmup_stable_sqrt")


def resumed(schedule: str, *, then: int, now: int, matrices: float | None = None) -> Any:
    """Return the context of a run of 10 steps, with the schedule for `then` steps, that is resumed with one for `now` steps."""
    roles = RoleSettings(lr=matrices)
    optimizer = OptimizerSettings(
        name="muon", lr=0.02, weight_decay=0.0, betas=[0.8, 0.95], eps=1e-10, decay="roles", matrices=roles
    )
    settings = SchedulerSettings(name=schedule, warmup_steps=2, decay_steps=0, decay_fraction=0.5, min_lr=0.0)
    peak = 0.02 if matrices is None else matrices
    factor = lr_at(10, lr=0.02, settings=settings, total_steps=then) / 0.02
    return SimpleNamespace(
        settings=SimpleNamespace(optimizer=optimizer, scheduler=settings, custom={}),
        plan=SimpleNamespace(total_steps=now),
        start=SimpleNamespace(step=10, next_lr=peak * factor, peak_lr=peak, lr_scale=1.0),
    )


@pytest.mark.parametrize("schedule", DECAYING)
@pytest.mark.parametrize("matrices", [None, 0.05])
def test_a_later_end_is_reported_with_both_rates(schedule: str, matrices: float | None) -> None:
    context = resumed(schedule, then=12, now=24, matrices=matrices)
    line, warning = describe_resumed_rate(context), learning_rate_jumps(context)
    assert line is not None and line.startswith("lr      ") and " at step 10, where the schedule of the checkpoint has " in line
    assert warning is not None and f"scheduler={schedule} now ends at step 23" in warning


@pytest.mark.parametrize("matrices", [None, 0.05])
def test_the_advised_rates_keep_each_role_where_the_schedule_left_it(matrices: float | None) -> None:
    context = resumed("warmup_linear", then=12, now=24, matrices=matrices)
    context.settings.optimizer.embedding.lr, context.settings.optimizer.head.lr = 0.3, 0.01
    factor = context.start.next_lr / context.start.peak_lr
    assert 0 < factor < 0.5
    words = (learning_rate_jumps(context) or "").split()
    advised = {name: float(value) for name, _, value in (word.partition("=") for word in words if word.startswith("optimizer."))}
    expected = {"optimizer.lr": 0.02, "optimizer.embedding.lr": 0.3, "optimizer.head.lr": 0.01}
    expected |= {} if matrices is None else {"optimizer.matrices.lr": matrices}
    assert advised == pytest.approx({name: factor * rate for name, rate in expected.items()}, rel=5e-3)


@pytest.mark.parametrize("schedule", DECAYING)
def test_who_follows_the_advice_after_a_decay_to_zero_is_not_warned_again(schedule: str) -> None:
    context = resumed(schedule, then=10, now=200)
    assert context.start.next_lr == 0.0
    words = (learning_rate_jumps(context) or "").split()
    context.settings.scheduler.name = "constant"
    context.settings.optimizer.lr = next(float(word.partition("=")[2]) for word in words if word.startswith("optimizer.lr="))
    assert learning_rate_jumps(context) is None
    context.settings.optimizer.lr = 0.02
    assert learning_rate_jumps(context) is not None


@pytest.mark.parametrize("schedule", ["constant", *DECAYING])
@pytest.mark.parametrize("matrices", [None, 0.05])
def test_the_same_end_changes_nothing(schedule: str, matrices: float | None) -> None:
    context = resumed(schedule, then=24, now=24, matrices=matrices)
    assert describe_resumed_rate(context) is None and learning_rate_jumps(context) is None


@pytest.mark.parametrize("schedule", DECAYING)
def test_an_earlier_end_is_reported_and_no_rise(schedule: str) -> None:
    context = resumed(schedule, then=40, now=14)
    assert describe_resumed_rate(context) is not None and learning_rate_jumps(context) is None
