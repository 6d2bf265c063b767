"""Vocabularies of strangers whose cost must not grow beyond what their files explain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.base import fingerprint
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.tokenizers.fast_encoding.fast_encoder import TOGETHER, _in_groups
from gpt_pretrain.tokenizers.fitting import fit_to_rows
from gpt_pretrain.tokenizers.formats.definition import added_token, canonical_fields
from gpt_pretrain.tokenizers.formats.nanogpt_meta import read_meta
from gpt_pretrain.tokenizers.formats.sentencepiece_model import Piece, _merges
from gpt_pretrain.tokenizers.formats.user_pieces import _overlapping
from gpt_pretrain.tokenizers.patterns.checks import check_pattern
from gpt_pretrain.tokenizers.tables import IdTokenizer
from gpt_pretrain.tokenizers.unknown import UnknownText
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer
from tests.helpers.resource_limits import within

WORDS = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}


def canonical(model: Mapping[str, Any] = WORDS, **parts: Any) -> dict[str, Any]:
    return canonical_fields({"model": model, **parts})


@pytest.mark.parametrize("name", ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"])
@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "BPE"])
def test_what_is_put_around_words_is_short(name: str, kind: str) -> None:
    long = "#" * 101
    model = {"type": kind, "vocab": {"a": 0, "[UNK]": 1, long: 2}, "merges": [], "unk_token": "[UNK]", name: long}
    with pytest.raises(DamagedFileError, match=f"its {name} has 101 characters, more than the limit of 100"):
        canonical(model)
    assert canonical(model | {name: "#" * 100 if name != "unk_token" else "[UNK]"})


def test_many_replacements_are_refused_before_their_patterns_are_judged() -> None:
    step = {"type": "Replace", "pattern": {"Regex": "a?" * 500}, "content": ""}
    steps = [{**step, "pattern": {"Regex": f"{number}{'a?' * 500}"}} for number in range(40)]
    with within(0.5, 50), pytest.raises(DamagedFileError, match="40 regular expressions"):
        canonical(normalizer={"type": "Sequence", "normalizers": steps})


def test_a_pattern_may_not_go_on_in_many_ways_with_many_characters() -> None:
    others = "|".join(chr(code) for code in range(0x5200, 0x5200 + 250))
    with within(2, 100), pytest.raises(DamagedFileError, match="a text may match it in too many ways"):
        check_pattern(".?" * 490 + "|" + others)
    check_pattern(".?" * 20 + "|" + others)


def test_texts_are_measured_once_however_deep_they_are() -> None:
    inner: Any = ["x" * 100] * 10_000
    for _ in range(90):
        inner = {"prepend": inner}
    with within(0.5, 50), pytest.raises(DamagedFileError):
        VocabularyTokenizer("a", {"model": WORDS, "normalizer": inner}, None)


@pytest.mark.parametrize(
    ("part", "step"),
    [
        ("decoder", {"type": "Fuse", "decoders": 5}),
        ("decoder", {"type": "Sequence", "decoders": [{"type": "Fuse", "normalizers": "x"}]}),
        ("pre_tokenizer", {"type": "Whitespace", "pretokenizers": 5}),
        ("normalizer", {"type": "Lowercase", "normalizers": {"a": 1}}),
    ],
)
def test_steps_are_lists(part: str, step: dict[str, Any]) -> None:
    with pytest.raises(DamagedFileError, match=r"its (decoders|pretokenizers|normalizers) are .*, not a list"):
        VocabularyTokenizer("a", {"model": WORDS, part: step}, None)


def test_added_tokens_without_a_row_are_found_in_linear_time() -> None:
    size = 20_000
    vocab = WORDS["vocab"] | {f"v{number}": 2 + number for number in range(size)}  # type: ignore[operator]
    added = [added_token(f"w{number}", 2 + size + number) for number in range(size)]
    tokenizer = VocabularyTokenizer("a", {"model": {**WORDS, "vocab": vocab}, "added_tokens": added}, None)
    with within(1, 50), pytest.raises(UserError, match="has a vocabulary of 2 tokens"):
        fit_to_rows(tokenizer, 2, origin="a model")


def test_a_model_may_not_have_far_more_rows_than_tokens() -> None:
    tokenizer = ByteTokenizer()
    assert fit_to_rows(tokenizer, 65_536, origin="a model") is tokenizer  # as if it were nanochat's
    with pytest.raises(UserError, match=r"a model has a vocabulary of 4,900,000 tokens, but the tokenizer byte has only 257\."):
        fit_to_rows(tokenizer, 4_900_000, origin="a model")


def test_a_text_that_names_the_unknown_token_is_not_searched_word_by_word() -> None:
    vocab = WORDS["vocab"] | {f"v{number}": 2 + number for number in range(30_000)}  # type: ignore[operator]
    words = {"type": "WhitespaceSplit"}
    tokenizer = VocabularyTokenizer("a", {"model": {**WORDS, "vocab": vocab}, "pre_tokenizer": words}, None)
    unknown, text = UnknownText(tokenizer), " ".join(["[UNK]", *(f"v{number}" for number in range(30_000))])
    token_ids = tokenizer.encode_ordinary(text)
    with within(0.3, 50):
        unknown.add(text, token_ids)
    assert unknown.tokens == 1 and unknown.example == ""
    unknown.add("b", np.array([1]))
    assert unknown.example == "b"


def test_a_vocabulary_is_compared_in_parts() -> None:
    tokens = ["a" * 1000] * 1000 + ["b" * (TOGETHER + 1), "c"]
    groups = list(_in_groups(tokens))
    assert len(groups) == 2 and max(len("".join(group)) for group in groups) <= TOGETHER
    assert [token for group in groups for token in group] == [*tokens[:1000], "c"]


def test_pieces_that_can_be_made_of_each_other_in_many_ways_are_refused() -> None:
    pieces = [Piece("a" * size, float(-size)) for size in range(1, 530)]
    with within(2, 100), pytest.raises(DamagedFileError, match="made of each other in far too many ways"):
        _merges(pieces, {piece.text: number for number, piece in enumerate(pieces)})
    assert len(_merges(pieces[:100], {piece.text: number for number, piece in enumerate(pieces[:100])})) == 4950


def test_many_sizes_of_user_defined_tokens_are_not_looked_at_for_each_other_token() -> None:
    user, normal = ["u" * size for size in range(1, 311)], [chr(0x10000 + number) for number in range(100_000)]
    with within(0.8, 100):
        assert _overlapping(user, normal) is None
    assert _overlapping(user[:10], normal) == {}


def test_a_token_that_is_named_again_and_again_is_looked_at_quickly() -> None:
    token, references = b"X" + (199).to_bytes(4, "little") + b"x" * 199 + b"\x94", b"h\0" * 500_000
    padding = b"B" + (6_000_000).to_bytes(4, "little") + bytes(6_000_000)
    with within(2, 200), pytest.raises(DamagedFileError, match="its tokens are not all different"):
        read_meta(b"\x80\x04}(\x8c\x04itos](" + token + references + b"e\x8c\x01p" + padding + b"u.", end_of_text=False)


def test_a_word_of_many_unknown_characters_is_looked_at_as_far_as_it_is_shown() -> None:
    model = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]], "unk_id": 0}
    tokenizer = VocabularyTokenizer("a", {"model": model}, None)
    text = "a" + "".join(chr(0x3400 + number) for number in range(20_000)) + "a"
    unknown, token_ids = UnknownText(tokenizer), tokenizer.encode_ordinary(text)
    with within(0.1, 50):
        unknown.add(text, token_ids)
    assert unknown.example == "\u3400"


def test_a_number_of_ids_takes_no_memory_for_each_of_them() -> None:
    with within(5, 20):
        fingerprint(IdTokenizer(1_000_000))
