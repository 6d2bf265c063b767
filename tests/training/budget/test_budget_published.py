import dataclasses
import math

import pytest

from gpt_pretrain.model.costs import matmul_parameters
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.amount import Budget
from gpt_pretrain.training.budget.published import published_choice
from gpt_pretrain.training.budget.speed import Speed
from tests.helpers.budgets import LIMITS, SPEED, conditions

GPU = choice.Limits(seconds=3600.0, memory=70 << 30, disk=1 << 40, device="cuda", precision="bf16-mixed")


FAST = Speed((1e7, 1e9), (1e14, 2e14))


def test_published_rules_choose_for_budgets_far_beyond_the_study():
    found = published_choice(conditions(20_000_000_000, Budget(seconds=3600.0), GPU, FAST))
    assert found is not None and found.config.n_layers >= 8
    parameters = matmul_parameters(found.config)
    assert 12 * parameters <= found.steps * found.step_tokens < 40 * parameters
    assert found.seconds <= 3600.0
    assert found.step_tokens == found.batch * found.accumulate * 1024
    assert 2**17 <= found.step_tokens <= 2**20
    assert found.lr_factor == pytest.approx(math.sqrt(found.step_tokens / 2**19))


@pytest.mark.parametrize(
    ("n_bytes", "budget", "limits", "speed"),
    [
        (20_000_000_000, Budget(seconds=7200.0), dataclasses.replace(LIMITS, seconds=7200.0), SPEED),
        (5_000_000, Budget(seconds=3600.0), GPU, FAST),
        (20_000_000_000, Budget(), dataclasses.replace(GPU, seconds=math.inf), FAST),
        (20_000_000_000, Budget(seconds=3600.0), dataclasses.replace(GPU, memory=100 << 20), FAST),
        (20_000_000_000, Budget(seconds=3600.0), dataclasses.replace(GPU, seconds=-1.0), FAST),
    ],
    ids=["slow", "little text", "auto", "little memory", "no time"],
)
def test_published_rules_are_not_for_less(n_bytes, budget, limits, speed):
    assert published_choice(conditions(n_bytes, budget, limits, speed)) is None
