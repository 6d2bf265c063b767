"""The names of the modern model's tensors, and its config, in transformers' class NanoChatForCausalLM.

Source: transformers' NanoChatForCausalLM and NanoChatConfig.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpt_pretrain.checkpoints.formats.layouts import OWN_KEY
from gpt_pretrain.checkpoints.formats.stated_settings import as_count
from gpt_pretrain.checkpoints.serialization.tensor_files import StoredTensor
from gpt_pretrain.model.config import MODERN_LOGIT_CAP, MODERN_VALUES, GPTConfig
from gpt_pretrain.model.modern import NORM_EPS, ROPE_BASE
from gpt_pretrain.system.shown_values import short_repr

NANOCHAT = "nanochat"  # the model_type
# NanoChatConfig's names and defaults of the sizes.
SIZES: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50304),
    "context_length": ("max_position_embeddings", 2048),
    "emb_dim": ("hidden_size", 768),
    "n_heads": ("num_attention_heads", 6),
    "n_layers": ("num_hidden_layers", 12),
    "n_kv_heads": ("num_key_value_heads", None),
}
# Settings for which ModernModel has no option, with the only value that matches ModernModel.
FIXED = {
    "hidden_act": "relu2",
    "rms_norm_eps": NORM_EPS,
    "final_logit_softcapping": MODERN_LOGIT_CAP,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
THEIR_TOP = {"tok_emb": "model.embed_tokens", "out_head": "lm_head"}
THEIR_BLOCK = {
    "att.W_query": "self_attn.q_proj",
    "att.W_key": "self_attn.k_proj",
    "att.W_value": "self_attn.v_proj",
    "att.out_proj": "self_attn.o_proj",
    "ff.layers.0": "mlp.fc1",
    "ff.layers.2": "mlp.fc2",
}
OUR_TOP = {theirs: ours for ours, theirs in THEIR_TOP.items()}
OUR_BLOCK = {theirs: ours for ours, theirs in THEIR_BLOCK.items()}
THEIR_TENSOR = re.compile(r"(?:model\.layers\.(\d+)\.)?(.+)\.weight")
OUR_TENSOR = re.compile(r"(?:trf_blocks\.(\d+)\.)?(.+)\.weight")


def to_nanochat_tensors(state: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Return the tensors of a ModernModel under the names of NanoChatForCausalLM."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, module = _parts(OUR_TENSOR, name)
        if layer is None:
            tensors[f"{THEIR_TOP[module]}.weight"] = value.contiguous()
            continue
        modules = ("att.W_query", "att.W_key", "att.W_value") if module == "att.qkv" else (module,)
        values = torch.split(value, list(config.qkv_rows)) if module == "att.qkv" else (value,)
        for one, part in zip(modules, values, strict=True):
            tensors[f"model.layers.{layer}.{THEIR_BLOCK[one]}.weight"] = part.contiguous()
    return tensors


def from_nanochat_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a NanoChatForCausalLM under the names of a ModernModel. Unknown tensors keep their names."""
    renamed = {}
    for name, stored in tensors.items():
        match = THEIR_TENSOR.fullmatch(name)
        layer, module = match.groups() if match is not None else (None, "")
        ours = OUR_TOP.get(module) if layer is None else OUR_BLOCK.get(module)
        new = name if ours is None else f"{ours}.weight" if layer is None else f"trf_blocks.{layer}.{ours}.weight"
        renamed[new] = dataclasses.replace(stored, name=new)
    return renamed


def to_nanochat_config(config: GPTConfig, *, tokenizer: str | None, eos_id: int | None) -> dict[str, Any]:
    """Return the fields of a transformers NanoChatConfig for the same model."""
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": NANOCHAT,
        **{theirs: getattr(config, ours) for ours, (theirs, _) in SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": 4 * config.emb_dim,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "attention_dropout": config.drop_rate,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": None,
        **FIXED,
        OWN_KEY: {"tokenizer": tokenizer},
    }


def from_nanochat_config(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translate the fields of a config.json into fields of `GPTConfig`.

    Returns:
        The fields, and the reasons why ModernModel cannot be this model.
    """
    declared = {ours: as_count(fields.get(theirs, default)) for ours, (theirs, default) in SIZES.items()}
    if declared["n_kv_heads"] == declared["n_heads"]:
        declared["n_kv_heads"] = None
    width, heads = declared["emb_dim"], declared["n_heads"]
    problems = [
        f"{name}={short_repr(fields[name])} is not supported; this program's modern model always has {short_repr(value)}."
        for name, value in FIXED.items()
        if fields.get(name, value) != value
    ]
    hidden = fields.get("intermediate_size", 8192)
    if not isinstance(width, int) or hidden != 4 * width:
        problems.append(
            f"intermediate_size={short_repr(hidden)} is not supported; in this program's modern model it is always "
            "4 * hidden_size."
        )
    head_dim = fields.get("head_dim")
    sizes = (head_dim, heads, width)  # A text times a number would fill the memory.
    if head_dim is not None and not (all(isinstance(size, int) for size in sizes) and head_dim * heads == width):
        problems.append(
            f"head_dim={short_repr(head_dim)} is not supported; in this program's modern model it is always "
            "hidden_size / num_attention_heads."
        )
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    rope = rope if isinstance(rope, Mapping) else {"rope_type": rope}
    kind, base = rope.get("rope_type", "default"), rope.get("rope_theta", fields.get("rope_theta", ROPE_BASE))
    if kind != "default" or base != ROPE_BASE:
        problems.append(
            f"rotary positions of type {short_repr(kind)} with the base {short_repr(base)} are not supported; "
            f"this program's modern model has the default type with the base {ROPE_BASE:g}."
        )
    if isinstance(quantization := fields.get("quantization_config"), dict):
        method = short_repr(quantization.get("quant_method"))
        problems.append(f"its weights are quantized (quant_method={method}); name the model's original weights.")
    drop_rate = fields.get("attention_dropout", 0.0)
    return declared | MODERN_VALUES | {"kind": "modern", "init": "modern", "drop_rate": drop_rate}, problems


def _parts(pattern: re.Pattern[str], name: str) -> tuple[str | None, str]:
    match = pattern.fullmatch(name)
    assert match is not None, name
    return match[1], match[2]
