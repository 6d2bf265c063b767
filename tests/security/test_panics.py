"""Failures of the tokenizers library, which is written in Rust: they become messages of this program, and nothing else is shown."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.native_errors import without_panic_messages
from gpt_pretrain.tokenizers.build import build_tokenizer

BPE = {"type": "BPE", "vocab": {"a": 0, "é": 1, "aé": 2, "##b": 3, "a##b": 4, "ab": 5}}
CHARSMAP = base64.b64encode(b"\x08\0\0\0" + b"\xff" * 8 + b"abc\0").decode()
BROKEN_CHARSMAP = base64.b64encode(b"\x08\0\0\0" + b"\0\1\0\0" * 2 + b"\xff\xfe\0").decode()
WHEN_BUILT = {
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": BROKEN_CHARSMAP}},
    "prefix": {"model": BPE | {"continuing_subword_prefix": "a", "merges": [["a", "é"]]}},
    "long prefix": {"model": BPE | {"continuing_subword_prefix": "####", "merges": [["a", "##b"]]}},
    "prefix of several bytes": {"model": BPE | {"continuing_subword_prefix": "é", "merges": [["a", "é"]]}},
}
WHEN_USED = {
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}},
    "length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
}


def write_tokenizer(folder: Path, fields: dict[str, Any]) -> str:
    plain = {"version": "1.0", "model": BPE | {"merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(plain | fields))
    return str(folder)


@pytest.mark.parametrize("name", WHEN_BUILT)
def test_a_tokenizer_that_cannot_be_built_is_one_message(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        build_tokenizer(write_tokenizer(tmp_path, WHEN_BUILT[name]))
    assert capfd.readouterr().err == ""


def test_a_prefix_that_tokens_have_is_cut_off(tmp_path: Path) -> None:
    model = BPE | {"continuing_subword_prefix": "##", "merges": [["a", "##b"]]}
    assert build_tokenizer(write_tokenizer(tmp_path, {"model": model})).encode("ab") == [5]


@pytest.mark.parametrize("name", WHEN_USED)
def test_a_text_that_a_tokenizer_fails_on_is_one_message(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = build_tokenizer(write_tokenizer(tmp_path, WHEN_USED[name]))
    for encode in tokenizer.encode, tokenizer.encode_ordinary:
        with pytest.raises(UserError, match="fails on a text"):
            encode("é a")
    assert capfd.readouterr().err == ""


def test_a_token_that_a_decoder_fails_on_is_one_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    decoder = {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}
    tokenizer = build_tokenizer(write_tokenizer(tmp_path, {"decoder": decoder}))
    with pytest.raises(UserError, match="fails on a text"):
        tokenizer.token_bytes(0)
    assert capfd.readouterr().err == ""


def test_other_output_is_kept_while_messages_are_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with without_panic_messages():
        os.write(2, b"before\n")
        with without_panic_messages():
            os.write(2, b"within\n")
        os.write(2, b"\nthread '<unnamed>' panicked at src/lib.rs:1:1:\nindex out of bounds\nnote: run with `RUST_BACKTRACE=1`\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nwithin\nafter\n"
    with without_panic_messages():
        os.write(2, b"again\n")
    assert capfd.readouterr().err == "again\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_has_its_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with without_panic_messages():
        process = multiprocessing.get_context("fork").Process(target=os.write, args=(2, b"child\n"))
        process.start()
        process.join()
    assert capfd.readouterr().err == "child\n"
