"""Models of other programs, and files that would run code, for the tests of reading weights."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

VOCAB, CONTEXT = 101, 24


class Hostile:
    """Runs a command when a loader unpickles it without restrictions."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def shaken(model: torch.nn.Module) -> Any:
    """Add noise to all weights, so that none keeps its initial value; biases start at zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def hugging_face(**changes: Any) -> GPT2LMHeadModel:
    """Build a small GPT-2 of transformers with random weights."""
    fields = {
        "vocab_size": VOCAB,
        "n_positions": CONTEXT,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    return shaken(GPT2LMHeadModel(GPT2Config(**(fields | changes))))


def to_nanogpt(state: dict[str, Tensor], *, prefix: str = "") -> dict[str, Tensor]:
    """Convert a state dict to nanoGPT's, which has GPT-2's names and stores linear layers as (out, in)."""
    transposed = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    return {prefix + name: value.T.contiguous() if name.endswith(transposed) else value for name, value in state.items()}


def nanogpt_forward(state: dict[str, Tensor], token_ids: Tensor, *, n_layer: int, n_head: int) -> Tensor:
    """Compute the logits of nanoGPT's model, with the exact GELU and optional biases."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(1))

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * state[f"{name}.weight"] + state.get(f"{name}.bias", torch.zeros(1))

    B, T = token_ids.shape
    x = state["transformer.wte.weight"][token_ids] + state["transformer.wpe.weight"][:T]
    for layer in range(n_layer):
        h = f"transformer.h.{layer}"
        q, k, v = (
            part.view(B, T, n_head, -1).transpose(1, 2) for part in linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").chunk(3, -1)
        )
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~torch.ones(T, T).tril().bool(), -torch.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1), f"{h}.attn.c_proj")
        hidden = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        x = x + linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), f"{h}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["lm_head.weight"].T


def numpy_params(model: GPT2LMHeadModel, *, under_ln_f: bool) -> dict[str, Any]:
    """Return a model's weights as the nested arrays that chapter 5 reads from OpenAI's original files."""
    state = {name.removeprefix("transformer."): value.numpy() for name, value in model.state_dict().items()}

    def pair(name: str, weight: str) -> dict[str, np.ndarray]:
        return {weight: state[f"{name}.weight"], "b": state[f"{name}.bias"]}

    blocks = [
        {
            "ln_1": pair(f"h.{layer}.ln_1", "g"),
            "attn": {"c_attn": pair(f"h.{layer}.attn.c_attn", "w"), "c_proj": pair(f"h.{layer}.attn.c_proj", "w")},
            "ln_2": pair(f"h.{layer}.ln_2", "g"),
            "mlp": {"c_fc": pair(f"h.{layer}.mlp.c_fc", "w"), "c_proj": pair(f"h.{layer}.mlp.c_proj", "w")},
        }
        for layer in range(model.config.n_layer)
    ]
    last = pair("ln_f", "g")
    return {"wte": state["wte.weight"], "wpe": state["wpe.weight"], "blocks": blocks} | ({"ln_f": last} if under_ln_f else last)
