"""The end of a resumed run says which figures cover the whole run and which cover its last part."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.training_runs import Printed, Train

DONE = re.compile(r"Done: .* ([\d,]+) tokens seen(?:, ([\d,]+) of them)? in ")


SEEN = re.compile(r"data: ([\d,]+) training tokens .* (?:each token is seen ([\d.]+) times|([\d.]+)% of them are seen)")


def _tokens(printed: Printed) -> list[str | None]:
    line = next(line for line in reversed(printed()) if line.startswith("Done: "))
    found = DONE.match(line)
    assert found is not None, line
    return list(found.groups())


def _seen(printed: Printed) -> re.Match[str]:
    return next(found for line in reversed(printed()) if (found := SEEN.search(line)))


def _training_tokens(printed: Printed) -> int:
    return int(_seen(printed).group(1).replace(",", ""))


def _passes(printed: Printed) -> float:
    times, percent = _seen(printed).groups()[1:]
    return float(times) if times else float(percent) / 100


def test_the_time_of_a_resumed_run_has_its_own_tokens(train: Train, tmp_path: Path, printed: Printed) -> None:
    quick = ["callbacks=minimal", "logger=none"]
    train("trainer.max_steps=2", *quick, run_dir=tmp_path / "run")
    ((first, part),) = [_tokens(printed)]
    assert first is not None and part is None
    train("trainer.max_steps=5", f"resume='{tmp_path / 'run'}'", base=[], run_dir=tmp_path / "run")
    total, new = (int(str(count).replace(",", "")) for count in _tokens(printed))
    assert _passes(printed) == pytest.approx(total / _training_tokens(printed), rel=0.06), "not those of the last part alone"
    assert 2 * new == 3 * int(first.replace(",", "")) and 2 * total == 5 * int(first.replace(",", ""))
