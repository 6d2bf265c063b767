"""Check regular expressions that somebody else wrote, before any text is split by them.

The tokenizers library matches with Oniguruma, which tries one way after the other, and gives up a match after ten million steps
(0.2 s). A pattern that comes near this at each character of a text would keep the program busy for days. So the ways that one
beginning of a text can be matched in are counted, and patterns with too many of them are refused.

A pattern becomes a graph: its characters, each with those that may follow it. A match is a path through the graph. What counts is
where two paths match the same text, and both may still fail. Behind a character that may be the last of a match, nothing fails.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache

from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.character_classes import class_masks
from gpt_pretrain.tokenizers.pattern_graph import MANY_WAYS, MAX_WAYS, PatternGraph, build_graph
from gpt_pretrain.tokenizers.pattern_syntax import CharacterClass, UnknownSyntaxError, parse_pattern

MAX_PAIRS = 500_000  # Of characters that are compared.
MAX_STEPS = 500_000  # Characters of the graph that follow others, each counted for each kind of character that it matches.
BLANK, LETTER = CharacterClass(" ", False), CharacterClass("e", False)

Cost = tuple[int, int]  # The exponent of the length of a text, and a factor.
END: Cost = (0, 0)  # of a character that ends a match
NESTED = "a repeated part of it may match the same text in several ways"
NEIGHBORS = "repetitions of the same characters follow each other in it"
WIDE = "it may search the whole text at each character"
# The last alternatives of nearly all known patterns. Together, they go through a run of white space at most four times: what one
# fails at, the next one matches to the last line end or to the last character but one.
SPACES = re.compile(r"\|(?:\\s\+\+?(?:\$|\\z)\|)?(?:\\s\*\[(?:\\r|\r)(?:\\n|\n)\]\+?\|)?\\s\+\(\?!\\S\)\|\\s\+?\Z")
# Words in patterns after o200k's: capitals that may end with small letters, and if they do not, only capitals.
CLASS, SUFFIX = r"\[(?:[^][\\]|\\.|\[(?:[^][\\]|\\.)*\])+\]", r"(?:\(\?i:[a-z'|]+\)\?)?"
WORDS = re.compile(
    rf"(?<![^|])(?P<sign>(?:{CLASS}\?)?)(?P<upper>{CLASS})\*(?P<lower>{CLASS})\+{SUFFIX}"
    rf"\|(?P=sign)(?P=upper)\+(?P=lower)\*{SUFFIX}(?=\||\Z)"
)


@lru_cache(maxsize=64)
def check_pattern(pattern: str) -> int:
    """Check that a regular expression cannot backtrack far, and count the loops that may fail in the end.

    Such a loop, as in `a+b`, may go through the same run of characters again from each of them.

    Returns:
        The number of loops that may go through the same characters; 0 if the time grows with the text in any case.

    Raises:
        DamagedFileError: If it may: a repeated part can match the same text in several ways, repetitions of the same characters
            follow each other, or there are back references or calls.
    """
    try:
        n_loops = _check_cost(build_graph(parse_pattern(pattern)))
    except UnknownSyntaxError as error:
        raise DamagedFileError(f"its regular expression {short_repr(pattern)} is not used, since {error}") from error
    others = WORDS.sub(r"\g<sign>\g<upper>+|\g<sign>\g<lower>+", SPACES.sub("", pattern))
    if n_loops and others != pattern:
        with suppress(UnknownSyntaxError):  # The rest may be half a group.
            return _check_cost(build_graph(parse_pattern(others)))
    return n_loops


@lru_cache(maxsize=64)
def matches_nothing(pattern: str) -> bool:
    """Return whether a regular expression may match between two characters; one that cannot be understood may."""
    try:
        return build_graph(parse_pattern(pattern)).whole.n_empty > 0
    except UnknownSyntaxError:
        return True


def _check_cost(graph: PatternGraph) -> int:
    """Check all paths from the beginning of a match, or from a character that may end it, to the next one of those.

    Returns:
        The number of loops on such paths with the same next character.

    Raises:
        UnknownSyntaxError: If there may be too many of them.
    """
    ends = graph.whole.surely_last
    masks = class_masks([*graph.classes, BLANK, LETTER])
    if sum(masks[number].bit_count() for ways in (graph.whole.first, *graph.following) for number in ways) > MAX_STEPS:
        raise UnknownSyntaxError(MANY_WAYS)
    costs: dict[int, Cost] = dict.fromkeys(ends, END)
    for group in _components(graph.following, ends):
        exponent, ways = _group_cost(set(group), graph.following, masks, costs)
        costs.update(dict.fromkeys(group, (exponent, ways)))
    n_loops = 0
    for start in (graph.whole.first, *(graph.following[number] for number in ends)):
        if _sum_costs(start, masks, costs)[1] > MAX_WAYS:
            raise UnknownSyntaxError(MANY_WAYS)
        looping = Counter({number: count for number, count in start.items() if costs[number][0]})
        n_loops = max(n_loops, _sum_costs(looping, masks, costs)[1] if looping else 0)
    return n_loops


def _group_cost(group: set[int], following: list[Counter[int]], masks: list[int], costs: dict[int, Cost]) -> Cost:
    """Return the cost of all paths from a character, or from a loop of characters that lead to each other.

    Args:
        costs: The cost of all paths from the characters that may follow the group.

    Raises:
        UnknownSyntaxError: If it is too high.
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
        # The loop may be left at each of its rounds, and all that follows is tried again. It is not, where a match may end.
        again = [costs[other][0] for other in leaving if masks[other] & inside and costs[other] != END]
        exponent = max([exponent, *(1 + cost for cost in again)])
    if exponent > 1:
        raise UnknownSyntaxError(NEIGHBORS)
    return exponent, ways


def _sum_costs(following: Counter[int], masks: list[int], costs: dict[int, Cost]) -> Cost:
    """Return the cost of all ways to go on with the same next character, whichever has the most.

    Raises:
        UnknownSyntaxError: If there are too many of them.
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
    """Check that a loop is not as wide as a whole text, and that no text leads back to one of its characters in two ways.

    Two ways would double with each round.

    Raises:
        UnknownSyntaxError: If it is, or if one does.
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
    # Two ways that have parted, and from which a text leads to a common character again.
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
    """Return the groups of characters that lead to each other, without those in `ends`; the last of the pattern come first.

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
