from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.system.line_ends import unify_line_ends, unify_line_ends_in_blocks


@given(st.lists(st.text(alphabet="ab\r\n", max_size=6)))
def test_line_ends_in_blocks_are_those_of_the_whole(pieces: list[str]) -> None:
    text = "".join(pieces)
    expected = "\n".join(text.replace("\r\n", "\n").split("\r"))
    assert unify_line_ends(text) == expected
    assert b"".join(unify_line_ends_in_blocks(piece.encode() for piece in pieces)).decode() == expected
