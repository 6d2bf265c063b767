"""Stop strings end a text wherever tokens are divided, and no part of one is ever shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pretrain.generation.continued_text import ContinuedText
from gpt_pretrain.tokenizers.byte import ByteTokenizer

BYTES = ByteTokenizer()


def stream(text: str, stop: list[str], limit: int = 1000) -> tuple[list[str], ContinuedText]:
    made = ContinuedText(BYTES, max_new_tokens=limit, stop=stop)
    shown = []
    for token_id in BYTES.encode_ordinary(text).tolist():
        if made.finish_reason is not None:
            break
        shown.append(made.add(token_id))
    shown.append(made.close())
    return shown, made


@pytest.mark.parametrize(
    ("text", "stop", "expected", "reason"),
    [
        ("one END two", ["END"], "one ", "stop"),
        ("one EN", ["END"], "one EN", None),
        ("END", ["END"], "", "stop"),
        ("aaab", ["aab"], "a", "stop"),
        ("abcabd", ["abd", "zz"], "abc", "stop"),
        ("x\n\ny", ["\n\n", "\n"], "x", "stop"),
        ("日本語です", ["語"], "日本", "stop"),
        ("日本", ["日x"], "日本", None),
        ("ab", [], "ab", None),
    ],
)
def test_a_text_ends_before_its_first_stop_string(text: str, stop: list[str], expected: str, reason: str | None) -> None:
    shown, made = stream(text, stop)
    assert "".join(shown) == made.text == expected
    assert made.finish_reason == reason


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("abé", max_size=30), st.lists(st.text("abé", min_size=1, max_size=4), max_size=3), st.integers(1, 40))
def test_what_is_shown_never_has_to_be_taken_back(text: str, stop: list[str], limit: int) -> None:
    shown, made = stream(text, stop, limit)
    whole = text.encode()[:limit].decode(errors="replace")
    ends = [whole.find(one) for one in stop if one in whole]
    # The first stop string that is complete ends the text.
    completed = min((whole.find(one) + len(one) for one in stop if one in whole), default=None)
    seen = whole if completed is None else whole[:completed]
    expected = seen if completed is None else seen[: min(seen.find(one) for one in stop if one in seen)]
    assert "".join(shown) == made.text == expected
    assert (made.finish_reason == "stop") == bool(ends)
    assert 0 <= made.n_shown <= len(made.token_ids)


def test_the_limit_and_the_end_of_text_end_a_text() -> None:
    made = ContinuedText(BYTES, max_new_tokens=2)
    assert (made.add(104), made.finish_reason, made.add(105), made.finish_reason) == ("h", None, "i", "length")
    assert made.n_shown == 2
    assert ContinuedText(BYTES, max_new_tokens=0).finish_reason == "length"
    ended = ContinuedText(BYTES, max_new_tokens=9, stop=["hi"])
    assert BYTES.eos_id is not None
    assert (ended.add(104), ended.add(BYTES.eos_id), ended.finish_reason) == ("", "h", "stop")
    assert ended.n_shown == 2


def test_half_a_character_at_the_end_is_shown_as_a_replacement() -> None:
    made = ContinuedText(BYTES, max_new_tokens=2)
    first, second = "日".encode()[:2]
    assert (made.add(first), made.add(second), made.finish_reason) == ("", "\ufffd", "length")
