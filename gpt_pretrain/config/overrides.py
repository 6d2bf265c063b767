"""What becomes of the words of a command line before Hydra reads them."""

from __future__ import annotations

import re
from decimal import Decimal

from gpt_pretrain.config.schema import escape_interpolation

AMOUNT = re.compile(r"(?<![\w.])\d+(\.\d+)?[eE]\+?\d+(?![\w.])")  # 1e9


MOST_DIGITS = 18


AMOUNTS = ("_tokens", "_steps", "_bytes")  # what settings that are one end in


def expand_amounts(word: str) -> str:
    """A word whose amounts of tokens, steps or bytes, where they are written as 1e9, are written out, as Hydra wants them."""
    key, equals, value = word.partition("=")
    if not override_key(word).endswith(AMOUNTS):
        return word

    def digits(match: re.Match[str]) -> str:
        number = Decimal(match[0])
        return str(int(number)) if number.adjusted() < MOST_DIGITS and number == int(number) else match[0]

    return key + equals + AMOUNT.sub(digits, value)


def quote_value(text: str) -> str:
    """A text as one string of Hydra's override grammar."""
    text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), escape_interpolation(text))
    return f"'{text}'"


def split_override(override: str) -> tuple[str, str]:
    """The setting or group that a word names, and what it is given."""
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def override_key(override: str) -> str:
    """The setting or group that a word names."""
    return split_override(override)[0]
