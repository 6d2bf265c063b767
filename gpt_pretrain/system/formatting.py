"""Large numbers, bytes and seconds as people write them."""

from __future__ import annotations

import math
from typing import TypeGuard

PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def format_si(number: float, unit: str) -> str:
    """A number with two or three digits and a decimal prefix: 1.2e13 FLOP is "12 TFLOP"."""
    prefix = 0
    while number >= 999.5 and prefix < len(PREFIXES) - 1:
        number, prefix = number / 1000, prefix + 1
    return f"{number:.{1 if number < 9.95 and prefix else 0}f} {PREFIXES[prefix]}{unit}"


def format_duration(seconds: float) -> str:
    """A time in the two largest units that it has."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days} d {hours_left} h"
    return (f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s") if hours or minutes else f"{seconds:.1f} s"


def format_seconds(seconds: float) -> str:
    """A short time in milliseconds or seconds, to three digits."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


LARGEST = 1e300  # beyond it, whole numbers are no floats any more


def format_perplexity(loss: float) -> str:
    """e to a loss in nats."""
    return f"{math.exp(loss):,.1f}" if loss < 50 else "beyond e^50"


def format_count(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def format_number(value: object, form: str) -> str:
    """A finite number in that format; "-" for anything else."""
    return format(value, form) if is_finite_number(value) else "-"


def is_finite_number(value: object) -> TypeGuard[int | float]:
    """Whether something read from a file is a finite number."""
    return isinstance(value, int | float) and abs(value) < LARGEST  # false for NaN
