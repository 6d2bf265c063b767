"""SentencePiece's models are read with its own ids, without its library."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import Tokenizer, decode
from gpt_pretrain.tokenizers.build import StoredTokenizer, build_tokenizer, restore_tokenizer
from tests.helpers.vocabularies import PROBES, TEXT, rank_file

sentencepiece = pytest.importorskip("sentencepiece")

LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
KINDS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram"},
    "T5": {"model_type": "unigram", "byte_fallback": True, "bos_id": -1, "eos_id": 1, "unk_id": 2, "pad_id": 0},
    "Llama": {"model_type": "bpe", "byte_fallback": True, **LLAMA},
    "byte pairs": {"model_type": "bpe"},
    "no blank before": {"model_type": "bpe", "add_dummy_prefix": False, **LLAMA, "user_defined_symbols": ["<tool>"]},
    "tokens of its user": {"model_type": "bpe", "byte_fallback": True, "user_defined_symbols": ["<tool>", "<t>", "."]},
    "tokens of its user in Llama": {
        "model_type": "bpe",
        **LLAMA,
        "user_defined_symbols": ["<tool>", "▁▁", "▁▁▁▁", "[X]", "\n", "<t", "\\d+", "e"],
    },
    "spaces of its user": {"model_type": "bpe", "add_dummy_prefix": False, **LLAMA, "user_defined_symbols": ["▁▁", "▁▁▁"]},
    "unigram of its user": {"model_type": "unigram", **LLAMA, "user_defined_symbols": ["<tool>", ".", "(("]},
    "unigram of its user among signs": {
        "model_type": "unigram",
        "user_defined_symbols": ["<|user|>"],
        "more": ["a <b> </b> < |"] * 40,
    },
    "only spaces are removed": {"model_type": "bpe", "normalization_rule_name": "identity"},
    "line feeds in a table of replacements": {"model_type": "unigram", "normalization_rule_name": "nfkc"},
    "line feeds of its user": {"model_type": "bpe", "normalization_rule_name": "identity", "user_defined_symbols": ["\n"]},
    "lower case": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf", "split_digits": True},
}
TEXTS = [
    *PROBES,
    *TEXT[:2],
    "a  b   c",
    "\ufb01 \uff21\uff22 \uff11 e\u0301",
    "ωωω ω θ",
    "▁a ▁",
    "x<tool> y",
    "<tool><tool>  x",
    " <tool>",
    "a <t<tool>  [X] \\d+e.",
    "((x)) \n<tool>\n",
    "<tool>",
    "      x     ",
    "\n\nx\n",
    "  \n x  \n  ",
    "\u2028x\u3000",
    "▁▁a▁▁▁",
    "<|user|> <<|user|>>| <|user|<|user|>|>",
]

SNIPPETS = ["<tool>", "<|user|>", "<", "|>", "<t", "[X]", "▁", "((", *"abdeinrs 今ωéA1.,'\t\n\u3000"]


def train(**settings: Any) -> bytes:
    target = io.BytesIO()
    size = 420 if settings.get("byte_fallback") else 160
    options = {"vocab_size": size, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1}
    sentences = [line for line in "".join(TEXT).splitlines() if line.strip()] + settings.pop("more", [])
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=target, **options, **settings)
    return target.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    """Return this program's tokenizer and SentencePiece's own for each kind of model."""
    made = {}
    for name, options in KINDS.items():
        folder = tmp_path_factory.mktemp("model")
        content = train(**options)
        (folder / "tokenizer.model").write_bytes(content)
        made[name] = build_tokenizer(str(folder)), sentencepiece.SentencePieceProcessor(model_proto=content)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_sentencepiece(kind: str, models: dict[str, tuple[Tokenizer, Any]]) -> None:
    ours, theirs = models[kind]
    for text in TEXTS:
        ids = ours.encode_ordinary(text).tolist()
        assert ids == theirs.encode(text), text
        if ours.unknown_id not in ids:
            assert decode(ours, ids).strip() == theirs.decode(ids).strip()
    assert (ours.vocab_size, ours.eos_id) == (theirs.vocab_size(), theirs.eos_id())
    assert restore_tokenizer(StoredTokenizer.of(ours), origin="x").encode(TEXTS[0]) == ours.encode(TEXTS[0])


@settings(max_examples=40)
@given(text=st.lists(st.sampled_from(SNIPPETS), max_size=40).map("".join))
def test_any_text_has_the_ids_of_sentencepiece(models: dict[str, tuple[Tokenizer, Any]], text: str) -> None:
    for kind in ("unigram", "Llama", "only spaces are removed", *(kind for kind in KINDS if "of its user" in kind)):
        ours, theirs = models[kind]
        assert ours.encode_ordinary(text).tolist() == theirs.encode(text)


def test_ranks_by_the_same_name_are_read(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
    rank_file(tmp_path / "tokenizer.model", ranks)
    assert build_tokenizer(str(tmp_path)).encode("ab") == [256]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "char"}, "neither a unigram model nor a byte-pair encoding"),
        ({"model_type": "bpe", "user_defined_symbols": ["<TOOL>"]}, "its user-defined token '<TOOL>' may be changed here"),
        ({"model_type": "bpe", "user_defined_symbols": ["e"]}, "its user-defined token 'e' may be changed here"),
        ({"model_type": "unigram", "user_defined_symbols": ["▁s"], **LLAMA}, "its user-defined token '▁s' would get"),
        ({"model_type": "bpe", "user_defined_symbols": ["▁▁"]}, "its user-defined token '▁▁' may be changed here"),
        ({"model_type": "unigram", "treat_whitespace_as_suffix": True}, "it marks spaces in a way"),
    ],
)
def test_models_that_would_get_other_ids_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(train(**options))
    with pytest.raises(UserError, match=message):
        build_tokenizer(str(tmp_path / "x.model"))


def test_damaged_models_end_in_a_message(tmp_path: Path, models: dict[str, tuple[Tokenizer, Any]]) -> None:
    content = train(**KINDS["byte pairs"])
    damaged = [content[:cut] for cut in range(1, len(content), len(content) // 40)]
    damaged += [content[:at] + b"\xff" + content[at + 1 :] for at in range(1, 400, 9)]
    damaged += [b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\n\0", b"\n", b"\n\x03\x12\x01a" * 10]
    for broken in damaged:
        (tmp_path / "x.model").write_bytes(broken)
        try:
            build_tokenizer(str(tmp_path / "x.model")).encode("Der Sinn")
        except UserError as error:
            assert str(error)
