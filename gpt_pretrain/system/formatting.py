"""Format numbers, amounts and durations for people."""

from __future__ import annotations

import math
from typing import TypeGuard

from gpt_pretrain.system.urls import hide_secrets

MAX_MESSAGE = 4000  # characters
MAX_NUMBER = 1e300  # larger integers cannot be converted to float
PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def format_si(number: float, unit: str) -> str:
    """Format a number with two or three digits and a decimal prefix: 1.2e13 FLOP is "12 TFLOP"."""
    prefix = 0
    while number >= 999.5 and prefix < len(PREFIXES) - 1:
        number, prefix = number / 1000, prefix + 1
    return f"{number:.{1 if number < 9.95 and prefix else 0}f} {PREFIXES[prefix]}{unit}"


def format_short(number: float, noun: str) -> str:
    """Format a number of things with two or three digits: 1.8e6 is "1.8M parameters", and 2e9 is "2.0B tokens"."""
    digits, _, prefix = format_si(number, "").partition(" ")
    return f"{digits}{'B' if prefix == 'G' else prefix} {noun}"


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days} d {hours_left} h"
    return (f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s") if hours or minutes else f"{seconds:.1f} s"


def format_seconds(seconds: float) -> str:
    """Format a short duration in milliseconds or seconds, with three digits."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def format_perplexity(loss: float) -> str:
    """Format the perplexity of a loss in nats per token."""
    return f"{math.exp(loss):,.1f}" if loss < 50 else "beyond e^50"


def format_count(number: int, noun: str) -> str:
    """Format a number of things, such as "1 step" or "2,000 steps"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def format_rounded(value: float, digits: int = 2) -> str:
    """Format a number with a few significant digits, a large one without an exponent, such as "0.048" or "1,800"."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if rounded >= 10**digits else f"{rounded:g}"


def shorten_middle(text: str, limit: int) -> str:
    """Replace the middle of a text by its number of characters if the text is longer than about `limit` characters."""
    if len(text) <= limit:
        return text
    before, after = limit * 2 // 3, limit // 3
    mark = f" ... ({len(text) - before - after:,} more characters) ... "
    return f"{text[:before]}{mark}{text[-after:]}" if len(mark) < len(text) - before - after else text


def short_message(text: str) -> str:
    """Return an error message without secrets, and without its middle if it quotes far too much of a file."""
    # Secrets are removed before the text is cut, since cutting could divide one. But the search for secrets takes long in a very
    # long text, so such a text is first cut to a moderate length.
    return shorten_middle(hide_secrets(shorten_middle(text, 20 * MAX_MESSAGE)), MAX_MESSAGE)


def format_number(value: object, spec: str) -> str:
    """Format a finite number. A whole number has no fraction. Any other value becomes "-"."""
    if not is_finite_number(value):
        return "-"
    return format(int(value) if spec.endswith("d") else value, spec)


def is_finite_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value read from a file is a finite number."""
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < MAX_NUMBER  # False for NaN
