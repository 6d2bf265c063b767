"""Turn a regular expression into a graph: its characters, each with the characters that may follow it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from gpt_pretrain.tokenizers.patterns.syntax import (
    Alternatives,
    CharacterClass,
    Condition,
    Node,
    Repetition,
    Sequence,
    UnknownSyntaxError,
)

MAX_CHARACTERS, MAX_LINKS = 2000, 200_000  # limits of a graph
# Parts of a pattern, each counted once for each time that it is repeated. Parts that match a position add no characters.
MAX_PARTS = 20_000
MAX_COPIES = 8  # Repetitions that are written out in a graph. More count as any number.
MAX_WAYS = 500  # ways in which a text may match before it fails
MANY_WAYS = "a text may match it in too many ways"


@dataclass
class PatternPart:
    """A part of a pattern as a part of the graph.

    Args:
        first: The characters that it may begin with, each with the number of ways.
        last: The characters that it may end with.
        surely_last: The characters in `last` after which the rest of the part always matches.
        n_empty: The number of ways in which it may match nothing.
        is_surely_empty: Whether it can always match nothing.
    """

    first: Counter[int] = field(default_factory=Counter)
    last: set[int] = field(default_factory=set)
    surely_last: set[int] = field(default_factory=set)
    n_empty: int = 0
    is_surely_empty: bool = False


class PatternGraph:
    """The graph of a pattern, after Glushkov.

    Attributes:
        classes: The class of each character of the pattern.
        following: For each character, the characters that may follow it, each with the number of ways.
        whole: The pattern.
    """

    def __init__(self) -> None:
        self.classes: list[CharacterClass] = []
        self.following: list[Counter[int]] = []
        self.whole = PatternPart()
        self._n_links = self._n_parts = 0

    def add(self, node: Node) -> PatternPart:
        """Add a part of the pattern, without connecting it to the parts before and after it."""
        self._n_parts += 1
        if self._n_parts > MAX_PARTS:
            raise UnknownSyntaxError(f"it has more than {MAX_PARTS:,} parts, repeated ones included")
        if isinstance(node, CharacterClass):
            return self._add_character(node)
        if isinstance(node, Sequence):
            return self._chain(self.add(part) for part in node.parts)
        if isinstance(node, Alternatives):
            return self._join([self.add(part) for part in node.parts])
        if isinstance(node, Condition):
            return self._add_condition(node)
        return self._add_repetition(node)

    def _add_character(self, character: CharacterClass) -> PatternPart:
        number = len(self.classes)
        if number == MAX_CHARACTERS:
            raise UnknownSyntaxError(f"it has more than {MAX_CHARACTERS:,} characters, repeated ones included")
        self.classes.append(character)
        self.following.append(Counter())
        return PatternPart(Counter({number: 1}), {number}, {number})

    def _add_condition(self, node: Condition) -> PatternPart:
        if node.part is None:
            return PatternPart(n_empty=1)
        # The condition's part is tried first, and then the rest of the pattern. No match ends within the part.
        before = len(self.classes)
        inner = self.add(node.part)
        if node.is_before:
            if any(self.following[number] for number in range(before, len(self.classes)) if self._is_repeated(number)):
                raise UnknownSyntaxError("what stands before a character has repetitions in it")
            return PatternPart(n_empty=1)
        return PatternPart(inner.first, n_empty=1)

    def _is_repeated(self, number: int) -> bool:
        return any(other <= number for other in self.following[number])

    def _add_repetition(self, node: Repetition) -> PatternPart:
        least, most = node.lowest, node.highest
        if most is not None and most <= MAX_COPIES:
            part = PatternPart(n_empty=1, is_surely_empty=True)
            for number in range(most, 0, -1):  # a{2,4} is aa(a(a)?)?
                part = self._chain([self.add(node.part), part])
                if number > least:
                    part.n_empty, part.is_surely_empty = part.n_empty + 1, True
            return part
        copies = [self.add(node.part) for _ in range(least - 1 if least <= MAX_COPIES else 0)]
        repeated = self.add(node.part)
        # A round that matches nothing is another way to reach the next one.
        self._link(repeated.last, _times(repeated.first, 1 + (repeated.n_empty > 0)))
        if least == 0:
            repeated.n_empty, repeated.is_surely_empty = repeated.n_empty + 1, True
        # If many rounds are required, a match can only end with the last one.
        return self._chain([*copies, repeated, *([self.add(node.part)] if least > MAX_COPIES else [])])

    def _link(self, last: Iterable[int], first: Counter[int]) -> None:
        for number in last:
            self._n_links += len(first)
            if self._n_links > MAX_LINKS:
                raise UnknownSyntaxError(MANY_WAYS)
            self.following[number].update(first)

    def _chain(self, parts: Iterable[PatternPart]) -> PatternPart:
        whole = PatternPart(n_empty=1, is_surely_empty=True)
        for part in parts:
            self._link(whole.last, part.first)
            whole = PatternPart(
                whole.first + _times(part.first, whole.n_empty),
                part.last | (whole.last if part.n_empty else set()),
                part.surely_last | (whole.surely_last if part.is_surely_empty else set()),
                min(whole.n_empty * part.n_empty, MAX_WAYS + 1),
                whole.is_surely_empty and part.is_surely_empty,
            )
        return whole

    def _join(self, parts: list[PatternPart]) -> PatternPart:
        whole = PatternPart()
        for part in parts:
            whole.first.update(part.first)
            whole.last |= part.last
            whole.surely_last |= part.surely_last
            whole.n_empty = min(whole.n_empty + part.n_empty, MAX_WAYS + 1)
            whole.is_surely_empty |= part.is_surely_empty
        return whole


def _times(ways: Counter[int], factor: int) -> Counter[int]:
    return Counter({number: min(count * factor, MAX_WAYS + 1) for number, count in ways.items() if factor})


def build_graph(node: Node) -> PatternGraph:
    """Return the graph of a parsed pattern.

    Raises:
        UnknownSyntaxError: If it would be too large.
    """
    graph = PatternGraph()
    graph.whole = graph.add(node)
    return graph
