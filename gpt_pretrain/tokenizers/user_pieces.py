"""User-defined tokens of a SentencePiece model, which a text is divided at after it has been normalized."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gpt_pretrain.system.reading import DamagedFileError

SPACE = "▁"
BELOW_NORMAL = 10.0  # SentencePiece's penalty of an unknown character, compared with the least likely piece.

MAX_SQUARES = 10_000_000  # of the user-defined tokens' lengths in total; 10,000 of 30 have as many.


def splits_at(pieces: Iterable[str]) -> dict[str, Any]:
    """Return the step of a pre-tokenizer that makes each of these tokens a word of its own, the longest one that fits."""
    longest_first = sorted(pieces, key=lambda piece: (-len(piece), piece))
    return {"type": "Split", "pattern": {"Regex": "|".join(map(_escape, longest_first))}, "behavior": "Isolated", "invert": False}


def check_normalized(pieces: Iterable[str], *, has_table: bool, squeeze: bool) -> None:
    """Check that the normalization leaves these tokens alone, from which SentencePiece exempts them.

    Args:
        has_table: Whether there is a table of replacements, which might have their characters.
        squeeze: Whether several spaces become one.

    Raises:
        DamagedFileError: If it may change one.
    """
    for piece in pieces:
        # An accent may follow a letter.
        is_kept = piece.isascii() and piece.isprintable() and piece == piece.lower() and not piece[-1].isalpha()
        is_changed = has_table and not is_kept
        if is_changed or (squeeze and (SPACE in piece or " " in piece)):
            raise DamagedFileError(f"its user-defined token {piece!r} may be changed here by the normalization of a text")


def check_always_chosen(pieces: Iterable[str], normal: Mapping[str, float]) -> None:
    """Check that a unigram model never prefers other tokens to these, which SentencePiece compares by their scores.

    Args:
        normal: The scores of all ordinary tokens.

    Raises:
        DamagedFileError: If it may, so that dividing a text at them would change its ids.
    """
    pieces = list(pieces)
    if sum(len(piece) ** 2 for piece in pieces) > MAX_SQUARES:
        raise DamagedFileError("its user-defined tokens are far too long")
    best, worst = max(normal.values(), default=0.0), min(normal.values(), default=0.0)
    longest = max(map(len, normal), default=0)
    backwards = begun_or_held((piece[::-1] for piece in pieces), (other[::-1] for other in normal))
    overlapping = begun_or_held(pieces, normal) | {piece[::-1] for piece in backwards}
    for piece in pieces:
        score = len(piece.encode()) * best - 0.1
        if piece in overlapping or _best_path(piece, normal, worst - BELOW_NORMAL, longest=longest) >= score:
            raise DamagedFileError(f"its user-defined token {piece!r} would get other ids here; give the model's tokenizer.json")


def begun_or_held(pieces: Iterable[str], others: Iterable[str]) -> set[str]:
    """Return the pieces that a longer text holds, or whose beginning is the end of a text that begins before it.

    All pieces are searched for at once, in a time that follows from the number of characters.

    Source: Aho & Corasick 1975, "Efficient string matching".
    """
    # A node stands for the beginning of a piece, and its fallback for the longest end of this that is a beginning, too.
    children: dict[tuple[int, str], int] = {}
    parents, fallbacks, depths, ends = [0], [0], [0], dict[str, int]()
    for piece in pieces:
        node = 0
        for character in piece:
            key = node, character
            if key not in children:
                children[key] = len(parents)
                parents.append(node)
                fallbacks.append(0)
                depths.append(depths[node] + 1)
            node = children[key]
        ends[piece] = node

    def step(node: int, character: str) -> int:
        while node and (node, character) not in children:
            node = fallbacks[node]
        return children.get((node, character), 0)

    by_depth = sorted(
        ((node, parent, character) for (parent, character), node in children.items()), key=lambda edge: depths[edge[0]]
    )
    for node, parent, character in by_depth:
        fallbacks[node] = step(fallbacks[parent], character) if parent else 0
    held, begun = [False] * len(parents), [False] * len(parents)
    for other in others:
        node = 0
        for character in other:
            node = step(node, character)
            held[node if depths[node] < len(other) else fallbacks[node]] = True
        begun[node if depths[node] < len(other) else fallbacks[node]] = True
    for marks in (held, begun):
        marks[0] = False
        for node, _, _ in reversed(by_depth):  # a text with a node's characters also has its fallback's
            marks[fallbacks[node]] |= marks[node]
    begun[0] = False
    longer = [False] * len(parents)
    for node, parent, _ in by_depth:
        longer[node] = longer[parent] or begun[parent]
    return {piece for piece, node in ends.items() if held[node] or longer[node]}


def _best_path(piece: str, normal: Mapping[str, float], unknown: float, *, longest: int) -> float:
    """Return the score of the likeliest ordinary tokens, of which the longest is given, that a token may be divided into."""
    best = [0.0]
    for end in range(1, len(piece) + 1):
        starts = range(max(0, end - longest), end)
        paths = (best[start] + normal[piece[start:end]] for start in starts if piece[start:end] in normal)
        best.append(max(paths, default=best[end - 1] + unknown))
    return best[-1]


def _escape(piece: str) -> str:
    """Return a regular expression of the tokenizers library that matches a text; Python's re escapes more than it knows."""
    return re.sub(r"[\\^$.|?*+()\[\]{}]", r"\\\g<0>", piece)
