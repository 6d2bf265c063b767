"""Weights of other programs in files, and how a test reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.gpt2 import GPTModel
from tests.helpers.other_models import CONTEXT, to_nanogpt

State = dict[str, Tensor]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n"


def logits_of(model: torch.nn.Module) -> Tensor:
    """Return the logits of a model of this program or of transformers on fixed tokens."""
    token_ids = torch.arange(2 * CONTEXT).view(2, CONTEXT)
    with torch.no_grad():
        out = model(token_ids)
    return getattr(out, "logits", out)


def same(ours: GPTModel, theirs: torch.nn.Module) -> bool:
    """Return whether two models compute the same logits."""
    return bool((logits_of(ours) - logits_of(theirs)).abs().max() < 1e-5)


def prefixed(state: State, prefix: str) -> State:
    """Return a state dict with a prefix before each name."""
    return {prefix + name: value for name, value in state.items()}


def refusal(path: Path | str, *, n_heads: int | None = 4) -> str:
    """Return the one message with which a file is refused."""
    with pytest.raises(UserError) as caught:
        load_pretrained(path, n_heads=n_heads)
    (message,) = caught.value.problems
    return message


def save_as_pickle(model: GPT2LMHeadModel, folder: Path, *, parts: int) -> Path:
    """Save a model as transformers did before safetensors."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    if parts == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    files = {name: f"pytorch_model-{number % parts + 1:05d}-of-{parts:05d}.bin" for number, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: value for name, value in state.items() if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def rewrite_config(folder: Path, **changes: object) -> None:
    """Change fields of a config.json; those that are None are removed."""
    fields = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def write_llmc(state: State, path: Path, *, dtype: torch.dtype, padded: int = 128) -> None:
    """Write a model as llm.c's Python program does."""
    header = np.zeros(256, dtype="<i4")
    header[:8] = [20240326, 3 if dtype == torch.float32 else 5, CONTEXT, 101, 3, 4, 48, padded]
    state = {name.removeprefix("transformer."): value for name, value in to_nanogpt(state).items()}
    wte = torch.cat([state["wte.weight"], torch.zeros(padded - 101, 48)])
    order = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    blocks = [state[f"h.{i}.{name}.{kind}"] for name in order for kind in ("weight", "bias") for i in range(3)]
    values = [wte, state["wpe.weight"], *blocks, state["ln_f.weight"], state["ln_f.bias"]]
    path.write_bytes(
        header.tobytes() + b"".join(value.to(dtype).contiguous().view(torch.uint8).numpy().tobytes() for value in values)
    )
