"""Journals of a search that would take Optuna far longer than their size explains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.sweeps import journal_check
from gpt_pretrain.sweeps.folder import STUDY
from gpt_pretrain.sweeps.journal import open_journal

BEGIN = {"op_code": 0, "study_name": "s", "directions": [1]}
TRIAL = {"op_code": 4, "study_id": 0, "datetime_start": "2026-01-01T00:00:00"}
END = {"op_code": 6, "trial_id": 0, "state": 1, "values": [1.0], "datetime_complete": "2026-01-01T00:00:00"}
RANGE = json.dumps({"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 1.0, "step": None, "log": False}})
OTHER_RANGE = json.dumps({"name": "IntDistribution", "attributes": {"low": 0, "high": 1, "step": 1, "log": False}})


def reported(step: Any, *, trial: int = 0) -> dict[str, Any]:
    return {"op_code": 7, "trial_id": trial, "step": step, "intermediate_value": 1.0}


def drawn(name: str, *, trial: int = 0, distribution: str = RANGE) -> dict[str, Any]:
    return {"op_code": 5, "trial_id": trial, "param_name": name, "param_value_internal": 0.5, "distribution": distribution}


def of_study(number: int) -> dict[str, Any]:
    return {"op_code": 2, "study_id": 0, "trial_id": 99, "user_attr": {str(number): 1}}


def replay(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / STUDY).write_text("".join(json.dumps({"worker_id": "x"} | line) + "\n" for line in lines))
    with open_journal(folder) as storage:
        storage.get_all_studies()


@pytest.mark.parametrize(
    "costly",
    [
        [TRIAL, *map(reported, range(60))],
        [TRIAL, *({"op_code": 8, "trial_id": 0, "user_attr": {str(number): 1}} for number in range(60))],
        [*map(of_study, range(60))],
        [TRIAL] * 20 + [drawn(str(number)) for number in range(10)],
        [*[TRIAL] * 20, drawn("a", trial=19), *[drawn("a", distribution=OTHER_RANGE)] * 10],
        [*[TRIAL] * 20, END, drawn("a"), *[drawn("a", trial=19)] * 10],
        [*[TRIAL] * 10, *[TRIAL | {"state": 4}] * 10],
        [*[TRIAL] * 20, *(END | {"trial_id": number, "state": 4} for number in range(10))],
    ],
    ids=[
        *("values of steps", "attributes of a trial", "attributes of the study", "parameters", "another range", "an ended trial"),
        *("waiting trials", "trials that wait again"),
    ],
)
def test_a_journal_that_costs_the_square_of_its_lines_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, costly: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(journal_check, "MAX_COST", 1500)
    replay(tmp_path, [BEGIN, TRIAL, drawn("b"), *map(reported, range(40)), END, *[TRIAL] * 20])
    with pytest.raises(UserError, match="far longer than a file of its size"):
        replay(tmp_path, [BEGIN, *costly])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([BEGIN, BEGIN | {"study_name": "t"}], "several studies"),
        ([BEGIN, {"op_code": 1, "study_id": 0}], "no search of this program writes"),
        ([BEGIN, {"op_code": 10, "study_id": 0, "discarded_trial_ids": []}], "no search of this program writes"),
        ([TRIAL], "does not begin with a study"),
        ([BEGIN, TRIAL | {"study_id": 1}], "no search of this program writes"),
        ([BEGIN, TRIAL, reported(2**61 - 1)], "not a number of a step"),
        ([BEGIN, TRIAL, reported("1")], "not a number of a step"),
        ([BEGIN, TRIAL | {"intermediate_values": {str(number): 1 for number in range(2000)}}], "begins with more than"),
        ([BEGIN, TRIAL | {"user_attrs": {"a": "x" * 2_000_000}}], "a line has more than"),
    ],
)
def test_lines_that_no_search_writes_are_damage(tmp_path: Path, lines: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replay(tmp_path, lines)


def test_two_workers_may_begin_one_study(tmp_path: Path) -> None:
    replay(tmp_path, [BEGIN, BEGIN, TRIAL, TRIAL, reported(0, trial=1)])
