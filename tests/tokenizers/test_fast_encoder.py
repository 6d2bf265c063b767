"""The fast encoder gives the ids of the tokenizer for any text, or finds that it does not, and stays within its memory."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.bpe_training import train_bpe
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.fast_encoding import fast_encoder, gigatoken_engine
from gpt_pretrain.tokenizers.fast_encoding.disputed import DisputedCharacters
from gpt_pretrain.tokenizers.fast_encoding.fast_encoder import COMPARED, DifferentIdsError, FastEncoder
from gpt_pretrain.tokenizers.fast_encoding.gigatoken_engine import UnsupportedTokenizerError, engine_builder
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

pytest.importorskip("gigatoken")

NAMES = ["gpt2", "own_cl100k", "own_gpt2"]
PIECES = st.sampled_from(
    [
        *("'s", "'S", "'re", "'LL", "'\u017f", "\u2019s", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\x00", "\x1c"),
        *("\x85", "\u2028", "the", " The", "1", "123", "\u00b2", "\u0661", "_", "...", "e\u0301", "\u0301", "\u4f60\u597d", "\uff0c"),
        *("\U0001f468\u200d\U0001f469", "\U00020000", "\U000323b0", "\ua7d2", "\U0010ffff", "\uffff", "\ufeff", END_OF_TEXT, "<|sep|>"),
    ]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=60), st.lists(PIECES, max_size=30).map("".join), st.builds(str.__mul__, PIECES, st.integers(0, 300))
)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    texts = ["It's the same text, isn't it?  1234 words; DON'T \u4f60\u597d\uff0c caf\u00e9! <|sep|> x = {'a': [1, 2]}\n\n" * 5]
    return {
        "gpt2": build_tokenizer("gpt2"),
        "own_cl100k": train_bpe(texts, 340, special_tokens=["<|sep|>"]),
        "own_gpt2": train_bpe(texts, 330, pattern="gpt2"),
    }


@pytest.fixture(scope="module")
def encoders(tokenizers: dict[str, Tokenizer]) -> dict[str, FastEncoder]:
    built = {name: FastEncoder(tokenizer) for name, tokenizer in tokenizers.items()}
    assert {name: encoder.slow_because for name, encoder in built.items()} == dict.fromkeys(NAMES, "")
    return built


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS)
@example(text="\U000323b0'll \ua7d2're \u088f's")  # letters of Unicode 17
@example(text="a" * 5000 + " " * 5000 + "\n" * 500)
def test_it_gives_the_ids_of_the_tokenizer(
    name: str, text: str, tokenizers: dict[str, Tokenizer], encoders: dict[str, FastEncoder]
) -> None:
    expected = tokenizers[name].encode_ordinary(text)
    found = encoders[name].encode(text)
    assert found.dtype == np.uint32 and found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", NAMES)
@given(texts=st.lists(TEXTS.map(lambda text: text.replace(END_OF_TEXT, "")), min_size=1, max_size=6))
@example(texts=["", " ", "a\n\n", " b", "<|endoftext", "|>", "'s"])
def test_documents_that_are_encoded_together_have_the_ids_of_each(
    name: str, texts: list[str], tokenizers: dict[str, Tokenizer], encoders: dict[str, FastEncoder]
) -> None:
    tokenizer = tokenizers[name]
    assert encoders[name].takes_documents
    documents = [text.encode() for text in texts]
    if (encoded := encoders[name].encode_documents(documents, gigatoken_engine.MARKER.join([*documents, b""]))) is None:
        assert not "".join(texts).isascii()
        return
    token_ids, lengths = encoded
    expected = [[*tokenizer.encode_ordinary(text).tolist(), tokenizer.eos_id] for text in texts]
    assert token_ids.tolist() == [token_id for ids in expected for token_id in ids]
    assert lengths.tolist() == list(map(len, expected))


def test_disputed_characters_are_found_in_the_blocks_of_a_text() -> None:
    wrong, tried = {"\u00e9", "\u088f", "\u0c80", "\u3021", "\ua7d2", "\uff10", "\U0001d7ce", "\U000323b0"}, list[str]()
    disputed = DisputedCharacters(lambda text: bool(tried.append(text) or wrong.isdisjoint(text)))
    assert not disputed.are_in(b"only ASCII") and not tried
    others = "\u00e8\u0890\u2019\u4f60\ua7d3\U0001f600\U000323b1\U0010ffff"
    assert not disputed.are_in(others.encode())
    for character in sorted(wrong):
        assert disputed.are_in(f"a {others} {character} b".encode()), ascii(character)
    tried.clear()
    assert not disputed.are_in(others.encode()) and disputed.are_in("".join(wrong).encode()) and not tried


def test_half_a_surrogate_pair_is_left_to_the_tokenizer(encoders: dict[str, FastEncoder]) -> None:
    with pytest.raises(UnicodeEncodeError):
        build_tokenizer("gpt2").encode_ordinary("a\ud800b")
    with pytest.raises(UnicodeEncodeError):
        encoders["gpt2"].encode("a\ud800b")


class Fake:
    """An engine that encodes as a tokenizer does, except for texts with a certain word."""

    def __init__(self, tokenizer: Tokenizer, wrong: str, *, fails: bool = False) -> None:
        self.tokenizer, self.wrong, self.fails, self.built, self.texts = tokenizer, wrong, fails, 0, list[str]()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Fake:
        monkeypatch.setattr(fast_encoder, "engine_builder", lambda _: self.build)
        return self

    def build(self) -> gigatoken_engine.Encode:
        self.built += 1
        return self.encode

    def encode(self, data: bytes) -> np.ndarray:
        text = data.decode()
        self.texts.append(text)
        if self.wrong in text and self.fails:
            raise BaseException("panicked")  # as a panic of Rust
        ids = np.array(self.tokenizer.encode(text), np.uint32)
        return ids[1:] if self.wrong in text else ids


@pytest.fixture
def gpt2() -> Tokenizer:
    return build_tokenizer("gpt2")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("wrong", ["\u4f60\u597d", " basketball", "\t\t"])
def test_an_encoder_that_differs_at_first_is_not_used(
    wrong: str, fails: bool, gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fake(gpt2, wrong, fails=fails).install(monkeypatch)
    encoder = FastEncoder(gpt2)
    assert encoder.slow_because.startswith("gigatoken encodes" if not fails else "gigatoken fails on")
    assert encoder.encode(f"a{wrong}b").tolist() == gpt2.encode_ordinary(f"a{wrong}b").tolist()


@pytest.mark.parametrize(("words", "share"), [(1, 1 / 1024), (2000, 6 / 1024)])
def test_a_difference_is_found_in_the_sample(words: int, share: float, gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    Fake(gpt2, "xyzzyx").install(monkeypatch)
    encoder, texts = FastEncoder(gpt2), [f"{number} is {'a xyzzyx b ' * words}" for number in range(12_000)]
    chosen = [text for text in texts if fast_encoder._is_chosen(text.encode())]
    assert share / 2 < len(chosen) / len(texts) < 2 * share
    for text in chosen[:5]:
        with pytest.raises(DifferentIdsError, match=r"gigatoken encodes '.*xyzzyx.* in another way than gpt2"):
            encoder.encode(text)
    others = [text for text in texts[:50] if text not in chosen]
    encoder.encode(others[0])
    encoder.compare_next()
    with pytest.raises(DifferentIdsError):
        encoder.encode(others[0])


def test_documents_without_an_end_are_noticed(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    Fake(gpt2, "xyzzyx").install(monkeypatch)
    encoder = FastEncoder(gpt2)
    with pytest.raises(DifferentIdsError, match="gigatoken finds 0 ends of 2 documents"):
        encoder.encode_documents([b"a", b"b"], b"ab")


def test_a_vocabulary_that_the_library_fails_to_load_is_not_used(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: object) -> None:
        raise BaseException("panicked")  # as a panic of Rust

    gigatoken = pytest.importorskip("gigatoken")
    monkeypatch.setattr(gigatoken.gigatoken_rs, "BPETokenizer", SimpleNamespace(from_tiktoken=panic))
    with pytest.raises(UnsupportedTokenizerError, match="the package gigatoken cannot hold the tokenizer gpt2"):
        engine_builder(gpt2)()
    assert FastEncoder(gpt2).slow_because == "the package gigatoken cannot hold the tokenizer gpt2"


def test_a_small_share_of_a_text_is_compared(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(gpt2, "xyzzyx").install(monkeypatch)
    encoder = FastEncoder(gpt2)
    texts = [f"{number} " + "word " * 20_000 for number in range(40)]
    fake.texts.clear()
    for text in texts:
        encoder.encode(text)
    compared = sum(len(text) for text in fake.texts if len(text) <= COMPARED)
    assert 0 < compared < sum(map(len, texts)) / 300


def test_without_the_library_the_tokenizer_encodes(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    encoder = FastEncoder(gpt2)
    assert encoder.slow_because == "the package gigatoken is not installed"
    assert encoder.encode("It's").tolist() == gpt2.encode_ordinary("It's").tolist()


def test_vocabularies_that_the_library_would_misread_are_not_handed_to_it(tokenizers: dict[str, Tokenizer]) -> None:
    own = tokenizers["own_cl100k"]
    assert isinstance(own, VocabularyTokenizer)
    letters = own.fields["pre_tokenizer"]["pretokenizers"][1]
    steps = own.fields["pre_tokenizer"]["pretokenizers"]
    added = own.fields["added_tokens"][0]
    changes = [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [steps[0], {"type": "Digits", "individual_digits": True}, letters],
            }
        },
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**steps[0], "behavior": "MergedWithNext"}, letters]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**steps[0], "pattern": {"Regex": "x+"}}, letters]}},
        {"pre_tokenizer": None},
        {"model": {**own.fields["model"], "unk_token": "!"}},
        {"added_tokens": [added, {**added, "id": 339, "content": "<x>", "single_word": True}]},
    ]
    for change in changes:
        tokenizer = VocabularyTokenizer("changed", {**own.fields, **change}, own.end_of_text)
        with pytest.raises(UnsupportedTokenizerError):
            engine_builder(tokenizer)()
    with pytest.raises(UnsupportedTokenizerError, match="cannot hold the tokenizer byte"):
        engine_builder(build_tokenizer("byte"))


def test_an_engine_is_built_anew_when_its_memory_has_grown(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, memory = Fake(gpt2, "xyzzyx").install(monkeypatch), [100]
    monkeypatch.setattr(fast_encoder, "resident_memory", lambda: memory[0])
    monkeypatch.setattr(fast_encoder, "MAX_GROWTH", 50)
    monkeypatch.setattr(fast_encoder, "GROWTH_CHECKED", 1000)
    monkeypatch.setattr(fast_encoder, "WITHOUT_MEASURE", 5000)
    engine = fast_encoder._BoundedEngine(fake.build)

    def built_after(characters: int) -> int:
        for _ in range(characters // 100):
            engine.encode(b"x" * 100)
        return fake.built

    assert built_after(5000) == 1
    memory[0] = 140
    assert built_after(5000) == 1
    memory[0] = 160
    assert built_after(2000) == 2 and built_after(5000) == 2
    memory[0] = None
    assert built_after(2000) == 3 and built_after(3000) == 3 and built_after(3000) == 4


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.skipif(fast_encoder.resident_memory() is None, reason="the memory of a process is unknown")
def test_the_memory_of_an_encoder_is_bounded(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_encoder, "MAX_GROWTH", 1 << 25)
    monkeypatch.setattr(fast_encoder, "GROWTH_CHECKED", 1 << 19)
    encoder, rng, before = FastEncoder(gpt2), random.Random(0), fast_encoder.resident_memory()
    for _ in range(160):
        encoder.encode("".join(" " + "".join(rng.choices("abcdefghij", k=8)) for _ in range(10_000)))
    assert fast_encoder.resident_memory() - before < 80_000_000
