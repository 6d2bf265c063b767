"""Vocabularies that put a blank before a text put it before the whole text only, into however many parts it is split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpt_pretrain.data.token_cache import tokenize_text
from gpt_pretrain.texts.text import Text
from gpt_pretrain.tokenizers import splitting
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.splitting import encode_pieces, encode_prompt
from tests.field.test_sentencepiece import KINDS, train
from tests.helpers import corpora

PROSE = "Der Sinn des Lebens ist die Freude. Every effort moves you, doesn't it?\n"
TEXTS = {
    "prose": PROSE * 40,
    "no spaces": "今天天气很好我们去公园散步然后回家吃饭" * 120,
    "letters": "dertheis" * 300,
    "spaces": f"The{' ' * 2500}end",
    "lines": "the\n\n\n" * 400,
}
OF_SENTENCEPIECE = ("unigram", "Llama", "byte pairs", "tokens of its user in Llama")
TRAINED = ("llama_like", "unigram_json", "byte_level_with_blank")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, vocabularies: dict[str, Path]) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for kind in OF_SENTENCEPIECE:
        (folder / f"{kind}.model").write_bytes(train(**KINDS[kind]))
        made[kind] = build_tokenizer(str(folder / f"{kind}.model"))
    fields = json.loads((vocabularies["byte_level"] / "tokenizer.json").read_text(encoding="utf-8"))
    fields["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "blank.json").write_text(json.dumps(fields), encoding="utf-8")
    made["byte_level_with_blank"] = build_tokenizer(str(folder / "blank.json"))
    return made | {
        "llama_like": build_tokenizer(str(vocabularies["llama_like"])),
        "unigram_json": build_tokenizer(str(vocabularies["unigram"])),
    }


@pytest.mark.parametrize("kind", [*OF_SENTENCEPIECE, *TRAINED])
def test_parts_have_the_ids_of_the_whole(kind: str, tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizers[kind]
    whole = {name: tokenizer.encode_ordinary(text).tolist() for name, text in TEXTS.items()}
    monkeypatch.setattr(splitting, "PART", 600)
    monkeypatch.setattr(splitting, "LOOKAHEAD", 400)
    monkeypatch.setattr(splitting, "CHECKED", 64)
    for name, text in TEXTS.items():
        assert np.concatenate(list(encode_pieces([text[:99], text[99:]], tokenizer))).tolist() == whole[name], name
        assert encode_prompt(text, tokenizer) == tokenizer.encode(text), name


@pytest.mark.parametrize("kind", ["Llama", "unigram_json"])
def test_a_corpus_and_a_training_have_the_same_ids(
    kind: str, tokenizers: dict[str, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabularies: dict[str, Path]
) -> None:
    tokenizer, text = tokenizers[kind], TEXTS["prose"]
    monkeypatch.setattr(splitting, "PART", 600)
    monkeypatch.setattr(splitting, "LOOKAHEAD", 400)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}))
    (tmp_path / "own.model").write_bytes(train(**KINDS["Llama"]))
    name = str(tmp_path / "own.model" if kind == "Llama" else vocabularies["unigram"])
    expected = [*tokenizer.encode_ordinary(text).tolist(), tokenizer.eos_id]
    split = tokenize_text(Text((tmp_path / "a.txt",)), tokenizer, train_ratio=1.0, cache_dir=tmp_path / "cache")
    assert split.train.read().tolist() == expected[:-1]
    for file in ("a.txt", "b.jsonl"):
        corpora.prepare(tmp_path / file, out=tmp_path / f"out-{file}", tokenizer=name, val_fraction=0.0)
        assert corpora.tokens(tmp_path / f"out-{file}", "train").tolist() == expected
