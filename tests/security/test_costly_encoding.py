"""Tokenizers of strangers whose cost must not grow while they encode somebody's own text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.formats.definition import canonical_fields, largest_part
from gpt_pretrain.tokenizers.splitting import PartSizes, encode_pieces, encode_whole
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer
from tests.helpers.resource_limits import within

WORDS = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
LIGATURE = "\ufdfa"  # Unicode's NFKC makes 18 characters of it.
SPLIT = {"type": "Split", "pattern": {"String": "a"}, "behavior": "Isolated", "invert": False}
AGAIN = SPLIT | {"pattern": {"Regex": "a+b"}}
TEXT = "The quick brown fox jumps over the lazy dog. " * 3000


def each_becomes(content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": "."}, "content": content}


def sequence(name: str, *steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def tokenizer_with(normalizer: Mapping[str, Any] | None, pre_tokenizer: Mapping[str, Any] | None) -> VocabularyTokenizer:
    return VocabularyTokenizer("a", {"model": WORDS, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}, None)


@pytest.mark.parametrize("form", ["NFKC", "NFKD"])
def test_inserted_characters_count_as_what_unicode_makes_of_them(form: str) -> None:
    steps = [each_becomes(LIGATURE), {"type": form}] * 2
    with pytest.raises(DamagedFileError, match="its normalizer may make a text 324 times as long"):
        canonical_fields({"model": WORDS, "normalizer": sequence("normalizers", *steps)})
    with pytest.raises(DamagedFileError, match="its normalizer may make a text 324 times as long"):
        prepended = [{"type": "Prepend", "prepend": LIGATURE}, {"type": form}] * 2
        canonical_fields({"model": WORDS, "normalizer": sequence("normalizers", *prepended)})
    steps = [{"type": form}, {"type": "Lowercase"}, each_becomes("a"), {"type": form}, each_becomes(LIGATURE), {"type": form}]
    assert canonical_fields({"model": WORDS, "normalizer": sequence("normalizers", *steps)})


def test_a_text_that_becomes_longer_is_encoded_in_shorter_parts() -> None:
    tokenizer = tokenizer_with(each_becomes("a" * 32), SPLIT)
    assert PartSizes.of(tokenizer).part <= 3_000_000 // 32
    with within(10, 1000):
        assert sum(map(len, encode_pieces([TEXT[:10_000]], tokenizer))) == 320_000


def test_many_steps_take_shorter_parts() -> None:
    fields = {"normalizer": None, "pre_tokenizer": sequence("pretokenizers", *[SPLIT] * 60)}
    assert largest_part(fields) < 300_000
    assert largest_part(fields | {"pre_tokenizer": sequence("pretokenizers", *[SPLIT] * 8)}) > 1 << 19


def test_a_pattern_does_not_search_a_text_again_that_has_become_much_longer() -> None:
    with pytest.raises(
        DamagedFileError, match="its steps may make a text 32 times as long, and its regular expressions may then"
    ):
        tokenizer_with(each_becomes("a" * 32), sequence("pretokenizers", AGAIN, AGAIN))
    tokenizer = tokenizer_with(each_becomes("a" * 32), AGAIN)
    assert PartSizes.of(tokenizer).part == tokenizer.largest_part < 2000


def test_encoding_ends_once_it_takes_far_longer_than_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_with(each_becomes("a"), AGAIN)
    monkeypatch.setattr("gpt_pretrain.tokenizers.vocabulary.SECONDS", 0.1)
    monkeypatch.setattr("gpt_pretrain.tokenizers.vocabulary.SECONDS_PER_MILLION", 1.0)
    with within(5, 300), pytest.raises(UserError, match=r"took \d+ seconds of processor time to encode [\d,]+ characters"):
        for _ in encode_pieces([TEXT], tokenizer):
            pass
    usual = tokenizer_with(None, SPLIT)
    monkeypatch.setattr("gpt_pretrain.tokenizers.vocabulary.SECONDS_PER_MILLION", 10.0)
    for _ in range(300):
        usual.encode_ordinary("")


def test_a_long_text_of_a_task_is_encoded_in_parts(tmp_path: Path) -> None:
    fields = {"model": WORDS, "normalizer": None, "pre_tokenizer": sequence("pretokenizers", SPLIT, AGAIN)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    tokenizer = build_tokenizer(str(tmp_path))
    with within(5, 300):
        assert encode_whole("a" * 20_000, tokenizer) == [0] * 20_000
