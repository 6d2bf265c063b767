import itertools
import math

import pytest

from gpt_pretrain.config.schema import SchedulerSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.training.budget.pace import Pace, read_points
from gpt_pretrain.training.optimization.schedule import lr_at
from gpt_pretrain.training.start.remaining import stored_pace


def test_the_rate_has_no_jump_where_the_plan_changes():
    settings = SchedulerSettings(name="warmup_stable_decay", warmup_steps=0, decay_steps=0, decay_fraction=0.75, min_lr=0.0)
    pace = Pace(100)

    def rate(step: int) -> float:
        return lr_at(pace.scheduled_step(step), lr=1.0, settings=settings, total_steps=pace.total)

    before = [rate(step) for step in range(60)]
    pace.replan(60, 240)
    after = [rate(step) for step in range(60, 240)]
    assert [rate(step) for step in range(60)] == before
    assert 0 < before[-1] - after[0] < 0.02
    assert all(first >= second for first, second in itertools.pairwise(after))
    assert after[-1] < 0.01
    assert pace.last_step == 240


def test_a_plan_without_changes_is_the_usual_schedule():
    assert [Pace(50).scheduled_step(step) for step in range(50)] == pytest.approx(list(range(50)))


def test_stored_plans_are_restored_and_others_refused():
    pace = Pace(100)
    pace.replan(10, 80)
    pace.replan(40, 45)
    stored = [list(point) for point in pace.points]
    points = read_points(stored)
    assert points == pace.points
    restored = Pace(points[0][2], points)
    assert [restored.progress(step) for step in range(46)] == [pace.progress(step) for step in range(46)]
    for wrong in (
        None,
        [],
        "abc",
        [[0, 0.0]],
        [[0, 0.0, 0]],
        [[0, 0.5, 10]],
        [[0, 0.0, 10], [5, math.nan, 9]],
        [[0, 0.0, 10**15]],
    ):
        assert read_points(wrong) is None
    assert read_points([[0, 0.0, 10], [5, 0.5, 9], [3, 0.6, 9]]) is None
    assert read_points([[0, 0.0, 10]] * 2000) is None


def stored(**state) -> dict:
    return {
        "config": {"budget": state.pop("budget", "20m")},
        "callbacks": {"KeepBudget": {"points": [[0, 0.0, 50]], "spent": 60.0, "ended": False} | state},
    }


def test_a_resumed_run_may_get_another_time():
    assert stored_pace("20m", stored()).last_step == 50
    assert stored_pace("40m", stored()).last_step == 50
    assert stored_pace("auto", stored(budget="auto")).last_step == 50


@pytest.mark.parametrize(
    ("typed", "content", "message"),
    [
        ("50s", stored(), "has spent 1 min 0 s already"),
        ("1e6 tokens", stored(), "only a budget of time can be changed"),
        ("2e6 tokens", stored(budget="1e6 tokens"), "only a budget of time can be changed"),
        ("20m", stored(spent=None), "is damaged"),
        ("20m", stored(spent=math.nan), "is damaged"),
        ("20m", {"config": {}, "callbacks": {}}, "must be set when a run starts"),
    ],
    ids=range(6),
)
def test_a_budget_that_a_resumed_run_cannot_have_is_refused(typed, content, message):
    with pytest.raises(UserError, match=message):
        stored_pace(typed, content)
