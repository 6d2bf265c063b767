import math
from types import SimpleNamespace

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.training.budget.pace import Pace
from gpt_pretrain.training.callbacks.budget import KeepBudget, RecentLoad, slowness


def run_with_clock(
    seconds: float,
    step_seconds,
    *,
    planned: int,
    longest: int | None = None,
    epoch_steps: int = 10**9,
    end: float = 0.0,
    validated: float = 0.0,
    cores=None,
) -> tuple[int, float]:
    """Let the callback end a run whose steps take step_seconds(step), and return its steps and seconds.

    Args:
        end: Seconds of the end of an epoch.
        validated: Steps' worth of tokens that are validated there.
        cores: Share of a processor that the process gets, by the time.
    """
    clock = SimpleNamespace(time=0.0, work=0.0)
    pace = Pace(planned)
    keep = KeepBudget(
        pace,
        seconds=seconds,
        began=0.0,
        longest=longest,
        validated=validated,
        now=lambda: clock.time,
        used=lambda: (clock.work, clock.time - clock.work) if cores else (clock.time, 0.0),
    )
    trainer = SimpleNamespace(global_step=0, should_stop=False, is_last_batch=False)
    module = SimpleNamespace(ends_step=lambda batch_idx: True)
    clock.time = 5.0  # the start of the program
    keep.on_train_start(trainer, module)
    while not trainer.should_stop:
        keep.on_train_batch_start(trainer, module, None, 0)
        clock.time += (taken := step_seconds(trainer.global_step))
        clock.work += taken * (cores(clock.time) if cores else 1.0)
        trainer.global_step += 1
        trainer.is_last_batch = trainer.global_step % epoch_steps == 0
        keep.on_train_batch_end(trainer, module, None, None, 0)
        if trainer.is_last_batch and not trainer.should_stop:
            clock.time += end
            clock.work += end * (cores(clock.time) if cores else 1.0)
    return trainer.global_step, clock.time, pace.progress(trainer.global_step)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_run_ends_in_time_with_a_finished_schedule_whatever_was_planned(factor):
    _steps, spent, progress = run_with_clock(120.0, lambda step: 0.05, planned=int(factor * 2200))
    assert 0.93 * 120 < spent <= 120
    assert progress > 0.97


def test_a_short_text_does_not_fill_a_long_time():
    steps, spent, progress = run_with_clock(1200.0, lambda step: 0.05, planned=300, longest=300)
    assert (steps, progress) == (300, 1.0)
    assert spent < 30
    steps, _, _ = run_with_clock(120.0, lambda step: 0.01, planned=2000, longest=5000)  # the machine is faster than it seemed
    assert steps == 5000


def test_a_resumed_run_knows_where_its_text_ends():
    first = KeepBudget(Pace(100), seconds=120.0, began=0.0, longest=130, now=lambda: 1.0)
    second = KeepBudget(Pace(1), seconds=120.0, began=0.0)
    second.load_state_dict(first.state_dict())
    assert second.longest == 130
    state = first.state_dict()
    del state["longest"]  # as in checkpoints of earlier versions
    third = KeepBudget(Pace(1), seconds=120.0, began=0.0)
    third.load_state_dict(state)
    assert third.longest is None


@pytest.mark.parametrize("change", [0.5, 3.0])
def test_a_machine_that_changes_its_speed_is_followed(change):
    _, spent, progress = run_with_clock(300.0, lambda step: 0.05 * (change if step > 2000 else 1.0), planned=5500)
    assert 0.93 * 300 < spent <= 300
    assert progress > 0.9


def test_the_ends_of_epochs_count():
    _, spent, progress = run_with_clock(200.0, lambda step: 0.05, planned=3800, epoch_steps=100, end=2.0)
    assert 0.9 * 200 < spent <= 200 - 2.0
    assert progress > 0.95


def test_a_resumed_run_goes_on_with_what_is_left():
    clock = SimpleNamespace(time=70.0)
    first = KeepBudget(Pace(100), seconds=120.0, began=0.0, now=lambda: clock.time)
    state = first.state_dict()
    second = KeepBudget(Pace(1), seconds=120.0, began=1000.0, now=lambda: 1010.0)
    second.load_state_dict(state)
    assert second.elapsed() == 80.0
    assert second.pace.last_step == 100


@pytest.mark.parametrize(
    "state", [{}, {"points": [[0, 0.0, 5]]}, {"points": [[0, 0.0, 5]], "spent": -1.0}, {"points": 3, "spent": 1.0}], ids=range(4)
)
def test_a_damaged_plan_is_refused(state):
    with pytest.raises(UserError, match="plan of the budget"):
        KeepBudget(Pace(1), seconds=1.0, began=0.0).load_state_dict(state)


def test_a_first_validation_at_the_end_of_the_run_is_kept_time_for():
    _, spent, progress = run_with_clock(200.0, lambda step: 0.05, planned=3800, validated=500)
    assert 200 - 2.0 * 500 * 0.05 < spent < 200 - 0.3 * 500 * 0.05
    assert progress > 0.95


def test_more_time_is_kept_for_the_end_if_the_machine_became_busy_late():
    step_seconds = lambda step: 0.05 if step < 1500 else 0.25  # noqa: E731
    _, spent, _ = run_with_clock(200.0, step_seconds, planned=3800, cores=lambda moment: 1.0 if moment < 80.0 else 0.2)
    assert 200 - 20 < spent <= 200 - 4 * 1.0


def test_a_busy_machine_costs_little_of_the_time():
    _, spent, progress = run_with_clock(60.0, lambda step: 0.25, planned=200, cores=lambda _: 0.2)
    assert 60 - 6.5 < spent <= 60 - 5 * 1.0  # the end's work takes five times as long
    assert progress > 0.9


def test_the_worst_load_of_half_a_minute_counts():
    load, ran, waited = RecentLoad(), 0.0, 0.0
    for second, share in enumerate([1.0] * 8 + [0.2] * 4 + [1.0] * 60):
        ran, waited = ran + share, waited + 1.0 - share
        load.watch(float(second), (ran, waited))
        if second < 8:
            assert load.slowness == 1.0
        elif 13 <= second < 40:
            assert load.slowness > 2.0
    assert load.slowness == 1.0


def test_a_thread_that_sleeps_is_not_slow_and_one_that_waits_for_a_core_is():
    assert slowness((1.0, 1.0), (2.0, 1.0)) == 1.0
    assert slowness((1.0, 1.0), (2.0, 4.0)) == 4.0
    assert slowness((1.0, 1.0), (1.0, 1.0)) == 1.0
    assert slowness((1.0, 1.0), (1.001, 9.0)) == 12.0


def test_a_burst_that_passed_before_the_end_is_kept_time_for():
    shares = lambda moment: 0.2 if moment % 25.0 < 8.0 else 1.0  # noqa: E731
    _, spent, progress = run_with_clock(60.0, lambda step: 0.1, planned=400, epoch_steps=50, end=0.5, cores=shares)
    assert 60 - 15 < spent <= 60 - 4 * (1.0 + 0.4)
    assert progress > 0.9


def test_a_run_that_no_longer_improves_decays_and_ends():
    def validate(keep, losses, *, per_epoch=100):
        for number, loss in enumerate(losses, start=1):
            trainer = SimpleNamespace(global_step=number * per_epoch, sanity_checking=False)
            keep.on_validation_end(trainer, SimpleNamespace(val_loss=loss))

    keep = KeepBudget(Pace(5000), seconds=math.inf, began=0.0, while_useful=True)
    validate(keep, [5.0, 4.0, 3.999, 4.1])
    assert keep.pace.last_step == 5000
    again = KeepBudget(Pace(1), seconds=math.inf, began=0.0, while_useful=True)
    again.load_state_dict(keep.state_dict())
    again.on_validation_end(SimpleNamespace(global_step=500, sanity_checking=False), SimpleNamespace(val_loss=4.0))
    assert again.pace.last_step == 550
    assert again.pace.progress(500) == pytest.approx(0.1)
    assert again.pace.progress(550) == 1.0
    timed = KeepBudget(Pace(5000), seconds=60.0, began=0.0)
    validate(timed, [4.0, 4.0, 4.0, 4.0, 4.0])
    assert timed.pace.last_step == 5000


def test_a_start_that_takes_the_whole_time_is_said(caplog):
    steps, _, progress = run_with_clock(5.5, lambda step: 0.2, planned=400)
    assert steps == 1 and progress < 0.1
    assert "The time ended at 0% of the schedule" in caplog.text and "5.0 s had passed before the first step" in caplog.text
    caplog.clear()
    run_with_clock(120.0, lambda step: 0.05, planned=2200)
    assert not caplog.text
