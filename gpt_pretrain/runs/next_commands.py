"""How numbers are told, and the commands that go on from a run. Light: nothing here loads torch."""

from __future__ import annotations

import shlex


def generate_command(folder: str, *, start_context: str) -> str:
    """The command that generates from a run."""
    return (
        f"python generate.py checkpoint={shlex.quote(folder)} prompt={shlex.quote(start_context)} "
        "sampler.temperature=0.7 sampler.top_k=25"
    )


def tensorboard_command(folder: str) -> str:
    """The command that shows the curves of a folder's runs in a browser."""
    return f"tensorboard --logdir {shlex.quote(folder)}"


def resume_command(folder: str, *, limit: tuple[str, int] | None = None) -> str:
    """The command that goes on with a run.

    Args:
        limit: the setting of `trainer` that ended a complete run, and its value, of which the command asks for twice as much.
    """
    more = "" if limit is None else f" trainer.{limit[0]}={2 * limit[1]}"
    return f"python train.py resume={shlex.quote(folder)}{more}"


def sweep_resume_command(folder: str, *, script: str = "train.py") -> str:
    """The command that goes on with the jobs of a sweep that did not come to their end."""
    return f"python {script} sweep_resume={shlex.quote(folder)}"
