"""User-defined tokens of a SentencePiece model. A normalized text is divided at these tokens."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from gpt_pretrain.system.reading import DamagedFileError

SPACE = "▁"
BELOW_NORMAL = 10.0  # SentencePiece's penalty of an unknown character, compared with the least likely piece.

ROUNDING = 1e-3  # SentencePiece adds scores with 32 bits.

MAX_SQUARES = 10_000_000  # sum of the squares of the user-defined tokens' lengths; 10,000 tokens of 30 characters reach it
# About the largest number of steps: squares of the lengths of ordinary tokens, and cubes if they overlap a user-defined one.
MAX_WORK = 20_000_000


def splits_at(pieces: Iterable[str]) -> dict[str, Any]:
    """Return the step of a pre-tokenizer that makes each of these tokens its own word. The longest token that fits is taken."""
    longest_first = sorted(pieces, key=lambda piece: (-len(piece), piece))
    return {"type": "Split", "pattern": {"Regex": "|".join(map(_escape, longest_first))}, "behavior": "Isolated", "invert": False}


def check_normalized(pieces: Iterable[str], *, has_table: bool, squeeze: bool) -> None:
    """Check that the normalization does not change these tokens. SentencePiece exempts them from it.

    Args:
        has_table: Whether there is a table of replacements. It might contain characters of the tokens.
        squeeze: Whether several spaces become one.

    Raises:
        DamagedFileError: If the normalization may change a token.
    """
    for piece in pieces:
        # An accent may follow a letter.
        is_kept = piece.isascii() and piece.isprintable() and piece == piece.lower() and not piece[-1].isalpha()
        is_changed = has_table and not is_kept
        if is_changed or (squeeze and (SPACE in piece or " " in piece)):
            raise DamagedFileError(f"its user-defined token {piece!r} may be changed here by the normalization of a text")


def check_always_chosen(pieces: Iterable[str], normal: Mapping[str, float]) -> None:
    """Check that a unigram model never prefers other tokens to these. SentencePiece compares them by their scores.

    Args:
        normal: The scores of all ordinary tokens.

    Raises:
        DamagedFileError: If it may prefer others. Dividing a text at these tokens would then change its ids.
    """
    pieces = list(pieces)
    if sum(len(piece) ** 2 for piece in pieces) > MAX_SQUARES:
        raise DamagedFileError("its user-defined tokens are far too long")
    paths, others = _Paths(normal), _overlapping(pieces, normal)
    for piece in pieces:
        score = len(piece.encode()) * paths.best - 0.1 - ROUNDING
        if others is None or paths.most_without(piece, others.get(piece, ())) >= score:
            raise DamagedFileError(f"its user-defined token {piece!r} would get other ids here; give the model's tokenizer.json")


def _overlapping(pieces: Sequence[str], normal: Iterable[str]) -> dict[str, set[str]] | None:
    """Return the ordinary tokens that contain a piece, end with its beginning or begin with its end; None for far too many."""
    beginnings, endings = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for piece in pieces:
        for size in range(1, len(piece)):
            beginnings[piece[:size]].append(piece)
            endings[piece[-size:]].append(piece)
    wholes, sizes, longest = set(pieces), {len(piece) for piece in pieces}, max(map(len, pieces), default=0)
    found, left = defaultdict[str, set[str]](set), MAX_WORK
    for other in normal:
        shorter, ends = [size for size in sizes if size < len(other)], range(1, min(len(other), longest))
        left -= len(sizes) + len(other) * (len(shorter) + len(ends))
        if left < 0:
            return None
        held = {other[at : at + size] for size in shorter for at in range(len(other) - size + 1)} & wholes
        lists: list[Collection[str]] = [held]
        lists += [beginnings.get(other[-size:], []) for size in ends] + [endings.get(other[:size], []) for size in ends]
        for own in lists:
            left -= len(own) * len(other) ** 3
            if left < 0:
                return None
            for piece in own:
                found[piece].add(other)
    return found


class _Paths:
    """Scores of the ways to divide a text into ordinary tokens.

    Args:
        normal: The scores of all ordinary tokens.
    """

    def __init__(self, normal: Mapping[str, float]) -> None:
        self.normal = normal
        self.best = max(normal.values(), default=0.0)
        self._unknown = min(normal.values(), default=0.0) - BELOW_NORMAL
        self._longest = max(map(len, normal), default=0)

    def most_without(self, piece: str, others: Iterable[str]) -> float:
        """Return the highest score of ordinary tokens in place of a piece, for any text around it.

        A token that reaches into the piece also covers text outside. The score of the likeliest tokens for that text is
        subtracted, since they would take its place.

        Args:
            others: All ordinary tokens that contain the piece, or overlap its beginning or its end.
        """
        size = len(piece)
        held, starts, ends = -math.inf, [-math.inf] * (size + 1), [-math.inf] * (size + 1)
        starts[0] = ends[size] = 0.0
        for other in others:
            score = self.normal[other]
            for at in range(len(other) - size + 1):
                if other.startswith(piece, at):
                    held = max(held, score - self.likeliest(other[:at]) - self.likeliest(other[at + size :]))
            for inside in range(1, min(size, len(other))):
                if other.endswith(piece[:inside]):
                    starts[inside] = max(starts[inside], score - self.likeliest(other[:-inside]))
                if other.startswith(piece[-inside:]):
                    ends[size - inside] = max(ends[size - inside], score - self.likeliest(other[inside:]))
        reached = self._scores(piece, starts)
        return max(held, *(score + end for score, end in zip(reached, ends, strict=True)))

    def likeliest(self, text: str) -> float:
        """Return the score of the likeliest way to divide a text into ordinary tokens."""
        return self._scores(text, [0.0] + [-math.inf] * len(text))[-1]

    def _scores(self, text: str, starts: Sequence[float]) -> list[float]:
        """Return the best score up to each position of a text. A path may begin at any position with a start score."""
        best = list(starts)
        for end in range(1, len(text) + 1):
            best[end] = max(best[end], best[end - 1] + self._unknown)
            for start in range(max(0, end - self._longest), end):
                if (token := text[start:end]) in self.normal:
                    best[end] = max(best[end], best[start] + self.normal[token])
        return best


def _escape(piece: str) -> str:
    """Return a regular expression of the tokenizers library that matches a text. Python's re escapes more than it supports."""
    return re.sub(r"[\\^$.|?*+()\[\]{}]", r"\\\g<0>", piece)
