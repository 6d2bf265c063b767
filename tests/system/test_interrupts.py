"""Ctrl-C while modules load, and in a dry run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from gpt_pretrain.config.schema import TrainerSettings
from gpt_pretrain.training.planning import measurements
from tests.conftest import ROOT

INTERRUPTED_IMPORT = """
import sys, time
from gpt_pretrain.system.interrupts import handle_interrupts
handle_interrupts()
try:
    import interrupted
    while True:
        time.sleep(1)
except KeyboardInterrupt:
    sys.exit(sys.modules["interrupted"].complete)
"""


def test_ctrl_c_waits_for_the_end_of_an_import(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\ncomplete = 5\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], env=os.environ | {"PYTHONPATH": path}, timeout=60)
    assert done.returncode == 5


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text("import signal\n" + "signal.raise_signal(signal.SIGINT)\n" * 2 + "complete = 5\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], env=os.environ | {"PYTHONPATH": path}, timeout=60)
    assert done.returncode == -signal.SIGINT


def test_a_long_wait_for_an_import_is_explained(tmp_path: Path) -> None:
    slow = "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(0.5)\ncomplete = 5\n"
    (tmp_path / "interrupted.py").write_text(f"from gpt_pretrain.system import interrupts\ninterrupts.PATIENCE = 2\n{slow}")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-c", INTERRUPTED_IMPORT]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("Press Ctrl-C again to end at once.")) == (5, 1)


def test_ctrl_c_ends_a_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        interrupted = True

        def fit(self, *_args: object, **_kwargs: object) -> None:
            raise SystemExit(1)  # as Lightning does

    monkeypatch.setattr(measurements, "build_trainer", lambda *_args, **_kwargs: Interrupted())
    setup = mock.MagicMock()
    setup.settings.trainer = TrainerSettings()
    with pytest.raises(KeyboardInterrupt):
        measurements.measure_run(setup, mock.MagicMock(), checkpoint_bytes=1)
