"""AdamW's parameter groups and updates, and the learning-rate schedules."""

from dataclasses import replace

import pytest
import torch

from gpt_pretrain.config.custom_parts import CUSTOM
from gpt_pretrain.config.schema import OptimizerSettings, SchedulerSettings
from gpt_pretrain.training.optimization.optimizer import build_optimizer, lowered_rates, scaled_rates
from gpt_pretrain.training.optimization.schedule import lr_at
from tests.conftest import tiny_model


def settings(decay: str = "matrices") -> OptimizerSettings:
    return OptimizerSettings(name="adamw", lr=4e-4, weight_decay=0.1, betas=[0.9, 0.999], eps=1e-8, decay=decay)


def test_weight_decay_acts_on_matrices_only() -> None:
    model = tiny_model()
    decayed, spared = build_optimizer(model, settings()).param_groups
    assert {id(p) for p in decayed["params"]} == {id(p) for p in model.parameters() if p.ndim == 2}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_weight_decay_can_act_on_all_parameters() -> None:
    model = tiny_model()
    (group,) = build_optimizer(model, settings(decay="all")).param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    assert group["weight_decay"] == 0.1


def test_optimizer_steps_equal_those_of_plain_adamw() -> None:
    ours, theirs = tiny_model(), tiny_model()
    mine = build_optimizer(ours, settings(decay="all"))
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=4e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False, fused=False
    )
    token_ids = torch.randint(0, 97, (2, 16))
    for _ in range(3):
        for model, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            model(token_ids).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_rate_is_scaled_exactly_and_lowered_to_a_usual_one() -> None:
    high = replace(settings(), lr=0.04)
    assert scaled_rates(high, 0.75) == "optimizer.lr=0.03"
    assert lowered_rates(high, 0.75) == "optimizer.lr=0.02"
    assert lowered_rates(high, 0.25) == "optimizer.lr=0.01"
    assert lowered_rates(replace(high, name=CUSTOM), 0.75) == "optimizer.lr=0.03", "SGD's usual rates are higher"


COSINE = SchedulerSettings(name="warmup_cosine", warmup_steps=4, decay_steps=0, min_lr=0.1)
STABLE = SchedulerSettings(name="warmup_stable_decay", warmup_steps=4, decay_steps=5, min_lr=0.2)
SQRT = SchedulerSettings(name="warmup_stable_sqrt", warmup_steps=0, decay_steps=4, min_lr=0.0)
LINEAR = SchedulerSettings(name="warmup_linear", warmup_steps=4, decay_steps=0, min_lr=0.0)
FRACTION = SchedulerSettings(name="warmup_stable_decay", warmup_steps=0, decay_steps=3, min_lr=0.0, decay_fraction=0.5)
WHOLE = SchedulerSettings(name="warmup_stable_decay", warmup_steps=0, decay_steps=3, min_lr=0.0, decay_fraction=1.0)
NEVER = SchedulerSettings(name="warmup_stable_decay", warmup_steps=0, decay_steps=3, min_lr=0.0, decay_fraction=0.0)
CONSTANT = SchedulerSettings(name="constant", warmup_steps=0, decay_steps=0, min_lr=0.0)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (CONSTANT, 0, 1.0),
        (CONSTANT, 10**9, 1.0),
        (COSINE, 0, 0.2),
        (COSINE, 3, 0.8),
        (COSINE, 4, 1.0),
        (COSINE, 12, 0.55),  # halfway from 4 to 20
        (COSINE, 20, 0.1),
        (COSINE, 21, 0.1),
        (COSINE, 10**6, 0.1),
        (STABLE, 0, 0.2),
        (STABLE, 4, 1.0),
        (STABLE, 15, 1.0),
        (STABLE, 16, 0.84),
        (STABLE, 20, 0.2),
        (STABLE, 99, 0.2),
        (SQRT, 0, 1.0),
        (SQRT, 16, 1.0),
        (SQRT, 17, 0.5),  # a quarter of the decay
        (SQRT, 20, 0.0),
        (SQRT, 21, 0.0),
        (LINEAR, 0, 0.2),
        (LINEAR, 4, 1.0),
        (LINEAR, 12, 0.5),  # halfway from 4 to 20
        (LINEAR, 20, 0.0),
        (LINEAR, 21, 0.0),
        (FRACTION, 10, 1.0),  # half of 21 steps is rounded to 10
        (FRACTION, 11, 0.9),
        (FRACTION, 15, 0.5),
        (FRACTION, 20, 0.0),
        (WHOLE, 0, 20 / 21),  # one step of a decay that begins a step before the run
        (WHOLE, 20, 0.0),
        (NEVER, 19, 1.0),
        (NEVER, 20, 0.0),  # as decay_steps=0
    ],
)
def test_schedules_at_their_boundary_steps(schedule: SchedulerSettings, step: int, expected: float) -> None:
    assert lr_at(step, lr=1.0, settings=schedule, total_steps=21) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [COSINE, STABLE, replace(LINEAR, min_lr=0.1), replace(SQRT, min_lr=0.1)])
@pytest.mark.parametrize("total_steps", [1, 4, 5, 6])
def test_schedules_work_in_runs_shorter_than_their_warm_up(schedule: SchedulerSettings, total_steps: int) -> None:
    for step in range(8):
        assert 0 < lr_at(step, lr=1.0, settings=schedule, total_steps=total_steps) <= 1.0
