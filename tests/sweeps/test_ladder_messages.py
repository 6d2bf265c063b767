"""Check what a ladder refuses: a machine without room, a budget that is spent, and a file with values that no ladder has."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.sweeps.ladder import plan_rungs
from gpt_pretrain.sweeps.ladder_choice import choose_rest
from gpt_pretrain.sweeps.ladder_file import read_ladder
from tests.sweeps.test_ladder import LIMITS, SPEED, TEXT, RungResult, result_of

FULL = dataclasses.replace(LIMITS, memory=1 << 20)


def results() -> list[RungResult]:
    found = [(rung, result_of(rung)) for rung in plan_rungs(TEXT, SPEED, LIMITS, seconds=7200)]
    return [RungResult(rung, one["best_bits_per_byte"], one["tokens_seen"], one["tokens_per_second"]) for rung, one in found]


def test_a_machine_without_room_is_named() -> None:
    with pytest.raises(UserError, match=r"The smallest model does not fit into the free memory or disk space of this machine\."):
        plan_rungs(TEXT, SPEED, FULL, seconds=7200)
    with pytest.raises(UserError, match=r"No model fits into the free memory and disk space of this machine\."):
        choose_rest(results(), TEXT, FULL)


def test_a_budget_that_is_spent_is_named() -> None:
    with pytest.raises(UserError, match=r"Only 1\.0 s of the budget are left, too little for a training\. The result of this"):
        choose_rest(results(), TEXT, dataclasses.replace(LIMITS, seconds=1.0))


RUNG = {"width": 64, "layers": 2, "vocab_size": 512, "lr_factor": 1.0, "seconds": 60.0}
PREDICTION = {"parameters": 1000, "expected": 2.0, "low": 1.9, "high": 2.1}


def choice(**changes: Any) -> dict[str, Any]:
    return {"best": RUNG, "sizes": [PREDICTION], "rungs": [PREDICTION], "is_extrapolated": False} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": []}, "it has no list of short trainings"),
        ({"rungs": None}, "it has no list of short trainings"),
        ({"rungs": [RUNG | {"width": 65}]}, "it has a model that no ladder trains"),
        ({"rungs": [RUNG | {"lr_factor": 1e9}]}, "it has a learning rate that no ladder tries"),
        ({"rungs": [{"width": 64}]}, "its entry 'layers' is missing"),
        ({"seconds": "long"}, "a time in it is invalid"),
        ({"choice": choice(sizes=3)}, "its predictions are not a short list"),
        ({"choice": choice(sizes=[PREDICTION | {"parameters": 0}])}, "a number of parameters in it is invalid"),
        ({"choice": choice(sizes=[PREDICTION | {"low": "2"}])}, "a prediction in it is invalid"),
        ({"choice": 3}, "an entry has the wrong type"),
    ],
    ids=range(10),
)
def test_a_damaged_ladder_is_described_in_plain_words(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    content = {"rungs": [RUNG], "seconds": 7200.0, "planning": 1.0, "choice": None} | changes
    (tmp_path / "ladder.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_ladder(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'ladder.json'} is damaged ({message}). Start a new ladder."
