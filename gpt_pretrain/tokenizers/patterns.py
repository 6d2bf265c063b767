"""Check regular expressions that somebody else wrote, before any text is split by them.

The tokenizers library matches with Oniguruma, which gives up a match after ten million steps (0.2 s). A pattern that comes near
this at each character of a text would keep the program busy for days, so patterns that can backtrack so much are refused. The
patterns of the known models pass: they repeat classes of characters, and no groups.
"""

from __future__ import annotations

import re

from gpt_pretrain.system.reading import DamagedFileError, short_repr

MAX_PATTERN = 10_000  # Characters. The longest known one has about 1,000.
MAX_UNBOUNDED, MAX_OPTIONS = 4, 8  # Repetitions in a row, and optional parts; the known patterns have two.
FEW_TIMES = 3
QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d*)(,?)(\d*)\})[?+]?")
ESCAPE = re.compile(r"\\(?:[pP]\{[^}]*\}|[xuo]\{[^}]*\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[^0-9kgKXRNOCMc])", re.DOTALL)
GROUP = re.compile(r"\((?:\?(?:[imxa-]*:|[=!>]|<[=!]|[imxa-]+\)))?")


def check_pattern(pattern: str) -> None:
    """Check that a regular expression cannot backtrack far.

    Raises:
        DamagedFileError: If it may: a repeated group holds a repetition or alternatives, many repetitions follow each other, or
            there are back references or calls.
    """
    problem = _find_problem(pattern) if len(pattern) <= MAX_PATTERN else f"it has more than {MAX_PATTERN:,} characters"
    if problem is not None:
        raise DamagedFileError(f"its regular expression {short_repr(pattern)} is not used, since {problem}")


def _find_problem(pattern: str) -> str | None:
    """Return what may take too long in a pattern, or None."""
    groups = [_Group()]
    position = 0
    while position < len(pattern):
        char, closed = pattern[position], None
        if char == "|":
            groups[-1].alternate()
            position += 1
            continue
        if char == "(":
            match = GROUP.match(pattern, position)
            if match is None or pattern.startswith(("(?", "(*"), position) > (len(match.group()) > 1):
                return f"{pattern[position : position + 3]} in it may take unlimited time"
            position = match.end()
            if not match.group().endswith(")"):
                groups.append(_Group())
            continue
        if char == "\\":
            if (match := ESCAPE.match(pattern, position)) is None:
                return f"{pattern[position : position + 2]} in it may take unlimited time"
            position = match.end()
        elif char == ")":
            if len(groups) == 1:
                return "its brackets do not match"
            closed, position = groups.pop(), position + 1
            groups[-1].add(closed)
        else:
            position = _class_end(pattern, position) if char == "[" else position + 1
        if (quantifier := QUANTIFIER.match(pattern, position)) is not None:
            position = quantifier.end()
            if _is_many(quantifier) and closed is not None and closed.is_ambiguous:
                return "a repeated group in it holds repetitions or alternatives"
            groups[-1].repeat(quantifier)
        if groups[-1].is_ambiguous > 1:
            return "too many repetitions follow each other in it"
    return None if len(groups) == 1 else "its brackets do not match"


class _Group:
    """The repetitions in a group: in its present alternative, and the most in any of them."""

    def __init__(self) -> None:
        self._alternatives = False
        self._now, self._most = [0, 0], [0, 0]  # unbounded repetitions, and parts that are optional or repeated a few times

    @property
    def is_ambiguous(self) -> int:
        """0 if the group matches a text in a single way, 2 if it may do so in too many."""
        unbounded, bounded = self._counts()
        if unbounded > MAX_UNBOUNDED or bounded > MAX_OPTIONS:
            return 2
        return int(self._alternatives or unbounded + bounded > 0)

    def repeat(self, quantifier: re.Match[str]) -> None:
        """Note that the last part is repeated."""
        if quantifier.group()[0] == "{" and (not quantifier.group(2) or quantifier.group(1) == quantifier.group(3)):
            return
        self._now[0 if _is_many(quantifier) else 1] += 1

    def add(self, inner: _Group) -> None:
        """Note that the last part is a group."""
        unbounded, bounded = inner._counts()
        self._now = [self._now[0] + unbounded, self._now[1] + bounded]

    def alternate(self) -> None:
        """Begin another alternative."""
        self._most, self._now, self._alternatives = list(self._counts()), [0, 0], True

    def _counts(self) -> tuple[int, int]:
        return max(self._now[0], self._most[0]), max(self._now[1], self._most[1])


def _is_many(quantifier: re.Match[str]) -> bool:
    """Return whether a quantifier allows more than a few repetitions."""
    text = quantifier.group()
    if text[0] != "{":
        return text[0] != "?"
    lowest, comma, highest = quantifier.groups()
    most = highest if comma else lowest
    return not most or len(most) > 6 or int(most) > FEW_TIMES


def _class_end(pattern: str, start: int) -> int:
    """Return the position after a class of characters, which may hold others."""
    depth, position = 0, start
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "\\":
            position += 1
        elif char == "[":
            depth += 1
            position += pattern.startswith("^", position)
            position += pattern.startswith("]", position)  # the first one is a character
        elif char == "]":
            depth -= 1
            if depth == 0:
                return position
    return len(pattern)
