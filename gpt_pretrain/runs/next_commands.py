"""The commands that are suggested to the user after a run or a sweep."""

from __future__ import annotations

import shlex


def generate_command(folder: str, *, start_context: str) -> str:
    """Return the command that generates text with a run's model."""
    return (
        f"python generate.py checkpoint={shlex.quote(folder)} prompt={shlex.quote(start_context)} "
        "sampler.temperature=0.7 sampler.top_k=25"
    )


def tensorboard_command(folder: str) -> str:
    """Return the command that shows the metrics of a folder's runs in TensorBoard."""
    return f"tensorboard --logdir {shlex.quote(folder)}"


def resume_command(folder: str, *, limit: tuple[str, int] | None = None) -> str:
    """Return the command that resumes a run.

    Args:
        limit: The setting of `trainer` that ended a finished run, and its value. The command doubles it.
    """
    more = "" if limit is None else f" trainer.{limit[0]}={2 * limit[1]}"
    return f"python train.py resume={shlex.quote(folder)}{more}"


def sweep_resume_command(folder: str, *, script: str = "train.py") -> str:
    """Return the command that runs the unfinished jobs of a sweep."""
    return f"python {script} sweep_resume={shlex.quote(folder)}"
