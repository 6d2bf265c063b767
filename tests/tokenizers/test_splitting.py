"""Parts that are encoded one by one give the token ids of the whole text."""

import json
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from gpt_pretrain.tokenizers import splitting
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.splitting import encode_pieces, encode_prompt, split_pieces, split_text
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer
from tests.conftest import ROOT

GPT2, BYTE = build_tokenizer("gpt2"), build_tokenizer("byte")
SAMPLE = ROOT / "gpt_pretrain" / "data" / "sample.txt"

# The patterns of cl100k_base and o200k_base, whose files need a network, with GPT-2's merges.
CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIX}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIX}",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)


def with_pattern(name: str, pattern: str) -> TiktokenTokenizer:
    assert isinstance(GPT2, TiktokenTokenizer)
    return TiktokenTokenizer(
        tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=GPT2.ranks, special_tokens={END_OF_TEXT: 50256})
    )


def own_vocabulary(name: str, **parts: object) -> VocabularyTokenizer:
    """Train a small vocabulary on the sample text, as others train theirs."""
    fast = FastTokenizer(models.BPE(byte_fallback=True) if name == "metaspace" else models.BPE())
    for part, value in parts.items():
        setattr(fast, part, value)
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if name != "metaspace" else [], show_progress=False
    )
    fast.train_from_iterator(SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True), trainer)
    return VocabularyTokenizer(name, json.loads(fast.to_str()), None)


OWN = [
    own_vocabulary(
        "across spaces",
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoder=decoders.ByteLevel(),
    ),
    own_vocabulary("prefixed", pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True), decoder=decoders.ByteLevel()),
    own_vocabulary("metaspace", pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()),
]

TOKENIZERS = [GPT2, BYTE, with_pattern("like cl100k", CL100K), with_pattern("like o200k", O200K)]

# What runs of half a million characters without a safe split consist of.
REPEATED = [
    *("a", "A", "ha", "aB", "ACGTTACGATTGCA", " ", "\n", " \n", "\t \n", "=", "=-", "😀", "😀👍", "今天天气很好", "สวัสดีครับ"),
    *("नमस्ते", "e\u0301", "123", "7", "'s", "' ", "\u3000", "/\n", "'ll", "\u200d👩", "_", "-\u2014", "...", "\ufffd"),
]
RUNS = st.lists(st.tuples(st.sampled_from(REPEATED), st.integers(1, 500)), min_size=1, max_size=5)


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split after 600 characters already."""
    for name, value in {"PART": 600, "LOOKAHEAD": 300, "CHECKED": 100}.items():
        monkeypatch.setattr(splitting, name, value)


def encoded(text: str, tokenizer: Tokenizer, size: int) -> list[int]:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    return np.concatenate([np.empty(0, np.uint32), *encode_pieces(pieces, tokenizer)]).tolist()


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.name)
@given(runs=RUNS, size=st.integers(50, 700))
def test_runs_of_any_characters_have_the_ids_of_the_whole(tokenizer: Tokenizer, runs: list[tuple[str, int]], size: int) -> None:
    text = "".join(repeated * count for repeated, count in runs)
    with patch.multiple(splitting, PART=600, LOOKAHEAD=300, CHECKED=100):
        assert encoded(text, tokenizer, size) == tokenizer.encode_ordinary(text).tolist()
        assert max(map(len, split_text(text, tokenizer))) <= 600


@pytest.mark.parametrize("tokenizer", OWN, ids=lambda t: t.name)
def test_vocabularies_of_others_have_the_ids_of_the_whole(tokenizer: Tokenizer, story: str, short_parts: None) -> None:
    for text in (story, story.replace("\n", ""), story.replace(". ", ".\r\n\r\n")):
        assert encoded(text, tokenizer, 333) == tokenizer.encode_ordinary(text).tolist()


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.name)
@given(pieces=st.lists(st.text(alphabet=st.sampled_from("ab1'sé日 \n\t!.🙂<|"), max_size=12) | st.just(END_OF_TEXT), max_size=40))
def test_pieces_have_the_ids_of_the_whole(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    with patch.multiple(splitting, PART=30, LOOKAHEAD=60, CHECKED=20):
        ids = [token_id for part in encode_pieces(pieces, tokenizer) for token_id in part.tolist()]
        assert ids == tokenizer.encode(text)
        assert list(split_pieces(pieces, tokenizer)) == list(split_pieces([text], tokenizer))


def test_a_part_never_ends_inside_the_marker(short_parts: None) -> None:
    for length in range(580, 620):
        text = "x" * length + END_OF_TEXT + "y"
        assert list(split_pieces(text, BYTE))[-2:] == [END_OF_TEXT, "y"]


def test_a_tokenizer_without_an_end_of_text_has_nothing_between_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(BYTE), "eos_id", None)
    text = f"a{END_OF_TEXT}b"
    assert encoded(text, BYTE, 5) == encode_prompt(text, BYTE) == list(b"ab")


class LoweringTokenizer:
    """A tokenizer whose tokens do not add up to the text."""

    name, vocab_size, eos_id = "lowering", 256, None

    def encode_ordinary(self, text: str) -> np.ndarray:
        return np.frombuffer(text.lower().encode(), np.uint8).astype(np.uint32)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def test_a_tokenizer_that_changes_the_text_splits_it_all_the_same(short_parts: None) -> None:
    text = "AB" * 1000
    assert [len(part) for part in split_text(text, LoweringTokenizer())] == [600, 600, 600, 200]  # type: ignore[arg-type]


def test_a_stream_is_held_in_memory_only_in_part(short_parts: None) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 100
            yield "今" * 100

    parts = split_pieces(endless(), GPT2)
    for number in range(1, 20):
        next(parts)
        assert taken <= 600 * number + 500


def test_a_prompt_of_any_length_has_the_ids_of_the_whole(short_parts: None, story: str) -> None:
    assert encode_prompt(story.replace("\n", "\r\n"), GPT2) == GPT2.encode(story)
    assert encode_prompt(f"One.{END_OF_TEXT}Two.", GPT2) == GPT2.encode(f"One.{END_OF_TEXT}Two.")
    assert encode_prompt("", GPT2) == []
