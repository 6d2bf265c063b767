"""The way from the command line to the training."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, TINY_RUN


def test_four_functions_lead_from_the_command_line_to_the_trainer(tmp_path: Path, cache_dir: Path) -> None:
    file = tmp_path / "stack.json"
    recorder = f"+callbacks.custom.stack={{_target_: tests.helpers.stack_recorder.StackRecorder, file: '{file}'}}"
    command = [sys.executable, str(ROOT / "train.py"), *TINY_RUN, "trainer.max_steps=1", f"data.cache_dir={cache_dir}", recorder]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text()) == ["<module>", "main", "train", "fit"]


def test_one_file_builds_the_trainers_of_runs_and_dry_runs() -> None:
    files = [
        file for file in (ROOT / "gpt_pretrain").rglob("*.py") if re.search(r"\bTrainer\(", file.read_text(encoding="utf-8"))
    ]
    assert files == [ROOT / "gpt_pretrain" / "training" / "trainer.py"]
