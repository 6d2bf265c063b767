"""Vocabularies whose tokens do not tell the size of a text: corpora keep the right size, and no loss per byte is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.commands.prepare import prepare_command
from gpt_pretrain.tokenizers.base import token_byte_lengths
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.helpers import vocabularies

TEXTS = ["a b\n\n  c\n", "the cat  sat on the mat.\n" * 20, "One. Two. Three."]
MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama": vocabularies.llama_like,
    "unigram": vocabularies.unigram,
    "word pieces": vocabularies.word_pieces,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_corpus_has_the_bytes_of_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = MAKERS[kind](tmp_path / "vocabulary")
    assert token_byte_lengths(build_tokenizer(str(folder))).sum() == 0
    Path("in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    prepare_command(["in.jsonl", "out=corpus", f"tokenizer={folder}", "workers=1", "val_fraction=0", "shard_tokens=100"])
    part = json.loads(Path("corpus/manifest.json").read_text())["parts"]["train"]
    assert part["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert len(part["shards"]) > 1 and sum(shard["bytes"] for shard in part["shards"]) == part["bytes"]


def test_byte_level_vocabularies_know_their_bytes(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(str(vocabularies.byte_level(tmp_path / "vocabulary")))
    lengths, text = token_byte_lengths(tokenizer), "Zoë says: 東京!\n"
    assert lengths[tokenizer.encode_ordinary(text)].sum() == len(text.encode())
