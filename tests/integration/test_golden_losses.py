"""The losses of four tiny runs stay the same to the sixth digit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers import golden_losses
from tests.helpers.fork_server import ForkServer


@pytest.mark.parametrize("name", golden_losses.RUNS)
def test_the_first_losses_are_those_on_file(name: str, fork_server: ForkServer, tmp_path: Path) -> None:
    """With other vector instructions, fp32 rounds the losses differently by at most 3e-7 of their value; with Muon, by 2e-6."""
    expected = json.loads(golden_losses.FILE.read_text(encoding="utf-8"))[name]
    losses = golden_losses.measure(name, tmp_path, fork_server, dict(os.environ))
    assert len(losses) == golden_losses.STEPS
    assert losses == pytest.approx(expected, rel=1e-5 if "Muon" in name else 1e-6), (
        "run `python -m tests.helpers.golden_losses` if the change is meant"
    )
