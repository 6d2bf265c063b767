"""How numbers and places are told, and the commands that go on from a run. Light: nothing here loads torch."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import TypeGuard


def place(path: Path) -> str:
    """A path as short as it can be typed from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def perplexity(loss: float) -> str:
    """e to a loss in nats."""
    return f"{math.exp(loss):,.1f}" if loss < 50 else "beyond e^50"


def count(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def number(value: object, form: str) -> str:
    """A finite number in that format; "-" for anything else."""
    return format(value, form) if is_number(value) else "-"


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether something read from a file is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def size(number_of_bytes: object) -> str:
    """A size in the largest decimal unit that keeps it above 1; "-" for what is no finite number."""
    if not is_number(number_of_bytes):
        return "-"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number_of_bytes >= factor:
            return f"{number_of_bytes / factor:.3g} {unit}"
    return count(round(number_of_bytes), "byte")


def duration(seconds: float) -> str:
    """A length of time, to the second where it is longer than a minute."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s") if hours or minutes else f"{seconds:.1f} s"


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
