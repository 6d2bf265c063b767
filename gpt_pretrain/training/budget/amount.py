"""Read a budget: a time, a number of tokens or of floating-point operations, or auto."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.amounts import parse_amount, parse_duration
from gpt_pretrain.system.formatting import format_duration, format_short, format_si
from gpt_pretrain.system.shown_values import short_repr

AUTO = "auto"
MINUTES_OR_MILLIONS = re.compile(r"([0-9.]+) ?M")
LONGEST = 365 * 86400  # seconds
MOST = {"tokens": 1e15, "flops": 1e30}
FORMS = "a time such as 90s, 20m or 1h30m, '1e9 tokens', '1e15 flops', or auto"


@dataclass(frozen=True)
class Budget:
    """The most that a run may spend. All limits are infinite if the run trains for as long as training helps.

    Args:
        seconds: Time of the whole run, from the start of the program to its end.
        tokens: Tokens to train on.
        flops: Floating-point operations of the training.
    """

    seconds: float = math.inf
    tokens: float = math.inf
    flops: float = math.inf

    def __str__(self) -> str:
        if self.seconds < math.inf:
            return format_duration(self.seconds)
        if self.tokens < math.inf:
            return format_short(self.tokens, "tokens")
        return format_si(self.flops, "FLOP") if self.flops < math.inf else "as long as it helps"


def parse_budget(text: str) -> Budget:
    """Return the budget of a setting.

    Raises:
        UserError: If the text is not a budget.
    """
    typed, shown = text.strip(), f"budget={short_repr(text)}"
    if typed.lower() == AUTO:
        return Budget()
    for name, most in MOST.items():
        if (amount := parse_amount(typed, name, needs_noun=True)) is not None:
            if not 1 <= amount <= most:
                raise UserError(f"{shown}: must be between 1 and {most:g} {name}.")
            return Budget(**{name: float(amount)})
    if (number := MINUTES_OR_MILLIONS.fullmatch(typed)) is not None:
        raise UserError(f"{shown}: M may stand for minutes or millions. Type {number[1]}min, or '{number[1]}M tokens'.")
    if (seconds := parse_duration(typed)) is None:
        missing = "the unit is missing. It " if parse_amount(typed, "tokens") is not None else ""
        raise UserError(f"{shown}: {missing}must be {FORMS}.")
    if not 0 < seconds <= LONGEST:
        raise UserError(f"{shown}: a time must be above 0 and at most 365d.")
    return Budget(seconds=seconds)
