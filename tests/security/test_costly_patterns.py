"""Regular expressions of tokenizers: those that could search for ever are refused, and those of known models are not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tiktoken_ext import openai_public

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.byte_letters import LETTERS
from gpt_pretrain.tokenizers.formats.definition import canonical_fields
from gpt_pretrain.tokenizers.formats.ranks import CL100K_PATTERN, O200K_PATTERN, to_oniguruma
from gpt_pretrain.tokenizers.patterns.checks import check_pattern, matches_nothing
from gpt_pretrain.tokenizers.splitting import encode_pieces, split_text
from tests.helpers import vocabularies

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?"
SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
KNOWN = {
    "gpt2": openai_public.r50k_pat_str,
    "gpt2 in transformers": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": CL100K_PATTERN,
    "cl100k in Oniguruma": to_oniguruma(CL100K_PATTERN),
    "o200k": O200K_PATTERN,
    "llama 3": WORDS + r"\p{L}+|\p{N}{1,3}" + SPACES,
    "qwen": WORDS + r"\p{L}+|\p{N}" + SPACES,
    "qwen 3.5": WORDS + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "kimi": rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t)?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*" + SPACES,
    "mistral": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}" + SPACES,
    "deepseek 1": r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ]+",
    "deepseek 2": r"\s?[!-/:-~！-／：-～‘-‟　-。]+",  # noqa: RUF001
    "deepseek 3": r"\s+$",
    "deepseek 4": "[一-龥ࠀ-一가-퟿]+",
    "deepseek 5": "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    "exaone": WORDS + r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
    "superbpe": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    "bloom": " ?[^(\\s|[.,!?…。，、।۔،])]+",  # noqa: RUF001
    "falcon": "[0-9][0-9][0-9]",
    "spaces": " {2,}",
    "lines": r"(?:\r?\n)+|[^\S\r\n]+$",
}
COSTLY = {
    "two repetitions": r"[ab]+[ac]+x",
    "repetitions with a part between": r"a+b?a+x",
    "counted repetitions": r"a{1,99999}a{1,99999}x",
    "repetitions in a group": r"(a+a+|b)x",
    "case": "(?i:k)+[\u212a]+x",
    "escapes": r"\s+[\u0085]+x",
    "a property": r"\p{Greek}+[\u03b1-\u03b3]+x",
    "behind an end": "x(?:a+a+y)?",
    "a condition": r"(?=\s+\s+x)\s",
    "a condition in a loop": "(?:(?=a+)a)+x",
    "a condition before": r"(?<!a.{0,1000})b",
    "nested": "(a+)+x",
    "nested and empty": "(a*)*x",
    "nested and optional": "(?:a+b?)+x",
    "nested and counted": "a{1,3}+x",
    "nested with many rounds": "(a{100000}){100000}",
    "equal alternatives": "(?:a|a)*x",
    "alternatives of several letters": "(a|b|ab)*x",
    "overlapping classes": r"(?:\w|\d)+x",
    "alternatives in a row": "(?:a|aa)" * 18 + "x",
    "any alternatives in a row": r"(?:[\s\S]|[\s\S][\s\S])" * 22 + r"\b\B|\w+|\s+",
    "options in a row": "a?" * 40 + "a" * 40,
    "the whole text": r"(?=[^x]*x)a",
    "the whole text before a letter": ".*x",
    "flags that change the syntax": "(?x)(a +)+x",
    "many letters": "a" * 3000,
    "many classes": "".join(map(chr, range(0x4E00, 0x5000))),
    "many links": "(?:" + "(?:a?b?c?d?)+" * 100 + ")+x",
    "deep": "(" * 3000 + ")" * 3000,
    "repeated positions": "^" + "{8}" * 12,
    "repeated groups of nothing": "(?:){8}" + "{8}" * 12,
    "repeated repetitions": "a" + "?" * 9000,
    "open": "(a",
    "open class": "[a",
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_pattern_of_a_known_model_is_used(name: str) -> None:
    check_pattern(KNOWN[name])


def test_a_run_at_the_end_of_a_text_is_tried_once_if_no_such_character_precedes_it() -> None:
    assert check_pattern(r"\A |(?<![ _])[ _]+\z").loops == 0
    for other in (r"[ _]+\z", r"(?<![ ])[ _]+\z", r"(?<![ _])[ _]+x"):
        assert check_pattern(other).loops == 1


@pytest.mark.parametrize("name", COSTLY)
def test_a_pattern_that_may_search_for_ever_is_refused_soon(name: str) -> None:
    begin = time.process_time()
    with pytest.raises(DamagedFileError, match="is not used, since"):
        check_pattern(COSTLY[name])
    assert time.process_time() - begin < 5


def split_by(*patterns: str) -> dict[str, Any]:
    steps = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} for pattern in patterns]
    letters = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {
        "version": "1.0",
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, letters]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {letter: number for number, letter in enumerate(LETTERS)}, "merges": []},
    }


@pytest.mark.parametrize("name", KNOWN)
def test_known_patterns_take_little_time_on_long_runs(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(split_by(KNOWN[name])))
    tokenizer = build_tokenizer(str(tmp_path))
    begin = time.process_time()
    for char in "a", " ", "A", "漢", "1", "\n":
        assert len(tokenizer.encode(char * 2000 + "b")) >= 2001
    assert time.process_time() - begin < 5


def test_the_number_of_patterns_is_bounded() -> None:
    canonical_fields(split_by(*["a"] * 20))
    with pytest.raises(DamagedFileError, match="51 regular expressions"):
        canonical_fields(split_by(*["a"] * 51))
    with pytest.raises(DamagedFileError, match="with 12,000 characters in total"):
        canonical_fields(split_by(*["a" * 300] * 40))


def test_texts_to_search_for_count_like_patterns() -> None:
    def normalized(text: str) -> dict[str, Any]:
        return split_by("x") | {"normalizer": {"type": "Replace", "pattern": {"String": text}, "content": ""}}

    canonical_fields(normalized("a" * 9000))
    with pytest.raises(DamagedFileError, match="with 10,001 characters in total"):
        canonical_fields(normalized("a" * 10_000))


MANY_WAYS = "(?:a{1,4}){5}"


def test_the_ways_in_which_all_patterns_match_are_counted_together() -> None:
    assert check_pattern(MANY_WAYS + "b").ways == 256
    canonical_fields(split_by(MANY_WAYS + "b", "c"))
    with pytest.raises(DamagedFileError, match="may match the same text in 512 ways together"):
        canonical_fields(split_by(MANY_WAYS + "b", MANY_WAYS + "c"))


def with_long_token(part: str, pattern: str, *, length: int) -> dict[str, Any]:
    """Return a tokenizer.json with one long token, in which a part searches for a pattern."""
    replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}
    added = {"id": 2, "content": "a" * length, "normalized": True, "special": False}
    return {
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "b": 1}, "unk_token": "<unk>"},
        part: {"type": "Sequence", f"{part}s": [replace, *([{"type": "Fuse"}] if part == "decoder" else [])]},
        "added_tokens": [added],
    }


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize(("pattern", "length"), [("a+b", 20_000), (MANY_WAYS + "b", 1_200_000)])
def test_a_pattern_that_would_search_long_tokens_for_ever_is_refused(part: str, pattern: str, length: int) -> None:
    for short in (with_long_token(part, pattern, length=length // 2), with_long_token(part, "a{4}", length=length)):
        canonical_fields(short)
    begin = time.process_time()
    with pytest.raises(DamagedFileError, match="would search its tokens for too long"):
        canonical_fields(with_long_token(part, pattern, length=length))
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(("pattern", "expected"), [("a*", True), ("a|", True), ("(?=a)", True), ("a+", False), ("[ab]?c", False)])
def test_patterns_that_match_nothing_are_known(pattern: str, expected: bool) -> None:
    assert matches_nothing(pattern) is expected


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize("pattern", [{"String": "a"}, {"Regex": "a"}, {"String": ""}, {"Regex": "b*"}])
def test_a_part_that_makes_a_text_much_longer_is_refused(tmp_path: Path, part: str, pattern: dict[str, str]) -> None:
    step = {"type": "Replace", "pattern": pattern, "content": "aaaa"}
    kind = f"{part}s"
    fields = split_by("x") | {part: {"type": "Sequence", kind: [step] * 3}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=f"its {part} may make a text .* times as long"):
        build_tokenizer(str(tmp_path))
    canonical_fields(split_by("x") | {part: {"type": "Sequence", kind: [step]}})


RESCANNING = {"mistral": 3, "deepseek 3": 1, "superbpe": 6, "lines": 1}


@pytest.mark.parametrize("name", KNOWN)
def test_most_known_patterns_take_time_that_grows_with_the_text(name: str) -> None:
    cost = check_pattern(KNOWN[name])
    assert cost.loops == RESCANNING.get(name, 0)
    assert 1 <= cost.ways < 10


@pytest.mark.parametrize(
    ("pattern", "n_loops"),
    [
        ("a+b", 1),
        ("a+b|a+c|a+d", 3),
        ("(?=a+b)a", 1),
        ("a{1,1000}b", 1),
        ("(?:ab?)+c", 1),
        ("x(?:b+c)?", 1),
        ("a+|b", 0),
        (r"a+b|\s+(?!\S)|\s+", 1),
        (r"a\|\s+(?!\S)|\s+", 1),
        (r"[A-Z]*[a-z]+|[A-Z]+[a-z]*", 0),
        (r"[A-Z]*[a-z]+|[A-Z]+[b-z]*", 1),
        (r"(x|[A-Z]*[a-z]+|[A-Z]+[a-z]*|y)z", 1),
    ],
)
def test_loops_that_may_fail_are_counted(pattern: str, n_loops: int) -> None:
    assert check_pattern(pattern).loops == n_loops


def test_many_loops_that_may_fail_are_refused() -> None:
    canonical_fields(split_by("|".join(f"a+{letter}" for letter in "bcdefghijk")))
    with pytest.raises(DamagedFileError, match="the same characters again and again, in 12 ways"):
        canonical_fields(split_by(*["a+b|a+c"] * 6))


def tokenizer_of(folder: Path, *patterns: str) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(split_by(*patterns)))
    return build_tokenizer(str(folder))


def test_a_text_is_encoded_in_short_parts_where_a_pattern_may_search_it_again(tmp_path: Path) -> None:
    run = "a" * 30_000
    assert list(split_text(run, tokenizer_of(tmp_path, r"a+|b"))) == [run]
    assert max(map(len, split_text(run, tokenizer_of(tmp_path, r"a+b")))) <= 4096


@pytest.mark.parametrize(
    "names", [["deepseek 1", "deepseek 2", "deepseek 3", "deepseek 4"], ["mistral"], ["superbpe", "qwen"], ["lines"]]
)
def test_short_parts_have_the_ids_of_the_whole_text(tmp_path: Path, names: list[str]) -> None:
    random = Random(0)
    pieces = [
        "Every effort ",
        "12345678",
        " \n\n",
        "今天天气很好。",
        "x == 1;\n    ",
        "AAAA",
        " " * 70,
        "-" * 40,
        "Привет",
        "\r\n",
    ]
    text = "".join(random.choice(pieces) for _ in range(3000)) + " " * 9000 + "x" * 9000 + "A" * 9000 + "1" * 9000
    fields = json.loads((vocabularies.byte_level(tmp_path / "trained", size=600) / "tokenizer.json").read_text())
    fields |= {"pre_tokenizer": split_by(*(KNOWN[name] for name in names))["pre_tokenizer"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    tokenizer = build_tokenizer(str(tmp_path))
    parts = list(split_text(text, tokenizer))
    assert "".join(parts) == text and max(map(len, parts)) <= 4096
    assert np.concatenate(list(encode_pieces([text], tokenizer))).tolist() == tokenizer.encode_ordinary(text).tolist()
