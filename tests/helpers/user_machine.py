"""Runs on machines as users have them: lines of Python before a script stand for the machine."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from gpt_pretrain.runs.metadata import read_metadata
from tests.conftest import TINY_RUN

Run = Callable[..., subprocess.CompletedProcess[str]]  # an entry script, and how it ended

SHORT = [*TINY_RUN, "trainer.max_epochs=1", "callbacks=minimal", "logger=csv", "data.cache_dir=cache"]
PRELUDE = """
import errno, io, os, runpy, sys
{before}
script = sys.argv[1]
sys.argv = sys.argv[1:]
sys.orig_argv = ["python", *sys.argv]
runpy.run_path(script, run_name="__main__")
"""
REFUSE = """
def refuse(*args, **kwargs):
    raise OSError(errno.{code}, os.strerror(errno.{code}))
{target} = refuse
"""


def assert_trained(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    """Check that a training has ended well and left all its files."""
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    assert read_metadata(folder)["state"] == "finished"
