"""The way from the command line to the training."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT, TINY_RUN


def test_four_functions_lead_from_the_command_line_to_the_trainer(
    script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    file = tmp_path / "stack.json"
    recorder = f"+callbacks.custom.stack={{_target_: tests.helpers.stack_recorder.StackRecorder, file: '{file}'}}"
    done = script("train.py", *TINY_RUN, "trainer.max_steps=1", recorder)
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text()) == ["<module>", "main", "train", "fit"]


def test_one_file_builds_the_trainers_of_runs_and_dry_runs() -> None:
    files = [
        file for file in (ROOT / "gpt_pretrain").rglob("*.py") if re.search(r"\bTrainer\(", file.read_text(encoding="utf-8"))
    ]
    assert files == [ROOT / "gpt_pretrain" / "training" / "trainer.py"]
