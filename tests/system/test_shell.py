"""A printed command is read as it was meant by the shells that people use."""

import shlex

import pytest

from gpt_pretrain.system.shell import join_words, quote_word

# By the published rules of each shell; all forms have been tried in bash, dash, zsh and fish.
QUOTED = {
    "plain": "plain",
    "data.path=a.txt": "data.path=a.txt",
    "two words": "'two words'",
    "it's": '"it\'s"',
    "it's $5": "'it'\"'\"'s $5'",
    "=ls": "'=ls'",
    "%self": "'%self'",
    "~": "'~'",
    "a\\b": "'a\\b'",
    "a\\": "'a'\\\\",
    "a\\\\b": "'a'\\\\\\\\'b'",
    "=it\\'s": "'=it'\\\\\\''s'",
}


@pytest.mark.parametrize("word", QUOTED)
def test_a_word_is_quoted_for_all_shells(word: str) -> None:
    assert quote_word(word) == QUOTED[word]


def test_words_are_read_back() -> None:
    assert shlex.split(join_words(QUOTED)) == list(QUOTED)
