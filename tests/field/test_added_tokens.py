"""Tokens that stand beside a vocabulary are looked for in a text as transformers does, whichever file names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gpt_pretrain.tokenizers.build import build_tokenizer

TEXT = "a <x> b <y>c <X>d<z> <z>\n <x><y> <z>e za <x>z"
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}


def token(content: str, *, special: bool = True, **flags: bool) -> dict[str, Any]:
    none = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, "special": special, **none, **flags}


def named(content: str, **flags: bool) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": content, "rstrip": False, "normalized": True, "single_word": False, **flags}


CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
LEFT = {"content": "<x>", "lstrip": True, "rstrip": False, "normalized": True, "single_word": False}
# The files beside tokenizer.json, in which the vocabulary has 400 tokens.
BESIDE: dict[str, dict[str, Any]] = {
    "table": {CONFIG: {"added_tokens_decoder": {"400": token("<x>", lstrip=True), "401": token("<z>", rstrip=True)}}},
    "table of ordinary tokens": {CONFIG: {"added_tokens_decoder": {"400": token("z", special=False, single_word=True)}}},
    "ids of the vocabulary's own tokens": {ADDED: {"!": 2, "<|endoftext|>": 0, "<x>": 400}},
    "table with ids of other tokens": {CONFIG: {"added_tokens_decoder": {"5": token("<z>"), "3": token("<x>", special=False)}}},
    "table beyond a gap": {CONFIG: {"added_tokens_decoder": {"450": token("<x>"), "430": token("<z>"), "2": token("!")}}},
    "table of blanks": {CONFIG: {"added_tokens_decoder": {"400": token("  ", special=False), "401": token("\n <x>")}}},
    "table and other files": {
        CONFIG: {"added_tokens_decoder": {"400": token("<x>", lstrip=True)}},
        MAP: {"mask_token": "<y>"},
        ADDED: {"<z>": 401},
    },
    "table and name": {CONFIG: {"mask_token": "<x>", "added_tokens_decoder": {"400": token("<x>", lstrip=True)}}},
    "named": {CONFIG: {"mask_token": named("<x>", lstrip=True)}},
    "map": {MAP: {"mask_token": LEFT, "pad_token": "<y>"}},
    "map and added tokens": {MAP: {"mask_token": LEFT}, ADDED: {"<x>": 400, "<y>": 401}},
    "map against configuration": {CONFIG: {"mask_token": "<y>"}, MAP: {"mask_token": LEFT}},
    "additional": {CONFIG: {"additional_special_tokens": [named("<x>", lstrip=True), "<y>"]}},
    "additional in both": {CONFIG: {"additional_special_tokens": ["<z>"]}, MAP: {"additional_special_tokens": ["<x>"]}},
    "additional in the map": {MAP: {"additional_special_tokens": ["<x>", "<z>"]}},
    "extra list": {
        CONFIG: {"extra_special_tokens": ["<z>"]},
        MAP: {"extra_special_tokens": ["<x>", {"content": "<y>", "lstrip": True}]},
    },
    "extra object": {CONFIG: {"extra_special_tokens": {"a_token": "<z>", "b": named("<x>", lstrip=True)}}},
    "extra object and additional": {
        CONFIG: {"extra_special_tokens": {"a_token": "<z>"}, "additional_special_tokens": ["<x>"]},
    },
    "both lists": {CONFIG: {"extra_special_tokens": ["<z>"], "additional_special_tokens": ["<x>"]}},
    "token of a model": {CONFIG: {"image_token": "<z>", "boi_token": named("<y>", lstrip=True), "pad_token": "<x>"}},
}


def write(folder: Path, files: dict[str, Any], config: dict[str, str]) -> Path:
    for name, content in ({CONFIG: {}} | files).items():
        content = config | content if name == CONFIG else content
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def check(folder: Path) -> None:
    ours, theirs = build_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert ours.encode(TEXT) == theirs.encode(TEXT, add_special_tokens=False)
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("files", BESIDE)
def test_tokens_beside_a_tokenizer_json(files: str, tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    check(write(Path(shutil.copytree(vocabularies["byte_level"], tmp_path / "x")), BESIDE[files], FAST))


@pytest.mark.parametrize("files", [name for name in BESIDE if name not in ("table of ordinary tokens", "table beyond a gap")])
def test_tokens_beside_vocab_json_and_merges(files: str, tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    folder = Path(shutil.copytree(vocabularies["gpt2_files"], tmp_path / "x"))
    (folder / ADDED).unlink()
    moved = json.loads(json.dumps(BESIDE[files]).replace('"401"', '"402"').replace('"400"', '"401"'))
    if ADDED in moved:
        moved[ADDED] = {content: token_id + 1 for content, token_id in moved[ADDED].items()}
    check(write(folder, moved, GPT2))


@pytest.mark.parametrize("files", ["table", "named", "map", "map and added tokens"])
def test_tokens_beside_a_tokenizer_json_that_lowers_letters(files: str, tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    folder = Path(shutil.copytree(vocabularies["byte_level"], tmp_path / "x"))
    fields = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(fields | {"normalizer": {"type": "Lowercase"}}))
    check(write(folder, BESIDE[files], FAST))


@pytest.mark.parametrize("files", ["table", "named", "map"])
@pytest.mark.parametrize("lstrip", [False, True])
def test_flags_of_the_tokenizer_json_count_unless_the_table_has_others(
    lstrip: bool, files: str, tmp_path: Path, vocabularies: dict[str, Path]
) -> None:
    folder = Path(shutil.copytree(vocabularies["byte_level"], tmp_path / "x"))
    fields = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    fields["added_tokens"].append(token("<x>", lstrip=lstrip, rstrip=not lstrip) | {"id": 400})
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    check(write(folder, BESIDE[files], FAST))


def test_word_pieces_have_the_flags_of_their_table(tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    folder = Path(shutil.copytree(vocabularies["word_pieces"], tmp_path / "x"))
    n = build_tokenizer(str(folder)).vocab_size
    table = {str(n): token("<X>", special=False, normalized=True), str(n + 1): token("<z>", lstrip=True)}
    check(write(folder, {CONFIG: {"added_tokens_decoder": table}}, {"tokenizer_class": "BertTokenizer"}))


@pytest.mark.parametrize(
    "config",
    [
        {"mask_token": {"content": "<x>", "lstrip": True}},
        {"additional_special_tokens": [{"content": "<x>", "lstrip": True}]},
        {"added_tokens_decoder": [1, 2], "mask_token": {"content": "<x>", "lstrip": True}, "extra_special_tokens": 5},
    ],
)
def test_files_that_transformers_refuses_are_read_by_what_they_say(
    config: dict[str, Any], tmp_path: Path, vocabularies: dict[str, Path]
) -> None:
    folder = write(Path(shutil.copytree(vocabularies["byte_level"], tmp_path / "x")), {CONFIG: config}, FAST)
    assert build_tokenizer(str(folder)).encode("a <x>") == [*build_tokenizer(str(vocabularies["byte_level"])).encode("a"), 400]
