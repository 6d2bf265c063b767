"""Check regular expressions that somebody else wrote, before any text is split by them.

The tokenizers library matches with Oniguruma, which tries one way after another, and gives up a match after ten million steps
(0.2 s). A pattern that needs nearly as many steps at each character of a text would keep the program busy for days. So this
module counts the ways in which a pattern can match the same text, and refuses patterns with too many of them.

A pattern becomes a graph of its characters, each with the characters that may follow it. A match is a path through the graph.
Time is lost if several paths match the same text and then fail. Once a path has reached a character that may be the last of a
match, it cannot fail any more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.patterns.character_classes import class_masks
from gpt_pretrain.tokenizers.patterns.graph import MANY_WAYS, MAX_WAYS, PatternGraph, build_graph
from gpt_pretrain.tokenizers.patterns.syntax import CharacterClass, UnknownSyntaxError, parse_pattern

MAX_PAIRS = 500_000  # pairs of characters that are compared
MAX_STEPS = 500_000  # edges of the graph, each counted once for each kind of character that it matches
BLANK, LETTER = CharacterClass(" ", False), CharacterClass("e", False)

Cost = tuple[int, int]  # the power of the text's length with which the steps grow, and the number of ways
END: Cost = (0, 0)  # the cost of a character that may end a match
NESTED = "a repeated part of it may match the same text in several ways"
NEIGHBORS = "repetitions of the same characters follow each other in it"
WIDE = "it may search the whole text at each character"
# The last alternatives of nearly all known patterns. Together, they go through a run of white space at most four times. If one of
# them fails, the next one matches up to the last line end or the second to last character.
SPACES = re.compile(r"\|(?:\\s\+\+?(?:\$|\\z)\|)?(?:\\s\*\[(?:\\r|\r)(?:\\n|\n)\]\+?\|)?\\s\+\(\?!\\S\)\|\\s\+?\Z")
# Words in patterns like o200k's: capitals followed by small letters or, as a second alternative, capitals alone.
CLASS, SUFFIX = r"\[(?:[^][\\]|\\.|\[(?:[^][\\]|\\.)*\])+\]", r"(?:\(\?i:[a-z'|]+\)\?)?"
WORDS = re.compile(
    rf"(?<![^|])(?P<sign>(?:{CLASS}\?)?)(?P<upper>{CLASS})\*(?P<lower>{CLASS})\+{SUFFIX}"
    rf"\|(?P=sign)(?P=upper)\+(?P=lower)\*{SUFFIX}(?=\||\Z)"
)
# A run at the end of the text, as in SentencePiece's models. The characters before it keep each run from being tried again.
LAST_RUN = re.compile(r"(?<![^|])\(\?<!(?P<kind>\[[^][\\^-]+\])\)(?P=kind)\+\\z(?=\||\Z)")


@dataclass(frozen=True)
class PatternCost:
    """The most time that a regular expression takes.

    Args:
        loops: The number of loops for the same characters that may fail in the end, as in `a+b`. Such a loop may be tried from
            each character of a run, so its time may grow with the square of the run. Without one, the time is linear in the text.
        ways: The number of ways to match the same text that may be tried at each character.
    """

    loops: int
    ways: int


@lru_cache(maxsize=64)
def check_pattern(pattern: str) -> PatternCost:
    """Check that a regular expression cannot backtrack far, and return its cost.

    Raises:
        DamagedFileError: If it may backtrack further: a repeated part can match the same text in several ways, repetitions of the
            same characters follow each other, or there are back references or calls.
    """
    try:
        cost = _check_cost(build_graph(parse_pattern(pattern)))
    except UnknownSyntaxError as error:
        raise DamagedFileError(f"its regular expression {short_repr(pattern)} is not used, since {error}") from error
    others = WORDS.sub(r"\g<sign>\g<upper>+|\g<sign>\g<lower>+", SPACES.sub("", pattern))
    others = LAST_RUN.sub(r"\g<kind>\\z", others)
    if cost.loops and others != pattern:
        with suppress(UnknownSyntaxError):  # The rest may be half a group.
            return replace(cost, loops=_check_cost(build_graph(parse_pattern(others))).loops)
    return cost


@lru_cache(maxsize=64)
def matches_nothing(pattern: str) -> bool:
    """Return whether a regular expression may match an empty text. The answer is True if it cannot be parsed."""
    try:
        return build_graph(parse_pattern(pattern)).whole.n_empty > 0
    except UnknownSyntaxError:
        return True


def _check_cost(graph: PatternGraph) -> PatternCost:
    """Check all paths that begin at the start of a match, or at a character that may end it, and lead to the next such character.

    Returns:
        The number of loops on such paths that begin with the same character, and of the paths for the same text.

    Raises:
        UnknownSyntaxError: If there may be too many paths for the same text.
    """
    ends = graph.whole.surely_last
    masks = class_masks([*graph.classes, BLANK, LETTER])
    if sum(masks[number].bit_count() for ways in (graph.whole.first, *graph.following) for number in ways) > MAX_STEPS:
        raise UnknownSyntaxError(MANY_WAYS)
    costs: dict[int, Cost] = dict.fromkeys(ends, END)
    for group in _components(graph.following, ends):
        exponent, ways = _group_cost(set(group), graph.following, masks, costs)
        costs.update(dict.fromkeys(group, (exponent, ways)))
    n_loops = most = 0
    for start in (graph.whole.first, *(graph.following[number] for number in ends)):
        most = max(most, _sum_costs(start, masks, costs)[1])
        looping = Counter({number: count for number, count in start.items() if costs[number][0]})
        n_loops = max(n_loops, _sum_costs(looping, masks, costs)[1] if looping else 0)
    return PatternCost(n_loops, most)


def _group_cost(group: set[int], following: list[Counter[int]], masks: list[int], costs: dict[int, Cost]) -> Cost:
    """Return the cost of all paths from a group: a single character, or a loop of characters that lead to each other.

    Args:
        costs: The costs of the characters that may follow the group.

    Raises:
        UnknownSyntaxError: If the cost is too high.
    """
    is_loop = any(number in following[number] for number in group) or len(group) > 1
    if is_loop:
        _check_loop(group, following, masks)
    exponent, ways = int(is_loop), 1
    for number in group:
        inside, leaving = 0, Counter[int]()
        for other, count in following[number].items():
            if other in group:
                inside |= masks[other]
            else:
                leaving[other] = count
        found = _sum_costs(leaving, masks, costs)
        exponent, ways = max(exponent, found[0]), max(ways, found[1])
        # If a character after the loop also matches inside of it, the loop can be left in any round, and everything after it is
        # tried again each time. Characters that may end a match are an exception: nothing fails after them.
        again = [costs[other][0] for other in leaving if masks[other] & inside and costs[other] != END]
        exponent = max([exponent, *(1 + cost for cost in again)])
    if exponent > 1:
        raise UnknownSyntaxError(NEIGHBORS)
    return exponent, ways


def _sum_costs(following: Counter[int], masks: list[int], costs: dict[int, Cost]) -> Cost:
    """Return the cost of all ways to continue with the same next character. The character with the most ways counts.

    Raises:
        UnknownSyntaxError: If there are too many ways.
    """
    exponent, ways = 0, dict[int, int]()
    for number, count in following.items():
        exponent = max(exponent, costs[number][0])
        for bit in _bits(masks[number]):
            ways[bit] = ways.get(bit, 0) + count * max(costs[number][1], 1)
    most = max(ways.values(), default=1)
    if most > MAX_WAYS:
        raise UnknownSyntaxError(MANY_WAYS)
    return exponent, most


def _bits(mask: int) -> Iterator[int]:
    while mask:
        yield mask & -mask
        mask &= mask - 1


def _check_loop(loop: set[int], following: list[Counter[int]], masks: list[int]) -> None:
    """Check that a loop cannot match a whole text, and that no text leads back to the same character of it in two ways.

    With two such ways, the number of paths would double in each round.

    Raises:
        UnknownSyntaxError: If one of these is not the case.
    """
    *_, blank, letter = masks
    if any(masks[number] & blank for number in loop) and any(masks[number] & letter for number in loop):
        raise UnknownSyntaxError(WIDE)
    if any(count > 1 for number in loop for other, count in following[number].items() if other in loop):
        raise UnknownSyntaxError(NESTED)
    n_pairs, waiting = 0, [(number, number) for number in loop]
    before: dict[tuple[int, int], list[tuple[int, int]]] = {pair: [] for pair in waiting}
    for pair in waiting:
        one, two = (loop & following[number].keys() for number in pair)
        n_pairs += len(one) * len(two)
        if n_pairs > MAX_PAIRS:
            raise UnknownSyntaxError(MANY_WAYS)
        for reached in ((left, right) for left in one for right in two if masks[left] & masks[right]):
            if reached not in before:
                before[reached] = []
                waiting.append(reached)
            before[reached].append(pair)
    # Go back from all pairs of equal characters. If a pair of different characters leads to one of them, two ways have met again.
    seen = list(dict.fromkeys((number, number) for number in loop))
    visited = set(seen)
    for pair in seen:
        for earlier in before[pair]:
            if earlier[0] != earlier[1]:
                raise UnknownSyntaxError(NESTED)
            if earlier not in visited:
                visited.add(earlier)
                seen.append(earlier)


def _components(following: list[Counter[int]], ends: set[int]) -> list[list[int]]:
    """Return the groups of characters that lead to each other, the last group of the pattern first. Those in `ends` are left out.

    Source: R. Tarjan, Depth-first search and linear graph algorithms, 1972, without recursion.
    """
    found, order, lowest = list[list[int]](), dict[int, int](), dict[int, int]()
    stack, done = list[int](), set(ends)
    for root in range(len(following)):
        path = [] if root in done else [(root, iter(following[root]))]
        while path:
            number, others = path[-1]
            if number not in order:
                order[number] = lowest[number] = len(order)
                stack.append(number)
            if (other := next(others, None)) is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[number])
                if lowest[number] == order[number]:
                    position = stack.index(number)
                    found.append(stack[position:])
                    done.update(stack[position:])
                    del stack[position:]
            elif other in done:
                continue
            elif other in order:
                lowest[number] = min(lowest[number], order[other])
            else:
                path.append((other, iter(following[other])))
    return found
