"""Read durations and amounts in the usual notations: 90s, 1h30m, 1:30:00, 1e9, 100M, 50 GB."""

from __future__ import annotations

import re
from decimal import Decimal

MAX_LENGTH = 100  # characters of a duration or an amount
NUMBER = r"[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?(?:e\+?[0-9]{1,2})?"
UNITS = {
    0.001: "ms msec msecs millisecond milliseconds",
    1: "s sec secs second seconds",
    60: "m min mins minute minutes",
    3600: "h hr hrs hour hours",
    86400: "d day days",
    604800: "w week weeks",
}
SECONDS = {name: seconds for seconds, names in UNITS.items() for name in names.split()}
TERM = re.compile(rf"({NUMBER})\s*([a-z]+)[\s:]*", re.IGNORECASE)
CLOCK = re.compile(r"(?:([0-9]+)[:-])?([0-9]+):([0-9][0-9]):([0-9][0-9])")  # SLURM writes D-HH:MM:SS

SCALES = {1000: "k thousand", 10**6: "m mn million", 10**9: "b bn g billion", 10**12: "t tn trillion"}
COUNTS = {name: scale for scale, names in SCALES.items() for name in names.split()}
BINARY = {f"{prefix}i": 1024**power for power, prefix in enumerate("kmgtp", start=1)}
BYTES = {prefix: 1000**power for power, prefix in enumerate("kmgtp", start=1)}  # without b, which is the unit itself
PREFIXES = {"tokens": COUNTS | BINARY, "steps": COUNTS | BINARY, "bytes": BYTES | BINARY, "flops": COUNTS | {"p": 10**15}}
NOUNS = {"tokens": r"tok|tokens?", "steps": r"steps?", "bytes": r"b|bytes?", "flops": r"flops?"}


def _form(noun: str) -> re.Pattern[str]:
    prefixes = "|".join(sorted(PREFIXES[noun], key=len, reverse=True))
    return re.compile(rf"({NUMBER})\s*({prefixes})?\s*({NOUNS[noun]})?", re.IGNORECASE)


FORMS = {noun: _form(noun) for noun in NOUNS}


def parse_duration(text: str) -> float | None:
    """Return the seconds of a duration: numbers with units, the largest first, or HH:MM:SS with or without days before it.

    Returns:
        The seconds; infinity if there are too many; None if the text is not a duration, or has a number without a unit.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH:
        return None
    if (clock := CLOCK.fullmatch(text)) is not None:
        days, hours, minutes, seconds = (float(part or 0) for part in clock.groups())
        return 86400 * days + 3600 * hours + 60 * minutes + seconds
    total, last, position = 0.0, float("inf"), 0
    while position < len(text):
        term = TERM.match(text, position)
        size = SECONDS.get(term[2].lower()) if term is not None else None
        if term is None or size is None or size >= last:
            return None
        total, last, position = total + float(term[1]) * size, size, term.end()
    return total if text else None


def parse_amount(text: str, noun: str, *, needs_noun: bool = False) -> Decimal | None:
    """Return the exact number of an amount, such as 1e9, 100M, 1.5 billion tokens or 50 GiB; None if it is not one.

    Args:
        noun: "tokens", "steps", "bytes" or "flops". It may follow the number.
        needs_noun: Whether it must follow.
    """
    text = text.strip()
    form = FORMS[noun].fullmatch(text) if len(text) <= MAX_LENGTH else None
    if form is None or (needs_noun and form[3] is None):
        return None
    return Decimal(form[1]) * (1 if form[2] is None else PREFIXES[noun][form[2].lower()])


def is_quantity(text: str) -> bool:
    """Return whether a text is a duration or an amount of anything."""
    return parse_duration(text) is not None or any(parse_amount(text, noun) is not None for noun in NOUNS)
