"""Weights of other programs, and tensors in forms that are not read, are named for what they are instead of called damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.errors import UserError

NAME = b"TransformerDecoderModelSpec\0"
FORMATS = {
    "model.bin": (struct.pack("<IH", 6, len(NAME)) + NAME + bytes(range(256)), "is a CTranslate2 model"),
    "rank0.engine": (b"ftrt" + bytes(range(256)), "holds weights for TensorRT"),
    "decoder": (b"ptrt" + bytes(range(256)), "is a TensorRT engine"),
    "model.pte": (bytes(4) + b"ET12" + bytes(range(256)), "holds weights for ExecuTorch"),
    "stories.bin": (struct.pack("<Ii", 0x616B3432, 1) + bytes(range(256)), r"is a model of llama2\.c"),
    "openvino_model.bin": (bytes(range(1, 256)), "holds weights for OpenVINO"),
}

NO_NAMES_OF_WEIGHTS = ("decoder", "stories.bin")  # Which a folder is not searched for.


@pytest.mark.parametrize(
    ("name", "in_folder"),
    [*((name, False) for name in FORMATS), *((name, True) for name in FORMATS if name not in NO_NAMES_OF_WEIGHTS)],
)
def test_a_format_of_another_program_is_named(tmp_path: Path, name: str, in_folder: bool) -> None:
    content, message = FORMATS[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(tmp_path if in_folder else tmp_path / name)
    assert "damaged" not in str(caught.value)


def test_the_first_layout_of_mingpt_is_named(tmp_path: Path) -> None:
    tensors = {"tok_emb.weight": torch.zeros(9, 8), "pos_emb": torch.zeros(1, 4, 8), "head.weight": torch.zeros(9, 8)}
    for part in ("key", "query", "value", "proj"):
        tensors |= {f"blocks.0.attn.{part}.weight": torch.zeros(8, 8), f"blocks.0.attn.{part}.bias": torch.zeros(8)}
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"a model of minGPT's first version \(blocks\.0\.attn\.key\.weight\)"):
        load_pretrained(tmp_path / "model.pt", n_heads=2)


@pytest.mark.parametrize("form", ["sparse", "quantized"])
@pytest.mark.parametrize("tensor", ["wte.weight", "h.0.ln_1.bias"])
def test_a_tensor_in_another_form_is_the_reason(tmp_path: Path, theirs: GPT2LMHeadModel, form: str, tensor: str) -> None:
    tensors = dict(theirs.transformer.state_dict())
    stored = tensors[tensor]
    tensors[tensor] = stored.to_sparse() if form == "sparse" else torch.quantize_per_tensor(stored, 0.1, 0, torch.qint8)
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(UserError, match="Its tensors are sparse or quantized: save the model's original weights"):
        load_pretrained(tmp_path / "model.pt", n_heads=4)
