"""A tokenizer file that means harm is refused soon, runs nothing and opens nothing."""

from __future__ import annotations

import base64
import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.build import StoredTokenizer, build_tokenizer, restore_tokenizer
from gpt_pretrain.tokenizers.patterns.checks import PatternCost


def fields(**changes: Any) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    return {"version": "1.0", "model": model, **changes}


def bpe(tokens: list[str], merges: list[Any], **more: Any) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": {token: token_id for token_id, token in enumerate(tokens)}, "merges": merges}
    return fields(model=model | more)


def split_by(pattern: str) -> dict[str, Any]:
    return fields(pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})


def replace_all(*contents: str) -> dict[str, Any]:
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": content} for content in contents]
    return fields(normalizer={"type": "Sequence", "normalizers": steps})


HOSTILE = {
    "deep": ('{"model":' * 50_000, "cannot be read as JSON|nested"),
    "deep parts": (
        json.dumps(fields(decoder=None))[:-1] + ', "x": ' + "[" * 5000 + "]" * 5000 + "}",
        "nested more than|cannot be read as JSON",
    ),
    "huge id": (json.dumps(fields(model={"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []})), "has the id 4000000000"),
    "spread ids": (json.dumps(fields(added_tokens=[{"id": 66_000, "content": "x"}])), "has the id 66000; .* without large gaps"),
    "negative id": (json.dumps(fields(added_tokens=[{"id": -1, "content": "x"}])), "has the id -1"),
    "equal ids": (json.dumps(fields(added_tokens=[{"id": 0, "content": "x"}])), "the same id"),
    "long number": (json.dumps(fields())[:-1] + ', "x": ' + "9" * 5000 + "}", "digits"),
    "many values": ('{"a":[' + "[]," * 4_100_000 + "[]]}", "more than 4,000,000 values"),
    "nested repetition": (json.dumps(split_by("(a+)+x")), "may match the same text in several ways"),
    "repeated alternatives": (json.dumps(split_by("(?:a|a)*x")), "may match the same text in several ways"),
    "optional parts": (json.dumps(split_by("a?" * 40 + "a" * 40)), "in too many ways"),
    "repetitions in a row": (json.dumps(split_by("a*a*a*a*[^a]")), "repetitions of the same characters follow each other"),
    "back reference": (json.dumps(split_by(r"(a*)\1+x")), "may take unlimited time"),
    "recursion": (json.dumps(split_by(r"(?<n>a\g<n>*)*")), "may take unlimited time"),
    "growing text": (json.dumps(replace_all(*["aa"] * 40)), "times as long"),
    "long replacement": (json.dumps(replace_all("a" * 100_000)), "times as long"),
    "charsmap": (
        json.dumps(
            fields(
                normalizer={
                    "type": "Precompiled",
                    "precompiled_charsmap": base64.b64encode(b"\4\0\0\0abcd" + b"x" * 100_000).decode(),
                }
            )
        ),
        "not a table of replacements",
    ),
    "long words": (
        json.dumps(fields(model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 10**9})),
        "max_input_chars_per_word",
    ),
    "unknown part": (json.dumps(fields(decoder={"type": "os.system"})), "the tokenizers library cannot use it"),
    "half a pair": ('{"model":{"type":"BPE","vocab":{"\\ud800":0},"merges":[]}}', "surrogate|cannot"),
    "merge of nothing": (json.dumps(bpe(["a"], ["x y"])), "needs the token 'x', which its vocabulary lacks"),
    "merge into nothing": (json.dumps(bpe(["a", "b"], ["a b"])), r"its merge \['a', 'b'\] needs the token 'ab'"),
    "merge of three": (json.dumps(bpe(["a", "b", "ab"], ["a b a"])), "its merge 'a b a' is not a pair of tokens"),
    "merge of a number": (json.dumps(bpe(["a", "b", "ab"], [["a", 1]])), r"its merge \['a', 1\] is not a pair"),
    "merge without its prefix": (
        json.dumps(bpe(["a", "b", "ab"], ["a b"], continuing_subword_prefix="##")),
        "has a second token without '##'",
    ),
    "merge that cuts a character": (
        json.dumps(bpe(["a", "é", "aé"], ["a é"], continuing_subword_prefix="é")),
        "its continuing_subword_prefix is 'é'",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_json_is_refused_soon(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, message = HOSTILE[name]
    (tmp_path / "tokenizer.json").write_text(content)
    start = time.perf_counter()
    with pytest.raises(UserError, match=message):
        build_tokenizer(str(tmp_path))
    assert time.perf_counter() - start < 5
    assert "panicked" not in capfd.readouterr().err


def test_a_part_of_a_vocabulary_may_keep_its_ids(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(fields(added_tokens=[{"id": 50_256, "content": "<|endoftext|>", "special": True}])))
    tokenizer = build_tokenizer(str(file))
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.encode("ab<|endoftext|>") == [0, 1, 50_256]


def test_a_pattern_that_backtracks_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gpt_pretrain.tokenizers.formats.definition.check_pattern", lambda _: PatternCost(0, 1)
    )  # so that it is not refused
    (tmp_path / "tokenizer.json").write_text(json.dumps(split_by("a*a*a*a*[^a]")))
    start = time.process_time()
    with pytest.raises(UserError, match="fails on a text"):
        build_tokenizer(str(tmp_path)).encode("a" * 3000)
    assert time.process_time() - start < 20


def test_a_meta_pkl_that_would_run_code_runs_nothing(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'marker')!r}, 'w')",)

    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": Harm()}))
    with pytest.raises(UserError, match=r"it needs builtins\.eval"):
        build_tokenizer(str(tmp_path / "meta.pkl"))
    assert not (tmp_path / "marker").exists()


def test_a_checkpoint_never_opens_a_place_for_its_tokenizer(vocabularies: dict[str, Path]) -> None:
    for name in (str(vocabularies["byte_level"]), "someone/model", "byte_level@0123456789ab"):
        with pytest.raises(UserError, match="but does not contain it"):
            restore_tokenizer(StoredTokenizer(name), origin="x.ckpt")
    stored = StoredTokenizer.of(build_tokenizer(str(vocabularies["byte_level"])))
    with pytest.raises(UserError, match="is damaged: its tokenizer is"):
        restore_tokenizer(StoredTokenizer("byte_level@0123456789ab", stored.definition), origin="x.ckpt")
