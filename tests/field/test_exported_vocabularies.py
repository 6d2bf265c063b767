"""transformers gives the texts the ids of a run whose vocabulary is a SentencePiece model, from its exported folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint
from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.checkpoints.weight_tokenizers import tokenizer_fields
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import tiny_model
from tests.field.test_sentencepiece import KINDS, TEXTS, train


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_run_with_a_sentencepiece_model_has_its_ids(kind: str, tmp_path: Path) -> None:
    (tmp_path / "own.model").write_bytes(train(**KINDS[kind]))
    tokenizer = build_tokenizer(str(tmp_path / "own.model"))
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    content = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "architecture": model.config.to_dict(),
        **tokenizer_fields(tokenizer),
    }
    write_checkpoint(content, tmp_path / "run.ckpt")
    export(open_weights(tmp_path / "run.ckpt"), tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text), text
    assert theirs.eos_token_id == tokenizer.eos_id
    assert build_tokenizer(str(tmp_path / "out")).definition == tokenizer.definition
