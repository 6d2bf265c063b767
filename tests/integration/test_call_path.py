"""The way from the command line to the training."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.conftest import TINY_RUN


def test_four_functions_lead_from_the_command_line_to_the_trainer(
    script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    file = tmp_path / "stack.json"
    recorder = f"+callbacks.custom.stack={{_target_: tests.helpers.stack_recorder.StackRecorder, file: '{file}'}}"
    done = script("train.py", *TINY_RUN, "trainer.max_steps=1", recorder)
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text()) == ["<module>", "main", "train", "fit"]
