"""User-defined tokens of a SentencePiece model are compared with all others in little time, and by the same rule."""

import itertools
import random

import pytest

from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.user_pieces import begun_or_held, check_always_chosen


def is_begun_or_held(piece: str, other: str) -> bool:
    if piece in other and piece != other:
        return True
    return any(other.endswith(piece[:size]) for size in range(1, min(len(piece), len(other))))


def test_all_pieces_are_searched_for_as_one_by_one() -> None:
    chosen = random.Random(1)
    for letters in ("ab", "abc", "abcdef"):
        for _ in range(300):
            pieces, others = (
                {"".join(chosen.choices(letters, k=chosen.randint(1, 6))) for _ in range(chosen.randint(0, 4))} for _ in range(2)
            )
            expected = {piece for piece in pieces if any(is_begun_or_held(piece, other) for other in others)}
            assert begun_or_held(pieces, others) == expected, (pieces, others)


@pytest.mark.parametrize("other", ["x<tool>", "<tool>x", "x<to", "ol>x"])
def test_a_token_that_another_one_cuts_is_refused(other: str) -> None:
    check_always_chosen(["<pad>", "<tool>"], {"a": -1.0, "<": -1.0, ">": -1.0})
    with pytest.raises(DamagedFileError, match="user-defined token '<tool>' would get other ids"):
        check_always_chosen(["(pad)", "<tool>"], {"a": -1.0, other: -1.0})


def test_many_tokens_of_the_user_take_little_time() -> None:
    user = ["".join(digits) for digits in itertools.islice(itertools.product("01234567", repeat=12), 3000)]
    normal = {"".join(letters): -1.0 for letters in itertools.islice(itertools.product("abcdefgh", repeat=12), 10_000)}
    check_always_chosen(user, normal)  # more than a minute where each is compared with each
    with pytest.raises(DamagedFileError, match="far too long"):
        check_always_chosen(["a" * 1000] * 11, normal)
