"""User-defined tokens of a SentencePiece model, which a text is divided at after it has been normalized."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gpt_pretrain.system.reading import DamagedFileError

SPACE = "▁"
BELOW_NORMAL = 10.0  # SentencePiece's penalty of an unknown character, compared with the least likely piece.


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
    best, worst = max(normal.values(), default=0.0), min(normal.values(), default=0.0)
    for piece in pieces:
        score = len(piece.encode()) * best - 0.1
        if any(_overlaps(piece, other) for other in normal) or _best_path(piece, normal, worst - BELOW_NORMAL) >= score:
            raise DamagedFileError(f"its user-defined token {piece!r} would get other ids here; give the model's tokenizer.json")


def _overlaps(piece: str, other: str) -> bool:
    """Return whether another token may begin inside of this one and end after it, or begin before it and end inside or after."""
    if piece in other and piece != other:
        return True
    return any(other.endswith(piece[:size]) and other != piece[:size] for size in range(1, min(len(piece), len(other)))) or any(
        other.startswith(piece[-size:]) and other != piece[-size:] for size in range(1, min(len(piece), len(other)))
    )


def _best_path(piece: str, normal: Mapping[str, float], unknown: float) -> float:
    """Return the score of the likeliest ordinary tokens that a token may be divided into."""
    best = [0.0]
    for end in range(1, len(piece) + 1):
        paths = (best[start] + normal[piece[start:end]] for start in range(end) if piece[start:end] in normal)
        best.append(max(paths, default=best[end - 1] + unknown))
    return best[-1]


def _escape(piece: str) -> str:
    """Return a regular expression of the tokenizers library that matches a text; Python's re escapes more than it knows."""
    return re.sub(r"[\\^$.|?*+()\[\]{}]", r"\\\g<0>", piece)
