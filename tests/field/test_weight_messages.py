"""Weights that cannot be read: each in the tables has a message that says what it is instead, in a reader's words."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint, write_checkpoint
from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.checkpoints.serialization.tensor_files import read_torch_file
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.modern import ModernModel
from tests.conftest import tiny_model
from tests.helpers.foreign_weights import refusal

# The name of a tensor, and what a file with it is called.
OTHER_MODELS = {
    "model.flat_param": "the flat parameters of FSDP; save a full state dict with FSDP's StateDictType.FULL_STATE_DICT",
    "decoder.layers.0.self_attn.k_proj.weight": "an OPT or BART",
    "gpt_neox.layers.0.attention.query_key_value.weight": "a GPT-NeoX or Pythia",
    "transformer.h.0.attn.attention.k_proj.weight": "a GPT-Neo",
    "tokens_embed.weight": "a GPT-1",
    "transformer.h.0.self_attention.dense.weight": "a BLOOM or Falcon",
    "encoder.layer.0.attention.self.query.weight": "a BERT or RoBERTa",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5",
    "language_model.embedding.word_embeddings.weight": "a model of Megatron-LM",
    "transformer.h.0.norm_1.weight": "a model of LitGPT",
    "blocks.0.sa.heads.0.key.weight": "a model with one module for each attention head, and ReLU",
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_another_model_is_named(tmp_path: Path, name: str) -> None:
    torch.save({name: torch.ones(4, 4)}, tmp_path / "x.pt")
    assert f"it holds {OTHER_MODELS[name]} ({name}). Only GPT-2 models can be read." in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("name", "head"), [("qa_outputs.weight", "a question-answering head"), ("reward_head.weight", "a reward head")]
)
def test_a_head_for_another_task_is_named(tmp_path: Path, theirs: GPT2LMHeadModel, name: str, head: str) -> None:
    state = {key: value for key, value in theirs.state_dict().items() if "lm_head" not in key}
    torch.save(state | {name: torch.ones(2, 48)}, tmp_path / "x.pt")
    assert f"it has {head} ({name}) instead of one for tokens, so it cannot generate text." in refusal(tmp_path / "x.pt")


# The first two numbers of a file of llm.c, and what the message says of it.
LLMC_FILES = {
    (20240327, 1): "holds the inputs and gradients of a test of llm.c, not a model.",
    (20240328, 1): "holds the tokenizer of llm.c, not a model.",
    (20240520, 1): "holds token ids of llm.c, not a model.",
    (20240522, 1): "holds questions of an evaluation of llm.c, not a model.",
    (20240527, 1): "holds the optimizer's state of llm.c, not a model. Name the model_*.bin beside it.",
    (20240803, 3): "holds a Llama 3 of llm.c. Only GPT-2 models can be read.",
    (20240326, 2): "is a model of llm.c in version 2 of its format. Versions 1, 3 and 5 can be read.",
}


@pytest.mark.parametrize("numbers", LLMC_FILES)
def test_another_file_of_llmc_is_named(tmp_path: Path, numbers: tuple[int, int]) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:2] = numbers
    (tmp_path / "x.bin").write_bytes(header.tobytes())
    assert refusal(tmp_path / "x.bin") == f"{tmp_path / 'x.bin'} {LLMC_FILES[numbers]}"


def content(**changes: Any) -> dict[str, Any]:
    """Return a checkpoint of this program with the weights alone."""
    model = tiny_model()
    state = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    return {"state_dict": state, "architecture": model.config.to_dict(), "tokenizer": "byte"} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizer": 3},
            "x.ckpt is not a complete checkpoint of this program: it lacks its tensors or the tokenizer's name. If a Trainer of your "
            "own has saved it, save the weights with torch.save(module.model.state_dict(), 'model.pth').",
        ),
        ({"tokenizer_definition": 3}, "x.ckpt is damaged: its tokenizer_definition is not a tensor of bytes."),
    ],
    ids=["tokenizer", "definition"],
)
def test_a_checkpoint_with_a_wrong_entry_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_checkpoint(content(**changes), tmp_path / "x.ckpt")
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path / "x.ckpt").build_tokenizer(None)
    assert str(caught.value).endswith(message)


def test_a_checkpoint_of_something_else_is_named(tmp_path: Path) -> None:
    write_checkpoint([1, 2], tmp_path / "x.ckpt")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"x\.ckpt is not a checkpoint of this program: it holds an array\."):
        read_checkpoint(tmp_path / "x.ckpt")


def test_checkpoints_of_other_shapes_have_no_mean(tmp_path: Path) -> None:
    write_checkpoint(content(), tmp_path / "last.ckpt")
    other = tiny_model(emb_dim=16)
    state = {f"model.{name}": value.clone() for name, value in other.state_dict().items()}
    for number in (1, 2):
        path = tmp_path / f"step-0000000{number}.ckpt"
        write_checkpoint(content(state_dict=state, architecture=other.config.to_dict()), path)
    with pytest.raises(UserError, match=r"its periodic checkpoints have other shapes than .*last\.ckpt, so they have no mean\."):
        open_weights(tmp_path / "last.ckpt", kind="average")


def test_numbers_of_another_machine_are_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pt", pickle_protocol=4)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive, zipfile.ZipFile(tmp_path / "y.pt", "w") as target:
        for name in archive.namelist():
            target.writestr(name, b"big" if name.endswith("byteorder") else archive.read(name))
    with pytest.raises(UserError, match="its numbers have the byte order of another machine"):
        read_torch_file(tmp_path / "y.pt")


@pytest.mark.parametrize(
    ("begin", "end", "message"),
    [(-20, -19, "a storage has another size than its tensors state"), (-4, None, "it ends before its tensors do")],
    ids=["count", "end"],
)
def test_a_damaged_file_of_an_old_pytorch_is_named(tmp_path: Path, begin: int, end: int | None, message: str) -> None:
    path = tmp_path / "x.pt"
    torch.save({"weight": torch.ones(3)}, path, pickle_protocol=4, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    data[begin:end] = b"\x02" if end else b""  # the number of items before the last storage, or a part of its items
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_torch_file(path)


def test_a_tensor_that_is_stored_as_a_conjugate_is_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, dtype=torch.complex64).conj()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="a tensor has hooks, or is stored as the negative or the conjugate of another"):
        load_pretrained(tmp_path / "x.pt")


def test_an_absurd_size_is_refused(tmp_path: Path) -> None:
    """The tensors of this kind of model do not show how many positions it has."""
    config = replace(tiny_model().config, kind="modern", init="modern", n_kv_heads=2, tie_embeddings=False, drop_rate=0.0)
    state = {f"model.{name}": value for name, value in ModernModel(config).state_dict().items()}
    architecture = config.to_dict() | {"context_length": 10**9}
    write_checkpoint(content(state_dict=state, architecture=architecture), tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt: context_length=1000000000 exceeds the limit of 100,000,000\."):
        open_weights(tmp_path / "x.ckpt")


def test_the_definition_of_a_tokenizer_that_is_no_text_is_named(tmp_path: Path) -> None:
    write_checkpoint(content(tokenizer_definition=torch.tensor([255], dtype=torch.uint8)), tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt is damaged: its tokenizer_definition is not UTF-8\."):
        open_weights(tmp_path / "x.ckpt").build_tokenizer(None)


def test_the_usual_number_of_heads_is_suggested(tmp_path: Path) -> None:
    torch.save(tiny_model(emb_dim=64).state_dict(), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"with heads of width 64, as in GPT-2, it is 1\."):
        load_pretrained(tmp_path / "x.pt")
