"""Read a budget: a time, a number of tokens, of floating-point operations, or as much as helps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.formatting import format_duration, format_si
from gpt_pretrain.system.reading import short_repr

AUTO = "auto"
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
FORM = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:e\+?[0-9]{1,2})?) ?(s|m|min|h|d|tokens?|flops?)", re.IGNORECASE)
LONGEST = 365 * 86400  # seconds
MOST = {"tokens": 1e15, "flops": 1e30}
FORMS = "a time such as 90s, 20m or 8h, '1e9 tokens', '1e15 flops', or auto"


@dataclass(frozen=True)
class Budget:
    """The most that a run may spend; everything is infinite if it is to train as long as that helps.

    Args:
        seconds: Of the whole run, from the start of the program to its end.
        tokens: To train on.
        flops: Floating-point operations of the training.
    """

    seconds: float = math.inf
    tokens: float = math.inf
    flops: float = math.inf

    def __str__(self) -> str:
        if self.seconds < math.inf:
            return format_duration(self.seconds)
        if self.tokens < math.inf:
            return format_si(self.tokens, "tokens")
        return format_si(self.flops, "FLOP") if self.flops < math.inf else "as long as it helps"


def parse_budget(text: str) -> Budget:
    """Return the budget of a setting.

    Raises:
        UserError: If the text is none.
    """
    if text == AUTO:
        return Budget()
    if (found := FORM.fullmatch(text.strip())) is None:
        raise UserError(f"budget={short_repr(text)}: must be {FORMS}.")
    number, unit = float(found[1]), found[2].lower()
    if unit in SECONDS:
        if not 0 < (seconds := number * SECONDS[unit]) <= LONGEST:
            raise UserError(f"budget={short_repr(text)}: a time must be above 0 and at most 365d.")
        return Budget(seconds=seconds)
    name = "tokens" if unit.startswith("token") else "flops"
    if not 1 <= number <= MOST[name]:
        raise UserError(f"budget={short_repr(text)}: must be between 1 and {MOST[name]:g} {name}.")
    return Budget(**{name: number})
