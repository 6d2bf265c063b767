"""User-defined tokens of a SentencePiece model are compared with all others in little time, and by the same rule."""

import itertools
import random

import pytest

from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.formats.user_pieces import check_always_chosen


def likeliest(text: str, normal: dict[str, float]) -> float:
    """Return the score of the likeliest ordinary tokens of a text, computed in the plainest way."""
    if not text:
        return 0.0
    unknown = min(normal.values()) - 10
    cuts = [unknown + likeliest(text[1:], normal)]
    return max(
        cuts + [score + likeliest(text[len(token) :], normal) for token, score in normal.items() if text.startswith(token)]
    )


def test_a_token_that_passes_is_chosen_in_every_text() -> None:
    chosen = random.Random(1)
    contexts = ["".join(letters) for size in range(3) for letters in itertools.product("ab", repeat=size)]
    passed = refused = 0
    for _ in range(150):
        piece = "".join(chosen.choices("ab", k=chosen.randint(1, 3)))
        tokens = {"".join(chosen.choices("ab", k=chosen.randint(1, 4))) for _ in range(chosen.randint(1, 5))} - {piece}
        normal = {token: -chosen.uniform(1, 1.4) * len(token) ** chosen.uniform(0, 1) for token in tokens | {"c"}}
        score = len(piece) * max(normal.values()) - 0.1
        margins = [
            likeliest(before, normal) + score + likeliest(after, normal) - likeliest(before + piece + after, normal)
            for before in contexts
            for after in contexts
        ]
        try:
            check_always_chosen([piece], normal)
        except DamagedFileError:
            refused += 1
        else:
            passed += 1
            assert min(margins) > 0, (piece, normal)
    assert passed > 15 and refused > 30


@pytest.mark.parametrize("others", [["x<tool>"], ["<tool>x"], ["x<to", "ol>"], ["<to", "ol>x"], ["x<t", "oo", "l>x"]])
def test_a_token_is_refused_if_others_that_cut_it_may_be_likelier(others: list[str]) -> None:
    normal = {"a": -1.0, "x": -1.0, "<": -4.0, ">": -4.0}
    if len(others) > 1:  # the rest of the token is unknown
        check_always_chosen(["(pad)", "<tool>"], normal | {others[0]: -2.0})
    with pytest.raises(DamagedFileError, match="user-defined token '<tool>' would get other ids"):
        check_always_chosen(["(pad)", "<tool>"], normal | dict.fromkeys([*others, "o"], -2.0))


def test_many_tokens_of_the_user_take_little_time() -> None:
    user = ["".join(digits) for digits in itertools.islice(itertools.product("01234567", repeat=12), 3000)]
    normal = {"".join(letters): -1.0 for letters in itertools.islice(itertools.product("abcdefgh", repeat=12), 10_000)}
    check_always_chosen(user, normal)  # more than a minute where each is compared with each
    with pytest.raises(DamagedFileError, match="would get other ids"):
        check_always_chosen(["a" * 30 + digits for digits in user], {"b" * size + "a" * 30: -1.0 for size in range(900)})
    with pytest.raises(DamagedFileError, match="far too long"):
        check_always_chosen(["a" * 1000] * 11, normal)
