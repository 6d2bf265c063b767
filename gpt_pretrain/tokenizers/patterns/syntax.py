"""Parse the regular expressions of Oniguruma, as far as the patterns of known tokenizers need it.

Source: https://github.com/kkos/oniguruma/blob/master/doc/RE, with Ruby's syntax, which the tokenizers library uses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_PATTERN = 10_000  # characters; the longest known pattern has about 1,000
MAX_GROUPS = 50  # groups, or repetitions, inside of one another
QUANTIFIER = re.compile(r"([*+?])([?+]?)|\{(?=[\d,]*\d)(\d*)(,?)(\d*)\}")
MAX_DIGITS = 6  # digits of a number in a quantifier
ESCAPE = re.compile(r"\\(?:[pP]\{[^}]*\}|[xo]\{[^}]*\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{1,2}|[^0-9kgKXRNOCMcxou])", re.DOTALL)
GROUP = re.compile(r"\((?:\?(?:[im]*(?:-[im]+)?:|[=!>]|<[=!]|[im]*(?:-[im]+)?\)))?")
ASSERTIONS = frozenset("bBAzZGyY")  # escapes that match a position, not a character
ANY = "."


class UnknownSyntaxError(ValueError):
    """The time that a regular expression takes cannot be estimated. The message names the part that is the reason."""


@dataclass(frozen=True)
class CharacterClass:
    """Matches one character.

    Args:
        text: The class as it is written, such as "[a-z]", "\\s" or "a".
        ignores_case: Whether upper and lower case are the same.
    """

    text: str
    ignores_case: bool


@dataclass(frozen=True)
class Sequence:
    """Matches its parts one after another."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alternatives:
    """Matches one of its parts. They are tried in order."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repetition:
    """Matches its part several times. Greedy, lazy and possessive repetitions are not distinguished.

    Args:
        highest: The largest number of times; None allows any number.
    """

    part: Node
    lowest: int
    highest: int | None


@dataclass(frozen=True)
class Condition:
    """Matches a position by the text before or after it.

    Args:
        part: The pattern that must, or must not, match there. None stands for a condition without a pattern, such as a line end.
        is_before: Whether the text before the position is matched.
    """

    part: Node | None = None
    is_before: bool = False


Node = CharacterClass | Sequence | Alternatives | Repetition | Condition


def parse_pattern(pattern: str) -> Node:
    """Parse a regular expression.

    Raises:
        UnknownSyntaxError: If it is not valid, or has back references, calls, comments or other rare parts.
    """
    if len(pattern) > MAX_PATTERN:
        raise UnknownSyntaxError(f"it has more than {MAX_PATTERN:,} characters")
    parser = _Parser(pattern)
    node = parser.alternatives(ignores_case=False, depth=0)
    if parser.position < len(pattern):
        raise UnknownSyntaxError("its brackets do not match")
    return node


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.position = 0

    def alternatives(self, *, ignores_case: bool, depth: int) -> Node:
        if depth > MAX_GROUPS:
            raise UnknownSyntaxError(f"it has more than {MAX_GROUPS} groups inside of one another")
        parts = [self._sequence(ignores_case, depth)]
        while self._pattern.startswith("|", self.position):
            self.position += 1
            parts.append(self._sequence(ignores_case, depth))
        return parts[0] if len(parts) == 1 else Alternatives(tuple(parts))

    def _sequence(self, ignores_case: bool, depth: int) -> Node:
        parts = list[Node]()
        while self.position < len(self._pattern) and self._pattern[self.position] not in "|)":
            parts.append(self._repeated(self._part(ignores_case, depth)))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _part(self, ignores_case: bool, depth: int) -> Node:
        start, char = self.position, self._pattern[self.position]
        if char == "(":
            return self._group(ignores_case, depth)
        if char == "\\":
            if (match := ESCAPE.match(self._pattern, start)) is None:
                raise UnknownSyntaxError(f"{self._pattern[start : start + 2]} in it may take unlimited time")
            self.position = match.end()
            if match.group()[1:] in ASSERTIONS:
                return Condition()
        else:
            self.position = _class_end(self._pattern, start) if char == "[" else start + 1
            if char in "^$":
                return Condition()
        return CharacterClass(self._pattern[start : self.position], ignores_case)

    def _group(self, ignores_case: bool, depth: int) -> Node:
        start = self.position
        match = GROUP.match(self._pattern, start)
        if match is None or (len(match.group()) == 1 and self._pattern.startswith(("(?", "(*"), start)):
            raise UnknownSyntaxError(f"{self._pattern[start : start + 3]} in it may take unlimited time")
        self.position = match.end()
        kind = match.group().strip("(?:)")
        on, _, off = kind.partition("-")
        ignores_case = ("i" in on or ignores_case) and "i" not in off
        inner = self.alternatives(ignores_case=ignores_case, depth=depth + 1)
        if match.group().endswith(")"):  # Flags apply to all that follows in the group around them, and group it.
            return inner
        if not self._pattern.startswith(")", self.position):
            raise UnknownSyntaxError("its brackets do not match")
        self.position += 1
        return Condition(inner, is_before=kind.startswith("<")) if kind.endswith(("=", "!")) else inner

    def _repeated(self, part: Node) -> Node:
        n_repetitions = 0
        while (match := QUANTIFIER.match(self._pattern, self.position)) is not None:
            if (n_repetitions := n_repetitions + 1) > MAX_GROUPS:
                raise UnknownSyntaxError(f"it repeats a part in more than {MAX_GROUPS} ways at once")
            self.position = match.end()
            sign, _, lowest, comma, highest = match.groups()
            if sign:
                part = Repetition(part, int(sign == "+"), 1 if sign == "?" else None)
                continue
            if max(len(lowest), len(highest)) > MAX_DIGITS:
                raise UnknownSyntaxError("it repeats a part millions of times")
            most = (int(highest) if highest else None) if comma else int(lowest)
            least = int(lowest or 0)
            part = Repetition(part, least if most is None else min(least, most), None if most is None else max(least, most))
        return part


def _class_end(pattern: str, start: int) -> int:
    """Return the position after a class of characters. Classes may be nested."""
    depth, position = 0, start
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "\\":
            position += 1
        elif char == "[":
            depth += 1
            position += pattern.startswith("^", position)
            position += pattern.startswith("]", position)  # A bracket at the beginning is an ordinary character.
        elif char == "]":
            depth -= 1
            if depth == 0:
                return position
    raise UnknownSyntaxError("its brackets do not match")
